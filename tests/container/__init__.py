"""The project's image on a stand-in for NVIDIA's, run by a real container engine: `make container-check`."""
