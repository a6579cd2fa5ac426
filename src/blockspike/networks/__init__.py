"""Layers and networks of spiking neurons."""

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import (
    AdLIFLayer,
    ALIFLayer,
    CSiLIFLayer,
    EulerAdLIFLayer,
    GLIFLayer,
)

__all__ = [
    "ALIFLayer",
    "AdLIFLayer",
    "CSiLIFLayer",
    "EulerAdLIFLayer",
    "GLIFLayer",
    "SpikingClassifier",
]
