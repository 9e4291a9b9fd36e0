"""Geophone."""
