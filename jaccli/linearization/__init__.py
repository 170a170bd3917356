"""linearization."""
