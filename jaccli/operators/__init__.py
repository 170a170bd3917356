"""The Jacobian as products: what every method is made of."""

from jaccli.operators.linearised import Linearised
from jaccli.operators.operator import JacobianOperator

__all__ = ["JacobianOperator", "Linearised"]
