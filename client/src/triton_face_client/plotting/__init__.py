"""Pictures of the service's results: one face in detail, or a contact sheet of many.

They need matplotlib: ``pip install 'triton-face-client[plot]'``. This package does not import pyplot, which
would select a backend for the caller's notebook.
"""
