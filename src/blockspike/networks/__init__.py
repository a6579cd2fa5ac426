"""Layers and networks of spiking neurons."""

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import ALIFLayer, EulerAdLIFLayer
from blockspike.networks.published import AdLIFLayer, CSiLIFLayer

__all__ = ["ALIFLayer", "AdLIFLayer", "CSiLIFLayer", "EulerAdLIFLayer", "SpikingClassifier"]
