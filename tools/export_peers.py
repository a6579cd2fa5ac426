"""Run exported neurons in Brian 2 and NEST, and compare their spikes with ours.

    python tools/export_peers.py make FOLDER [--neurons 20] [--steps 20000]
    python tools/export_peers.py brian2 FOLDER
    python tools/export_peers.py nest FOLDER

`make` needs blockspike. `brian2` and `nest` need only the simulator, which may be in an environment
of its own; NEST also needs NESTML and a C++ compiler. The exit code is 1 if a spike differs.
"""

import argparse
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("lif", "alif", "glif", "gif", "every part", "escape noise")
STEPS_MS = (0.05, 0.1, 0.25, 0.5, 1.0)
_SHIFT = 3  # steps by which NEST's spikes come later: two of delays, and the step's end is its time


def random_parameters(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of a `FittedNeuron` that has the parts of its kind."""
    u = rng.uniform
    own = {
        "tau_membrane_ms": u(5, 40), "tau_adaptation_ms": u(20, 300), "b": 0.0,
        "gain_per_pa": u(0.005, 0.03), "rest": u(-0.5, 0.8), "arp_ms": u(0, 4),
        "dt_ms": float(rng.choice(STEPS_MS)), "noise": u(0, 0.2),
    }  # fmt: skip
    if kind != "lif":
        own["b"] = u(0, 0.6)
    if kind == "escape noise":
        own |= {"noise": 0.0, "escape_width": u(0.05, 0.3)}
    if kind in ("glif", "gif", "every part"):
        own |= {"current_1_pa": u(-20, 60), "tau_current_1_ms": u(1, 50)}
        own |= {"current_2_pa": u(-10, 20), "tau_current_2_ms": u(50, 400)}
    if kind in ("gif", "every part"):
        own |= {"b_2": u(-0.05, 0.3), "tau_adaptation_2_ms": u(1, 30)}
    if kind in ("glif", "every part"):
        own["reset_share"] = u(0, 0.95)
    if kind == "every part":
        own |= {"coupling": u(0.05, 0.6), "tau_coupling_ms": u(1, 40)}
        own |= {"coupling_onset": u(0.2, 0.8), "coupling_width": u(0.05, 0.5)}
    return own


def random_current(own: dict[str, Any], n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Noise that is filtered at 3 ms, around a mean near the rheobase, [n_steps] in pA."""
    decay = math.exp(-own["dt_ms"] / 3)
    current, value = np.empty(n_steps), 0.0
    for t, draw in enumerate(rng.normal(size=n_steps) * math.sqrt(1 - decay * decay)):
        current[t] = value = decay * value + draw
    mean = (1.1 - own["rest"]) * rng.uniform(0.8, 2)
    return (mean + current * rng.uniform(0.5, 3)) / own["gain_per_pa"]


def write_case(folder: Path, number: int, parameters: dict[str, Any], current_pa: Any) -> None:
    """Export a neuron, and write the current and our spikes to an `.npz`."""
    import blockspike as bs

    neuron = bs.FittedNeuron(f"case {number}", **parameters)
    path = folder / f"case_{number:03}"
    bs.export_neuron(neuron, path.with_suffix(".py"))
    bs.export_neuron(neuron, path.with_suffix(".nestml"), simulator="nest")
    spikes = neuron.simulate(current_pa)
    np.savez(path.with_suffix(".npz"), current_pa=current_pa, spikes=spikes, dt_ms=neuron.dt_ms)


def make(folder: Path, n_neurons: int, n_steps: int) -> None:
    """Write cases of random neurons of every kind."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_neurons):
        own = random_parameters(KINDS[i % len(KINDS)], rng)
        write_case(folder, i, own, random_current(own, n_steps, rng))


def in_brian2(path: Path, current_pa: np.ndarray, dt_ms: float) -> np.ndarray:
    """Spikes [T] of a neuron in Brian 2, whose time step is that of the file."""
    return runpy.run_path(str(path.with_suffix(".py")))["simulate"](current_pa)


def in_nest(path: Path, current_pa: np.ndarray, dt_ms: float) -> np.ndarray:
    """Spikes [T] of a neuron in NEST, from the installed module "exportedmodule"."""
    import nest  # pyright: ignore[reportMissingImports]

    nest.ResetKernel()
    nest.resolution = dt_ms
    nest.Install("exportedmodule")
    n_steps = len(current_pa)
    times = np.round(dt_ms * np.arange(1, n_steps + 1), 3)
    given = {"amplitude_times": times, "amplitude_values": current_pa}
    generator = nest.Create("step_current_generator", params=given)
    neuron = nest.Create(f"fitted_case_{int(path.stem[-3:])}")
    neuron.set({"noise" if "noise" in neuron.get() else "is_noisy": 0.0})
    recorder = nest.Create("spike_recorder")
    nest.Connect(generator, neuron, syn_spec={"delay": dt_ms})
    nest.Connect(neuron, recorder, syn_spec={"delay": dt_ms})
    nest.Simulate((n_steps + _SHIFT) * dt_ms)
    steps = np.rint(np.asarray(recorder.events["times"]) / dt_ms).astype(int) - _SHIFT
    return np.bincount(steps[steps < n_steps], minlength=n_steps)


def install_in_nest(folder: Path, nest_path: str | None) -> None:
    """Compile every `.nestml` of the folder into the module "exportedmodule"."""
    from pynestml.frontend.pynestml_frontend import (  # pyright: ignore[reportMissingImports]
        generate_nest_target,
    )

    generate_nest_target(
        input_path=[str(path) for path in sorted(folder.glob("*.nestml"))],
        target_path=str(folder / "build"),
        install_path=str(folder / "installed"),
        module_name="exportedmodule",
        logging_level="ERROR",
        codegen_opts={"nest_path": nest_path} if nest_path else {},
    )


def compare(folder: Path, run: Callable[[Path, np.ndarray, float], np.ndarray]) -> int:
    """Print how many spikes differ; return the number of neurons of which some do."""
    n_neurons = n_steps = n_spikes = n_wrong = 0
    for path in sorted(folder.glob("*.npz")):
        content = np.load(path)
        ours, theirs = content["spikes"], run(path, content["current_pa"], float(content["dt_ms"]))
        n_neurons, n_steps = n_neurons + 1, n_steps + len(ours)
        n_spikes += int(ours.sum())
        if differ := int((ours != theirs).sum()):
            n_wrong += 1
            print(f"{path.stem}: {differ} steps differ, {ours.sum()} and {theirs.sum()} spikes")
    print(f"{n_neurons} neurons, {n_steps} steps, {n_spikes} spikes; {n_wrong} neurons differ")
    return n_wrong


def main() -> int:
    """Run the chosen part; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("make", "brian2", "nest"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--neurons", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--target", default="numpy", help="Brian's codegen.target")
    parser.add_argument("--nest-path", help="where NEST is installed; default: found by NESTML")
    options = parser.parse_args()
    if options.part == "make":
        make(options.folder, options.neurons, options.steps)
        return 0
    if options.part == "nest":
        install_in_nest(options.folder, options.nest_path)
        return int(compare(options.folder, in_nest) > 0)
    import brian2  # pyright: ignore[reportMissingImports]

    brian2.prefs.codegen.target = options.target
    return int(compare(options.folder, in_brian2) > 0)


if __name__ == "__main__":
    sys.exit(main())
