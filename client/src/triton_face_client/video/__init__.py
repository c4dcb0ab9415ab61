"""From landmark tables, images and videos to face crops, and from features to files."""
