"""The Jacobian as products: what every method is made of."""
