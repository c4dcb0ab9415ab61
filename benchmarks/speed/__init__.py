"""Speed, parity and mask equality, next to py-feat."""
