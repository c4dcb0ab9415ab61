"""`python -m triton_face_client`, the command `triton-face`."""

import sys

from triton_face_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
