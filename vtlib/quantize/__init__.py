"""From vectors to numbers and back: one result and one way to decode for every quantiser."""

from .contract import Quantized, Quantizer, straight_through, used
from .finite_scalar import FiniteScalar

__all__ = ["FiniteScalar", "Quantized", "Quantizer", "straight_through", "used"]
