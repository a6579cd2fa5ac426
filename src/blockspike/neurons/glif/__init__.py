"""Generalised leaky integrate-and-fire neurons."""

from blockspike.neurons.glif.neuron import ThresholdCoupling, glif
from blockspike.neurons.glif.step import COUPLED_GLIF, GLIF

__all__ = ["COUPLED_GLIF", "GLIF", "ThresholdCoupling", "glif"]
