"""Tests of the image on a base like NVIDIA's, run by a real container engine (`make container-check`)."""
