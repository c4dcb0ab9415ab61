"""The exception that the command line prints as a single line."""


class ExportError(ValueError):
    """An invalid checkpoint, option or model; the message says what to do."""
