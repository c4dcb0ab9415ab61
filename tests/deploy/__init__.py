"""The deployment: image, manifests, monitoring, by the real tools and a real server."""
