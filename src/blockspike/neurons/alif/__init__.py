"""Adaptive leaky integrate-and-fire neurons: one model, one file per method."""

from blockspike.neurons.alif.methods import Method, alif
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.trace import SpikeTrace

__all__ = ["Method", "NotFiniteError", "SpikeTrace", "alif"]
