"""backward_graph."""
