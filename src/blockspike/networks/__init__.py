"""Layers and networks of spiking neurons."""

from blockspike.networks.layers import AdLIFLayer, SpikingClassifier, SpikingLayer

__all__ = ["AdLIFLayer", "SpikingClassifier", "SpikingLayer"]
