"""Local server, container image, Kubernetes manifests and monitoring."""
