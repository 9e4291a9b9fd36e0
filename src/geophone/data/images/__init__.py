"""Readers of image files, and artificial images."""
