"""Tests of deploy/: start script, probes, manifests, rules and dashboard (`make deploy-check`)."""
