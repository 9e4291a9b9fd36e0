"""From the table to the table: scores, relations, claims. Nothing here opens a network."""
