"""`make gpu-check`: parity, CUDA memory and speed on a machine with a GPU."""
