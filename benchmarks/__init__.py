"""Speed as ratios: what Geophone adds to the work that cannot be avoided, both measured in one process."""
