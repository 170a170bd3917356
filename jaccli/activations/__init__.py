"""Layer addresses, and the network between two of them as a function."""
