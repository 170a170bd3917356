"""linear_maps."""
