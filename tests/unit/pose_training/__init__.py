"""Tests of the pose network and of its training (export/pose/network.py, export/pose/training)."""
