"""Tests of the client and the command triton-face, against a real server."""
