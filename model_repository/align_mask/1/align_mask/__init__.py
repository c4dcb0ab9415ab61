"""Face alignment, warp and hull mask, independent of Triton; model.py serves them."""
