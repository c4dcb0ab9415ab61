"""Train the pose network on synthetic heads and evaluate it."""
