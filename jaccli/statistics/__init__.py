"""Numbers about J."""
