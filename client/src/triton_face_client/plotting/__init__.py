"""Pictures of aligned faces, masks, HOG and head pose."""
