"""Speed side by side with py-feat, parity, equality of the masks."""
