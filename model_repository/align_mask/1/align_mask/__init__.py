"""Face alignment, warp and hull mask; only `metrics` depends on Triton. model.py serves them."""
