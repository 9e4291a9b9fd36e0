"""Figures, from the table."""
