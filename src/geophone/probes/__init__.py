"""Probes: what is measured of a network over examples, summed as statistics, turned into rows of the table."""
