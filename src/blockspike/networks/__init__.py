"""Layers and networks of spiking neurons."""

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import AdLIFLayer, ALIFLayer

__all__ = ["ALIFLayer", "AdLIFLayer", "SpikingClassifier"]
