"""The image: how it is built, how the server is started and probed in it."""
