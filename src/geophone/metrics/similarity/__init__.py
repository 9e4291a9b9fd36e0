"""Similarity of two sets of responses to the same examples."""
