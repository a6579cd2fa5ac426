"""Adaptive leaky integrate-and-fire neurons: one model, one file per method."""

from blockspike.neurons.alif.dispatch import Method, alif
from blockspike.neurons.trace import ALIFTrace, NotFiniteError

__all__ = ["ALIFTrace", "Method", "NotFiniteError", "alif"]
