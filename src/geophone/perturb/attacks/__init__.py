"""Attacks: the perturbation in a small ball that hurts most."""
