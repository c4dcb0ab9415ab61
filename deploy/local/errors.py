"""The error of the local server."""


class ServerError(RuntimeError):
    """The server cannot start or has ended; the message is one line and says what to do."""
