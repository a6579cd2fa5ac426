"""Fitted neurons as source code for other simulators."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from blockspike.files import write_text
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.parameters import MIN_TAU_MS, MIN_WIDTH

Simulator = Literal["brian2", "nest"]
_TEMPLATES = {"brian2": "brian2.py.j2", "nest": "nest.nestml.j2"}


def export_neuron(neuron: FittedNeuron, path: str | Path, simulator: Simulator = "brian2") -> None:
    """Write a fitted neuron as source code for another simulator (docs/howto/export.md).

    Without noise, its spikes there are those of `FittedNeuron.simulate`, step for step.

    Args:
        neuron: with any of its parts.
        path: the file to write: a Python module for Brian 2, NESTML (`.nestml`) for NEST.
        simulator: "brian2" or "nest".

    Raises:
        ValueError: another simulator, or a parameter that is not finite.

    Examples:
        >>> import blockspike as bs
        >>> neuron = bs.FittedNeuron("cell", 10.0, 100.0, 0.2, 0.01, 0.0, arp_ms=2.0, dt_ms=0.5)
        >>> bs.export_neuron(neuron, "cell.py")  # python cell.py
        >>> bs.export_neuron(neuron, "cell.nestml", simulator="nest")
    """
    if simulator not in _TEMPLATES:
        raise ValueError(f"simulator: expected 'brian2' or 'nest', got {simulator!r}")
    neuron.check_finite()
    environment = Environment(
        loader=PackageLoader("blockspike", "fitting"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    template = environment.get_template(_TEMPLATES[simulator])
    write_text(Path(path), template.render(_values(neuron)))


def _values(neuron: FittedNeuron) -> dict[str, Any]:
    """Values for the templates, within the limits of `simulate`."""
    values = asdict(neuron)
    for key in values:
        if key.startswith("tau_"):
            values[key] = max(values[key], MIN_TAU_MS)

    def kernels(*names: tuple[str, str]) -> list[tuple[int, float, float]]:
        """Number, amplitude and time constant of those whose amplitude is not 0."""
        numbered = [(k, values[name], values[tau]) for k, (name, tau) in enumerate(names, 1)]
        return [kernel for kernel in numbered if kernel[1]]

    refractory_steps = round(neuron.arp_ms / neuron.dt_ms)
    return values | {
        "name": repr(neuron.name),
        "model": "fitted_" + re.sub(r"\W", "_", neuron.name, flags=re.ASCII),
        "refractory_ms": round(refractory_steps * neuron.dt_ms, 9),
        "coupling_width": max(neuron.coupling_width, MIN_WIDTH),
        "threshold_kernels": kernels(("b", "tau_adaptation_ms"), ("b_2", "tau_adaptation_2_ms")),
        "after_spike_currents": kernels(
            ("current_1_pa", "tau_current_1_ms"), ("current_2_pa", "tau_current_2_ms")
        ),
    }
