"""Landmark tables, images and videos in; face crops; files of features out."""
