"""Run NIR graphs in another simulator: the part of nir_peers.py that runs in its environment.

    python nir_peer.py PEER FOLDER

FOLDER holds input.npy [T, B, n_inputs] and cases.json, {case: {"graph": file, "dt_s": seconds,
"options": [text, …]}}. It writes FOLDER/PEER.npz, with an array CASE/NODE [T, B, N] for each LIF
node (its spikes) and for the readout (its membrane), or CASE/error if the simulator raised one.
"""

# pyright: reportMissingImports=false
import contextlib
import io
import json
import sys
import warnings
from pathlib import Path

import nir
import numpy as np

READOUT = "readout_membrane"


def run_norse(graph, x, dt_s, options):
    """Run a graph in Norse; returns node → spikes or membrane, [T, B, N]."""
    import norse.torch
    import torch

    net = norse.torch.from_nir(graph, dt=dt_s)
    state, rows = None, []
    for row in torch.from_numpy(x):
        _, state = net(row, state)
        membrane = {READOUT: state.state[READOUT][0].v} if READOUT in state.state else {}
        rows.append(state.cache | membrane)
    return stacked(rows)


def run_sinabs(graph, x, dt_s, options):
    """Run a graph in sinabs, one call per step, so that recurrence has a delay of one step."""
    import sinabs.layers
    import torch
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import from_nir

    net = from_nir(graph, batch_size=x.shape[1], num_timesteps=1)
    for module in net.modules():
        if type(module) is sinabs.layers.LIFSqueeze and "hard reset" in options:
            module.spike_fn, module.reset_fn = SingleSpike, MembraneReset()
    state, rows = None, []
    for row in torch.from_numpy(x):
        _, state = net(row, state)
        rows.append(state.cache)
    return stacked(rows)


def run_snntorch(graph, x, dt_s, options):
    """Run a graph in snnTorch, whose recurrent layers are modules that contain the LIF."""
    import torch
    from snntorch.import_nir import import_from_nir

    net = import_from_nir(graph)
    neurons = {
        name.split(".")[0]: module
        for name, module in net.named_modules()
        if type(module).__name__ == "Leaky"
    }
    now = {}
    for name, module in neurons.items():
        module.register_forward_hook(lambda _, args, out, name=name: now.update({name: out}))
    state, rows = None, []
    for row in torch.from_numpy(x):
        _, state = net(row, state)
        membrane = {READOUT: neurons[READOUT].mem} if READOUT in neurons else {}
        rows.append(now | membrane)
    return stacked(rows)


def run_spyx(graph, x, dt_s, options):
    """Run a graph in Spyx; it returns membranes, and spikes follow from those a step earlier."""
    import jax.numpy as jnp
    from spyx.nir import from_nir

    model, (_, states) = from_nir(graph, jnp.asarray(x), dt_s, return_all_states=True)
    found = {}
    for layer, state in zip(model.layers, states, strict=True):
        if state is None:
            continue
        threshold, membrane = np.asarray(layer.threshold), np.asarray(state)
        if (threshold == np.finfo(np.float32).max).all():
            found[READOUT] = membrane
            continue
        before = np.concatenate([np.zeros_like(membrane[:1]), membrane[:-1]])
        found[f"layer_{len(found)}_lif"] = (before > threshold).astype(np.float32)
    return found


def stacked(rows):
    """Stack one dictionary per step into node → array [T, B, N]."""
    names = [name for name in rows[0] if name == READOUT or name.endswith("_lif")]
    return {name: np.stack([row[name].detach().numpy() for row in rows]) for name in names}


def main(peer, folder):
    """Run all cases of a folder in one simulator and save the results."""
    warnings.simplefilter("ignore")
    run = {"norse": run_norse, "sinabs": run_sinabs, "snntorch": run_snntorch, "spyx": run_spyx}
    x = np.load(folder / "input.npy")
    results = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                graph = nir.read(folder / case["graph"])
                found = run[peer](graph, x, case["dt_s"], case["options"])
        except Exception as error:  # the table reports any error
            found = {"error": np.array(f"{type(error).__name__}: {error}")}
        results |= {f"{name}/{node}": values for node, values in found.items()}
    np.savez(folder / f"{peer}.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
