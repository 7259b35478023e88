"""Small measurements of one part alone."""
