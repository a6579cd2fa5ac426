"""Export networks to NIR, the Neuromorphic Intermediate Representation, and import them.

docs/howto/nir.md says what NIR can represent, what is lost, and how its equations map to ours. The
format is that of Pedersen et al., Nature Communications 15, 8122 (2024). Graph metadata is ignored.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from os import PathLike
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.parametrize import type_before_parametrizations

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layer import check_choice
from blockspike.networks.layers import ALIFLayer
from blockspike.networks.readout import LeakyReadout

if TYPE_CHECKING:
    import nir

DROPPABLE = (
    "adaptation",
    "refractory period",
    "recurrent delay",
    "synaptic delays",
    "input scaling",
)
"""Properties of a network that `allow_dropping` may name."""
BETA_BOUNDS = (0.001, 0.999)
"""Range of β that `from_nir` reads: the default of our layers."""
NEVER = float(np.finfo(np.float32).max)
"""Threshold of a LIF that cannot spike; finite, so that 0 spikes × threshold is 0."""

Decay = Literal["exact", "euler"]
Gain = Literal["weights", "leak", "r", "none"]
Readout = Literal["li", "lif", "none"]


@dataclass(frozen=True)
class Dialect:
    """Rule by which a simulator steps NIR's LIF and LI: V[t] = β V[t−1] + g I[t].

    `to_nir` chooses τ, r and a factor for the weights so that a step of the simulator equals a step
    of the network; `from_nir` does the reverse.

    Attributes:
        decay: β is exp(−dt/τ) ("exact") or 1 − dt/τ ("euler").
        gain: what g is, and what compensates for it. "weights": g is r (1 − β); divide the weights
            by 1 − β and set r = 1. "leak": the same, for a simulator that ignores r (g is 1 − β).
            "r": g is r (1 − β); set r = 1 / (1 − β). "none": g is 1; set r = 1.
        step_ms: dt in ms if the simulator has only one; None = the network's.
        nested: whether to write a recurrent layer as a graph inside the graph.
        readout: how to write the readout: as a leaky integrator ("li"), as a LIF with threshold
            `NEVER` ("lif"), or not at all ("none"), so that the graph ends with the last hidden
            layer.

    Raises:
        ValueError: a value outside its range, naming the attribute.
    """

    decay: Decay = "exact"
    gain: Gain = "weights"
    step_ms: float | None = None
    nested: bool = False
    readout: Readout = "li"

    def __post_init__(self):
        for name, kind in (("decay", Decay), ("gain", Gain), ("readout", Readout)):
            check_choice(name, getattr(self, name), get_args(kind))


DIALECTS = {
    "nir": Dialect(),
    "norse": Dialect("euler", "leak", readout="lif"),
    "sinabs": Dialect(gain="none", step_ms=1000.0),  # τ counts steps
    "snntorch": Dialect("euler", "r", step_ms=0.1, nested=True, readout="lif"),
    "spyx": Dialect("euler", "none", readout="lif"),
}
"""Dialects by name: NIR's own equations, and the simulators that docs/howto/nir.md compares."""


def to_nir(
    network: SpikingClassifier,
    dt_ms: float,
    allow_dropping: Collection[str] = (),
    *,
    dialect: str | Dialect = "nir",
    readout: Readout | None = None,
) -> "nir.NIRGraph":
    """Convert a network to a NIR graph, which copies its numbers; `write` saves the graph.

    Nodes are named layer_0_affine, layer_0_lif, layer_0_recurrent, layer_1_affine, …,
    readout_affine, readout_membrane. Arrays have the dtype of the network. τ is in seconds; a
    dialect may count one second per step. In continuous time, the recurrent edges of a graph have
    no delay; in steps, their delay is one, like our `recurrent_delay = 1`. The graph ends with the
    readout's membrane and leaves out the scores, dropout and surrogate.

    Args:
        network: a network of `ALIFLayer`s and a `LeakyReadout`.
        dt_ms: length in ms of the step that the network was made for.
        allow_dropping: properties in `DROPPABLE` to leave out, since NIR cannot represent them.
        dialect: simulator that the graph is for, a name in `DIALECTS` or a `Dialect`.
        readout: replaces the dialect's `readout`, see `Dialect`.

    Returns:
        The graph.

    Raises:
        ValueError: a bad argument, or a layer with a property that is lost and not in
            `allow_dropping`.
        ModuleNotFoundError: nir is not installed.

    Examples:
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(20, 3, n_layers=1, dt_ms=1.0, tau_adaptation_ms=None)
        >>> graph = bs.to_nir(network, dt_ms=1.0)
        >>> sorted(graph.nodes)[:3]
        ['input', 'layer_0_affine', 'layer_0_lif']
    """
    nir, form = _nir(), _with_step(dialect, dt_ms)
    form = replace(form, readout=readout or form.readout)
    width = len(str(len(network.layers) - 1))  # files sort names; snnTorch needs the chain's order
    layers = {f"layer_{i:0{width}}": layer for i, layer in enumerate(network.layers)}
    if form.readout != "none":
        layers["readout"] = network.readout
    nodes, edges, last = {}, [], "input"
    for name, layer in layers.items():
        lost = _lost(name, layer) + ["input scaling"] * (network.input_events is not None)
        if lost := [x for x in lost if x not in allow_dropping]:
            raise ValueError(
                f"{name}: expected what NIR can represent, got {', '.join(lost)}; "
                f"`allow_dropping` may name {', '.join(DROPPABLE)}"
            )
        made = {f"{name}_{key}": node for key, node in _nodes(name, layer, form).items()}
        synapses, neurons, *loops = made
        edges += [(last, synapses), (synapses, neurons)]
        edges += [edge for loop in loops for edge in ((neurons, loop), (loop, neurons))]
        nodes.setdefault("input", nir.Input(made[synapses].input_type))
        nodes |= made | {"output": nir.Output(made[synapses].output_type)}
        last = neurons
    edges.append((last, "output"))
    return nir.NIRGraph(nodes, edges, metadata={"dt_ms": float(dt_ms)})


def write(path: str | PathLike[str], graph: "nir.NIRGraph") -> None:
    """Write a graph to a file that `nir.read` of any version can read.

    `nir.write` writes v_reset = 0 to the file. That is the default from nir 1.0.6 on; earlier
    versions, which sinabs requires, refuse it as unknown. So this function leaves it out.

    Raises:
        ModuleNotFoundError: nir is not installed.
    """
    content = graph.to_dict()
    for node in content["nodes"].values():
        for inner in (node, *node.get("nodes", {}).values()):
            if not np.any(inner.get("v_reset", 0)):
                inner.pop("v_reset", None)
    _nir().write(path, SimpleNamespace(to_dict=lambda: content))


def from_nir(
    graph: "nir.NIRGraph", dt_ms: float, *, dialect: str | Dialect = "nir"
) -> SpikingClassifier:
    """Convert a NIR graph, such as `nir.read(path)`, to a network that copies its numbers.

    The graph must be one chain Input → (Affine or Linear → LIF) once or more → Affine or Linear →
    LI → Output, with any sizes and names; parts of it may be subgraphs. An Affine or Linear may
    lead from a LIF back to it; in steps of time, such an edge has a delay of one. The chain may
    also end in a LIF: if it is not recurrent and none of its thresholds is below `NEVER`, it is the
    readout; otherwise it is a hidden layer, and the readout's membrane copies its spikes. Time
    constants are in seconds. The network is in float64 if all weights are, else in float32; its
    scores are sums over time.

    Args:
        graph: a `nir.NIRGraph`.
        dt_ms: length of a step in ms, over which the input is constant. Ignored by a dialect with
            its own step: then one step of ours is one step of the simulator.
        dialect: simulator whose rule the graph follows, a name in `DIALECTS` or a `Dialect`.

    Returns:
        The network.

    Raises:
        ValueError: a bad argument, a graph that is no such chain, or a node with
            v_leak or v_reset other than 0, v_threshold ≤ 0, or a tau that puts β outside
            `BETA_BOUNDS`. The message names the node, or shows the nodes in order.

    Examples:
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(20, 3, dt_ms=1.0, tau_adaptation_ms=None, arp_ms=0.0)
        >>> graph = bs.to_nir(network, dt_ms=1.0)  # or nir.read(path)
        >>> type(bs.from_nir(graph, dt_ms=1.0)).__name__
        'SpikingClassifier'
    """
    form = _with_step(dialect, dt_ms)
    path = _path(graph)
    kinds = " ".join(type(node).__name__ for _, node, _ in path)
    if not re.fullmatch("(Affine|Linear) LIF( (Affine|Linear) LIF)*( (Affine|Linear) LI)?", kinds):
        raise ValueError(
            "graph: expected (Affine or Linear, LIF) once or more, then Affine or Linear, LI, "
            f"between Input and Output, got {kinds}"
        )
    _, last, loop = path[-1]
    never_spikes = np.min(getattr(last, "v_threshold", NEVER)) >= NEVER
    has_readout = bool(len(path) > 2 and not loop and never_spikes)
    states = [
        _state(synapses, *neurons, form, is_readout=has_readout and neurons is path[-1])
        for (_, synapses, _), neurons in zip(path[::2], path[1::2], strict=True)
    ]
    if not has_readout:  # add one whose membrane copies the spikes
        one = torch.eye(len(states[-1]["bias"]))
        states.append({"weight": one, "bias": 0 * one[0], "beta": 0 * one[0]})

    def made(kind: Any, state: dict[str, Tensor], **options: Any) -> Any:
        n_units, n_inputs = state["weight"].shape[-2:]
        layer = kind(n_inputs, n_units, dt_ms=dt_ms, tau_membrane_ms=dt_ms, **options).double()
        layer.load_state_dict(state)
        return layer

    plain: dict[str, Any] = {"tau_adaptation_ms": None, "recurrent_delay": 1}
    network = SpikingClassifier(1, 1, 1, 1, dt_ms=dt_ms, tau_membrane_ms=dt_ms, **plain)
    network.layers = torch.nn.ModuleList(
        made(ALIFLayer, state, recurrent="recurrent_weight" in state, **plain)
        for state in states[:-1]
    )
    bounds = BETA_BOUNDS if has_readout else (0.0, 1.0)
    readout = made(LeakyReadout, states[-1], beta_bounds=bounds)
    network.readout = readout.requires_grad_(has_readout)  # training leaves the copy unchanged
    weights = (x.weight for _, *nodes in path for x in nodes if hasattr(x, "weight"))
    is_double = {np.asarray(weight).dtype.str[1:] for weight in weights} == {"f8"}
    return network.to(torch.float64 if is_double else torch.float32)


def _nir() -> Any:
    try:
        return import_module("nir")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "nir: expected the package nir, got none; pip install 'blockspike[nir]'"
        ) from None


def _with_step(dialect: str | Dialect, dt_ms: float) -> Any:
    """The dialect with `step_ms` set."""
    if isinstance(dialect, str):
        check_choice("dialect", dialect, tuple(DIALECTS))
        dialect = DIALECTS[dialect]
    return replace(dialect, step_ms=dialect.step_ms or dt_ms)


def _lost(name: str, layer: Any) -> list[str]:
    """List what NIR cannot represent of a layer; subclasses may behave differently."""
    expected = LeakyReadout if name == "readout" else ALIFLayer
    if (found := type_before_parametrizations(layer)) is not expected:
        return [f"class {found.__name__}"]
    lost = {"beta outside 0 < beta < 1": not ((layer.beta > 0) & (layer.beta < 1)).all()}
    if expected is ALIFLayer:
        delay = layer.options.recurrent_delay or layer.arp + 1
        lost |= {
            "adaptation": layer.b is not None and (layer.b != 0).any(),
            "refractory period": layer.arp > 0,
            "recurrent delay": layer.recurrent_weight is not None and delay != 1,
            "synaptic delays": layer.delays is not None or layer.recurrent_delays is not None,
        }
    return [what for what, is_lost in lost.items() if is_lost]


def _nodes(name: str, layer: Any, form: Any) -> dict[str, Any]:
    """Nodes of a layer: synapses, neurons, and recurrent synapses unless they are in a subgraph."""
    nir, is_readout = _nir(), name == "readout"
    beta = layer.beta.detach().cpu().numpy()
    wide = beta.astype(np.float64)
    steps = 1 / (1 - wide) if form.decay == "euler" else -1 / np.log(wide)
    tau_s = (1e-3 * form.step_ms * steps).astype(beta.dtype)
    inverse = 1 / _leak(_double(tau_s), form).numpy()
    scale = inverse if form.gain in ("weights", "leak") else 1.0
    r = (inverse if form.gain == "r" else np.ones_like(inverse)).astype(beta.dtype)

    weight, bias, recurrent = layer.weight, layer.bias, getattr(layer, "recurrent_weight", None)
    if norm := getattr(layer, "norm", None):
        weight, bias = norm.folded(weight, bias)
    arrays = [
        (x.detach().cpu().numpy().T * scale).T.astype(beta.dtype)
        for x in (weight, bias, recurrent)
        if x is not None
    ]

    numbers = {"tau": tau_s, "r": r, "v_leak": 0 * r}
    neurons = nir.LI(**numbers)
    if not is_readout or form.readout == "lif":
        numbers["v_threshold"] = np.full_like(r, NEVER if is_readout else 1)
        neurons = nir.LIF.from_dict({"type": "LIF", **numbers})  # v_reset = 0 if nir knows it
    nodes = {"affine": nir.Affine(*arrays[:2]), "membrane" if is_readout else "lif": neurons}
    for loop in arrays[2:]:
        synapses = nir.Affine(loop, 0 * r)  # sinabs silently drops a Linear
        if form.nested:
            nodes["lif"] = graph = nir.NIRGraph.from_list(neurons)
            graph.nodes["w_rec"] = synapses
            graph.edges[1:1] = [("lif", "w_rec"), ("w_rec", "lif")]
        else:
            nodes["recurrent"] = synapses
    return nodes


def _leak(tau_s: Tensor, form: Any) -> Tensor:
    """1 − β by the dialect's rule."""
    steps = 1e-3 * form.step_ms / tau_s
    return steps if form.decay == "euler" else -torch.expm1(-steps)


def _path(graph: Any) -> list[tuple[str, Any, Any]]:
    """Name, node and recurrent synapses (or None) of all nodes from Input to Output, in order."""
    kind = {name: type(node).__name__ for name, node in graph.nodes.items()}
    edges = {(a, b) for a, b in graph.edges}
    loops = {
        a: b
        for a, b in sorted(edges)
        if (b, a) in edges and kind[a] == "LIF" and kind[b] in ("Affine", "Linear")
    }
    edges -= {*loops.items(), *((b, a) for a, b in loops.items())}
    names, following = [*graph.inputs], dict(sorted(edges))
    for name in names:  # grows
        if name in following:
            names.append(following.pop(name))
    other = sorted(edges - {*pairwise(names)})
    if other or names[-1:] != [*graph.outputs]:
        raise ValueError(f"graph: expected one chain of nodes, got {names} and besides {other}")
    path = []
    for name in names[1:-1]:
        node = graph.nodes[name]
        if kind[name] == "NIRGraph":
            path += [(f"{name}.{inner}", *others) for inner, *others in _path(node)]
        else:
            path.append((name, node, graph.nodes.get(loops.get(name))))
    return path


def _state(
    synapses: Any, name: str, node: Any, loop: Any, form: Any, is_readout: bool
) -> dict[str, Tensor]:
    """Parameters of a layer in float64, from synapses, neurons and recurrent synapses or None."""
    threshold = np.ones_like(node.r) if is_readout else node.v_threshold
    arrays = [np.asarray(x) for x in (node.tau, node.r, threshold)]
    tau_s, r, threshold = map(_double, arrays)
    v_leak, v_reset = _double(node.v_leak), _double(getattr(node, "v_reset", 0))
    leak = _leak(tau_s, form)
    beta = 1 - leak if form.decay == "euler" else torch.exp(-1e-3 * form.step_ms / tau_s)
    least, most = BETA_BOUNDS
    tau_range = f"tau in s with β from {least} to {most} for steps of {form.step_ms:g} ms"
    for expected, values, holds in (
        ("v_leak = 0", v_leak, v_leak == 0),
        ("v_reset = 0", v_reset, v_reset == 0),
        ("v_threshold > 0", threshold, threshold > 0),
        (tau_range, tau_s, (beta > least - 1e-6) & (beta < most + 1e-6)),  # τ is rounded
    ):
        if not holds.all():
            raise ValueError(f"node {name!r}: expected {expected}, got {values[~holds][0]:.6g}")
    # Factor from inputs to V in units of the threshold, without the rounding of a network of ours
    gain = {"none": 1.0, "leak": leak}.get(form.gain, r * leak) / threshold
    rounding = 4 * max(float(np.finfo(np.result_type(x, "f4")).eps) for x in arrays)
    gain = torch.where((gain - 1).abs() <= rounding, 1.0, gain)

    bias = _double(getattr(synapses, "bias", 0)) + _double(getattr(loop, "bias", 0))
    state = {"beta": beta, "bias": gain * bias}
    state["weight"] = gain[:, None] * _double(synapses.weight)
    if loop:
        state["recurrent_weight"] = gain[:, None] * _double(loop.weight)
    return state


def _double(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64))
