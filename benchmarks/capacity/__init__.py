"""Measured service times of one pod, and a simulation of a fleet with the autoscaler."""
