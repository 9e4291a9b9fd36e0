"""What everything stands on: errors, files, registries, randomness, the table; no measurement happens here."""
