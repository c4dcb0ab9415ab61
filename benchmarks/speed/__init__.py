"""Speed, parity and mask equality compared with py-feat."""
