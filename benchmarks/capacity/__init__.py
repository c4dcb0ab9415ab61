"""A day of the Kubernetes autoscaler over this service, simulated from measured service times."""
