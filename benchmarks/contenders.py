"""What is timed by the studies of layers: sizes, and ways to compute a layer of that size."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

SCAN = "JAX (lax.scan)"
PACKAGES = {
    "snnTorch": "snntorch",
    "Norse": "norse",
    "Norse (torch.compile)": "norse",
    "SpikingJelly (LIFNode)": "spikingjelly",
    "SpikingJelly (FlexSN)": "spikingjelly",
    "sinabs": "sinabs",
    SCAN: "jax",
    "Spyx": "spyx",
    "BrainPy": "brainpy",
}
"""Contender → the distribution that it needs, of the extra `peers`; ours are not listed."""


@dataclass(frozen=True)
class Size:
    """Size of a stack of layers; the fields are columns of the table."""

    n_steps: int
    batch_size: int
    n_inputs: int
    n_units: int
    n_layers: int = 1
    arp_steps: int = 0
    recurrent: bool = True
    inputs: Literal["poisson", "uniform"] = "poisson"


@dataclass(frozen=True)
class Contender:
    """One way to compute a stack of layers.

    Attributes:
        make: size → module from inputs [T, B, n_inputs] to spikes [T, B, n_units] of the last
            layer, in float32; each call starts at rest. All of ours have the same weights. It
            raises ImportError without the library, and whatever the library raises. In JAX it
            makes what `layers.make` returns.
        differs: how its neuron differs from an ALIF neuron, or its gradient from the standard one.
        neuron: class of the neurons; in brackets the one without recurrence, if different.
        takes_events: whether its input is an EventBatch.
        same: what must equal that of `standard`.
        arp_matters: whether its time depends on the refractory period.
        has_recurrent: whether it has recurrent layers.
        in_jax: whether it is one of `jax_peers.py`, which run on the CPU.
    """

    make: Callable[[Size], Any]
    differs: str = ""
    neuron: str = "ALIF"
    takes_events: bool = False
    same: Literal["", "spikes", "spikes and gradients"] = ""
    arp_matters: bool = False
    has_recurrent: bool = True
    in_jax: bool = False


def version_of(name: str) -> str | None:
    """Version of a contender's library; None for our own methods or if it is not installed."""
    try:
        return metadata.version(PACKAGES[name]) if name in PACKAGES else None
    except metadata.PackageNotFoundError:
        return None
