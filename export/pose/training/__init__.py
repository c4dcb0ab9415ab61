"""Training and judging the pose MLP on synthetic heads."""
