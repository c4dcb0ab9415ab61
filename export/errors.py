"""The one exception that the command line turns into a single-line message."""


class ExportError(ValueError):
    """A checkpoint, a setting or a built model is not usable; the message says what to do."""
