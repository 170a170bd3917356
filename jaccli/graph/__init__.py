"""f as an operator graph at a point, and its Jacobian from the structure of that graph."""
