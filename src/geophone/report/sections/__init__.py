"""Sections of the page, from the table."""
