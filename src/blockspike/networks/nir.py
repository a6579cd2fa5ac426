"""Export networks to NIR, the Neuromorphic Intermediate Representation, and import them.

docs/howto/nir.md says what NIR can represent, what is lost, and how its equations map to ours. The
format is that of Pedersen et al., Nature Communications 15, 8122 (2024). Graph metadata is ignored.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import import_module
from os import PathLike
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.parametrize import type_before_parametrizations

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import ALIFLayer, LeakyReadout, check_choice

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
"""Range of β in the layers that `from_nir` makes."""
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
        if self.step_ms is not None and not 0 < self.step_ms < math.inf:
            raise ValueError(f"step_ms: expected a finite value > 0, got {self.step_ms}")


DIALECTS = {
    "nir": Dialect(),
    "norse": Dialect("euler", "leak", readout="lif"),
    "sinabs": Dialect(gain="none", step_ms=1000.0),  # τ counts steps
    "snntorch": Dialect("euler", "r", step_ms=0.1, nested=True, readout="lif"),
    "spyx": Dialect("euler", "none", readout="lif"),
}
"""Dialects by name: NIR's own equations, and the simulators that docs/howto/nir.md compares."""
_NEXT = {
    "Input": ("Affine", "Linear"),
    "Affine": ("LIF", "LI"),
    "Linear": ("LIF", "LI"),
    "LIF": ("Affine", "Linear", "Output"),
    "LI": ("Output",),
    "Output": (),
}
"""Classes of node that may follow each class in a chain."""


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
        ValueError: a bad argument, or a property would be lost without being named.
        ModuleNotFoundError: nir is not installed.

    Examples:
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(20, 3, n_layers=1, dt_ms=1.0, tau_adaptation_ms=None)
        >>> graph = bs.to_nir(network, dt_ms=1.0)
        >>> sorted(graph.nodes)[:3]
        ['input', 'layer_0_affine', 'layer_0_lif']
    """
    nir = _nir()
    _check_dt(dt_ms)
    form = _dialect(dialect, dt_ms)
    if readout is not None:
        form = replace(form, readout=readout)
    _check_network(network, allow_dropping, form)
    layers: list[tuple[str, Any]] = [*_named_layers(network), ("readout", network.readout)]
    if form.readout == "none":
        del layers[-1]
    n_inputs = layers[0][1].weight.shape[2]
    nodes, edges = {"input": nir.Input({"input": np.array([n_inputs])})}, []
    last = "input"
    for i, (name, layer) in enumerate(layers):
        synapses, neurons, loop = _names(i, len(network.layers))
        nodes[synapses], nodes[neurons], recurrent = _nodes(nir, name, layer, form)
        edges += [(last, synapses), (synapses, neurons)]
        if recurrent is not None and form.nested:
            nodes[neurons] = _recurrent_graph(nir, nodes[neurons], recurrent)
        elif recurrent is not None:
            nodes[loop] = recurrent
            edges += [(neurons, loop), (loop, neurons)]
        last = neurons
    nodes["output"] = nir.Output({"output": np.array([len(layers[-1][1].bias)])})
    return nir.NIRGraph(nodes, [*edges, (last, "output")], metadata={"dt_ms": float(dt_ms)})


def write(path: str | PathLike[str], graph: "nir.NIRGraph") -> None:
    """Write a graph to a file that `nir.read` of any version can read.

    `nir.write` writes v_reset = 0 to the file. That is the default from nir 1.0.6 on; earlier
    versions, which sinabs requires, refuse it as unknown. So this function leaves it out.

    Raises:
        ModuleNotFoundError: nir is not installed.
    """
    content = graph.to_dict()
    _remove_zero_resets(content)
    _nir().write(path, SimpleNamespace(to_dict=lambda: content))


def from_nir(
    graph: "nir.NIRGraph", dt_ms: float, *, dialect: str | Dialect = "nir"
) -> SpikingClassifier:
    """Convert a NIR graph, such as `nir.read(path)`, to a network that copies its numbers.

    The graph must be one chain Input → (Affine or Linear → LIF) once or more → Affine or Linear →
    LI → Output, with any sizes and names. An Affine or Linear may lead from a LIF back to it, also
    inside a subgraph; in steps of time, such an edge has a delay of one. The chain may also end in
    a LIF: if none of its thresholds is below `NEVER`, it is the readout; otherwise it is a hidden
    layer, and the readout's membrane copies its spikes. Time constants are in seconds. The network
    is in float64 if all weights are, else in float32; its scores are sums over time.

    Args:
        graph: a `nir.NIRGraph`; each node is checked before the network is made.
        dt_ms: length of a step in ms, over which the input is constant. Ignored by a dialect with
            its own step: then one step of ours is one step of the simulator.
        dialect: simulator whose rule the graph follows, a name in `DIALECTS` or a `Dialect`.

    Returns:
        The network.

    Raises:
        ValueError: a bad argument or another kind of graph. The message names the node and what was
            expected there: shapes, finite numbers, v_leak = v_reset = 0, v_threshold > 0, or a tau
            that puts β within `BETA_BOUNDS`.
        ModuleNotFoundError: nir is not installed.

    Examples:
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(20, 3, dt_ms=1.0, tau_adaptation_ms=None, arp_ms=0.0)
        >>> graph = bs.to_nir(network, dt_ms=1.0)  # or nir.read(path)
        >>> type(bs.from_nir(graph, dt_ms=1.0)).__name__
        'SpikingClassifier'
    """
    nir = _nir()
    _check_dt(dt_ms)
    form = _dialect(dialect, dt_ms)
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"graph: expected a nir.NIRGraph, got {type(graph).__name__}")
    nodes, edges = _unnested(graph)
    chain, loops = _chain(nodes, edges)
    first, *inner, last = chain
    weights = [np.asarray(nodes[name].weight) for name in (*inner[::2], *loops.values())]
    is_double = all(_is_dtype(weight, np.float64) for weight in weights)
    dtype = torch.float64 if is_double else torch.float32

    sizes = [_size(first, nodes[first].input_type["input"])]
    layers = []
    for synapses, neurons in zip(inner[::2], inner[1::2], strict=True):
        is_readout = neurons == inner[-1] and _never_spikes(nodes[neurons])
        if is_readout and (loop := loops.get(neurons)):
            raise ValueError(f"node {loop!r}: expected a LIF that can spike, got {neurons!r}")
        names = (synapses, neurons, loops.get(neurons))
        state = _state(nodes, names, sizes[-1], form, is_readout)
        layers.append(_layer(neurons, state, dtype, is_readout))
        sizes.append(len(state["bias"]))
    if (found := _size(last, nodes[last].output_type["output"])) != sizes[-1]:
        raise ValueError(f"node {last!r}: expected a shape [{sizes[-1]}], got [{found}]")
    if not isinstance(layers[-1], LeakyReadout):
        layers.append(_copy_of_spikes(sizes[-1], dtype))
    return _network(layers, dt_ms)


def _nir() -> Any:
    try:
        return import_module("nir")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "nir: expected the package nir, got none; pip install 'blockspike[nir]'"
        ) from None


def _check_dt(dt_ms: float) -> None:
    if not 0 < dt_ms < math.inf:
        raise ValueError(f"dt_ms: expected a finite value > 0, got {dt_ms}")


def _dialect(dialect: str | Dialect, dt_ms: float) -> Dialect:
    """Resolve a dialect, with `step_ms` set."""
    form = DIALECTS.get(dialect) if isinstance(dialect, str) else dialect
    if not isinstance(form, Dialect):
        known = ", ".join(DIALECTS)
        raise ValueError(f"dialect: expected one of {known}, or a Dialect, got {dialect!r}")
    return form if form.step_ms is not None else replace(form, step_ms=dt_ms)


def _check_network(
    network: SpikingClassifier, allow_dropping: Collection[str], form: Dialect
) -> None:
    known = ", ".join(DROPPABLE)
    if not set(allow_dropping) <= set(DROPPABLE):
        raise ValueError(f"allow_dropping: expected names out of {known}, got {allow_dropping!r}")
    if not isinstance(network, SpikingClassifier):
        raise ValueError(f"network: expected a SpikingClassifier, got {type(network).__name__}")
    problems = []
    if network.input_events is not None and "input scaling" not in allow_dropping:
        problems.append("network: expected what NIR supports, got input scaling")
    for name, layer in _named_layers(network):
        if (kind := type_before_parametrizations(layer)) is not ALIFLayer:
            problems.append(f"{name}: expected an ALIFLayer, got {kind.__name__}")
        elif lost := [x for x in _lost(layer) if x not in allow_dropping]:
            problems.append(f"{name}: expected what NIR supports, got {', '.join(lost)}")
    kind = type_before_parametrizations(network.readout)
    if form.readout != "none" and kind is not LeakyReadout:
        problems.append(f"readout: expected a LeakyReadout, got {kind.__name__}")
    if problems:
        may_drop = any("NIR supports" in x for x in problems)
        hint = f" (`allow_dropping` may name {known})" if may_drop else ""
        raise ValueError("; ".join(problems) + hint)


def _named_layers(network: SpikingClassifier) -> list[tuple[str, Any]]:
    return [(f"layers.{i}", layer) for i, layer in enumerate(network.layers)]


def _names(i: int, n_layers: int) -> tuple[str, str, str]:
    """Names of the synapses, neurons and recurrent synapses of layer `i`; the readout is last.

    A file lists nodes alphabetically, and snnTorch needs them in the order of the chain.
    """
    if i == n_layers:
        return "readout_affine", "readout_membrane", ""
    label = f"layer_{i:0{len(str(n_layers - 1))}}"
    return f"{label}_affine", f"{label}_lif", f"{label}_recurrent"


def _lost(layer: ALIFLayer) -> list[str]:
    """Properties of a layer that NIR cannot represent."""
    delay = layer.options.recurrent_delay or layer.arp + 1
    lost = {
        "adaptation": layer.b is not None and bool((layer.b != 0).any()),
        "refractory period": layer.arp > 0,
        "recurrent delay": layer.recurrent_weight is not None and delay != 1,
        "synaptic delays": layer.delays is not None or layer.recurrent_delays is not None,
        "temporal receptive field": len(layer.weight) > 1,
    }
    return [name for name, is_lost in lost.items() if is_lost]


def _nodes(nir: Any, name: str, layer: Any, form: Dialect) -> tuple[Any, Any, Any]:
    """Nodes of a layer: synapses, neurons, and recurrent synapses or None."""
    tau_s, r, gain = _neuron_numbers(name, layer.beta, form)
    norm: Any = getattr(layer, "norm", None)
    own = (layer.weight, layer.bias) if norm is None else norm.folded(layer.weight, layer.bias)
    weight = _array(name, "weight", own[0], gain[:, None])[0]
    bias = _array(name, "bias", own[1], gain)
    recurrent = None
    if name == "readout" and form.readout == "li":
        neurons = nir.LI(tau_s, r, v_leak=0 * r)
    else:
        threshold = np.full_like(r, NEVER if name == "readout" else 1)
        neurons = nir.LIF(tau_s, r, 0 * r, threshold, **_no_reset(nir, r))
    if getattr(layer, "recurrent_weight", None) is not None:
        loop = _array(name, "recurrent_weight", layer.recurrent_weight, gain[:, None])
        recurrent = nir.Affine(loop, 0 * r)  # sinabs silently drops a Linear
    return nir.Affine(weight, bias), neurons, recurrent


def _no_reset(nir: Any, like: np.ndarray) -> dict[str, np.ndarray]:
    """Argument v_reset = 0 of a LIF, for versions of nir that have it (1.0.6 and later)."""
    return {"v_reset": 0 * like} if "v_reset" in nir.LIF.__dataclass_fields__ else {}


def _recurrent_graph(nir: Any, neurons: Any, synapses: Any) -> Any:
    """A LIF and its recurrent synapses as one node."""
    shape = np.array(neurons.tau.shape)
    nodes = {
        "input": nir.Input({"input": shape}),
        "lif": neurons,
        "w_rec": synapses,
        "output": nir.Output({"output": shape}),
    }
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    return nir.NIRGraph(nodes, edges)


def _array(layer: str, name: str, parameter: Tensor, gain: np.ndarray | float = 1.0) -> np.ndarray:
    """Parameter × gain, copied in the same dtype so that later training leaves the graph alone."""
    array = parameter.detach().cpu().numpy()
    with np.errstate(over="ignore"):
        array = (array * np.asarray(gain, np.float64)).astype(array.dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"{layer}: expected finite numbers, got {name} with NaN or Inf")
    return array


def _neuron_numbers(
    layer: str, parameter: Tensor, form: Dialect
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """τ in seconds, r, and the factor for the weights that make the dialect's step equal ours."""
    beta = _array(layer, "beta", parameter)
    outside = (beta <= 0) | (beta >= 1)
    if outside.any():
        raise ValueError(f"{layer}: expected 0 < beta < 1, got {beta[outside][0]:.6g}")
    wide = beta.astype(np.float64)
    steps = 1 / (1 - wide) if form.decay == "euler" else -1 / np.log(wide)
    tau_s = (_step_s(form) * steps).astype(beta.dtype)
    missing = 1 / _leak(torch.from_numpy(tau_s).double(), form).numpy()
    one = np.ones_like(wide)
    r = missing if form.gain == "r" else one
    return tau_s, r.astype(beta.dtype), missing if form.gain in ("weights", "leak") else one


def _step_s(form: Dialect) -> float:
    return 1e-3 * cast(float, form.step_ms)  # `_dialect` has set it


def _leak(tau_s: Tensor, form: Dialect) -> Tensor:
    """1 − β by the dialect's rule."""
    steps = _step_s(form) / tau_s
    return steps if form.decay == "euler" else -torch.expm1(-steps)


def _remove_zero_resets(content: dict[str, Any]) -> None:
    """Remove v_reset = 0 from all nodes of a graph's dictionary, in place, including subgraphs."""
    for node in content["nodes"].values():
        if "nodes" in node:
            _remove_zero_resets(node)
        elif not np.any(node.get("v_reset", 0)):
            node.pop("v_reset", None)


def _unnested(graph: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges of a graph, with the subgraphs of recurrent layers expanded."""
    nodes, edges = dict(graph.nodes), [(a, b) for a, b in graph.edges]
    for name, node in graph.nodes.items():
        if type(node).__name__ != "NIRGraph" or not _is_recurrent_layer(node):
            continue
        kind = {x: type(inner).__name__ for x, inner in node.nodes.items()}
        (lif,) = (x for x in kind if kind[x] == "LIF")
        (loop,) = (x for x in kind if kind[x] in ("Affine", "Linear"))
        made = (node.nodes[lif], node.nodes[loop])
        lif, loop = f"{name}.{lif}", f"{name}.{loop}"
        if {lif, loop} & nodes.keys():
            raise ValueError(f"node {name!r}: expected no other node called {lif!r} or {loop!r}")
        del nodes[name]
        nodes |= dict(zip((lif, loop), made, strict=True))
        edges = [(lif if a == name else a, lif if b == name else b) for a, b in edges]
        edges += [(lif, loop), (loop, lif)]
    return nodes, edges


def _is_recurrent_layer(graph: Any) -> bool:
    """Whether the graph is Input → LIF → Output with a node from the LIF back to itself."""
    kind = {name: type(node).__name__ for name, node in graph.nodes.items()}
    found = sorted((kind.get(a, ""), kind.get(b, "")) for a, b in graph.edges)
    return len(kind) == 4 and any(
        found == sorted([("Input", "LIF"), ("LIF", x), (x, "LIF"), ("LIF", "Output")])
        for x in ("Affine", "Linear")
    )


def _chain(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
    """Names of the nodes from Input to Output, and the recurrent node of each LIF that has one."""
    kind = {name: type(node).__name__ for name, node in nodes.items()}
    after, before = _neighbours(kind, edges)
    inputs = [name for name in nodes if kind[name] == "Input"]
    if len(inputs) != 1:
        raise ValueError(f"graph: expected one Input, got {inputs}")
    chain, loops = inputs, {}
    while kind[chain[-1]] != "Output":
        name = chain[-1]
        back = [x for x in after[name] if kind[name] == "LIF" and x in before[name]]
        if back:
            loops[name] = _loop(name, back, kind, after, before)
        ahead = [x for x in after[name] if x not in back]
        expected = " or ".join(_NEXT[kind[name]])
        if len(ahead) != 1:
            raise ValueError(f"node {name!r}: expected one edge to {expected}, got {ahead}")
        (following,) = ahead
        if kind[following] not in _NEXT[kind[name]]:
            raise ValueError(
                f"node {following!r}: expected {expected} after {name!r}, got {kind[following]}"
            )
        into = [x for x in before[following] if x == name or x not in after[following]]
        if into != [name]:
            raise ValueError(f"node {following!r}: expected edges from [{name!r}], got {into}")
        chain.append(following)
    is_last = {chain[-2]} if _never_spikes(nodes[chain[-2]]) else set()
    if "LIF" not in (kind[name] for name in chain if name not in is_last):
        raise ValueError(
            f"node {chain[-2]!r}: expected a LIF between {chain[0]!r} and it, got none"
        )
    for name in nodes:
        if name not in chain and name not in loops.values():
            raise ValueError(f"node {name!r}: expected one chain of nodes, got this one outside it")
    return chain, loops


def _neighbours(
    kind: dict[str, str], edges: list[tuple[str, str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Nodes after and before each node; checks the classes and edges first."""
    for name, found in kind.items():
        if found not in _NEXT:
            raise ValueError(f"node {name!r}: expected one of {', '.join(_NEXT)}, got {found}")
    after: dict[str, list[str]] = {name: [] for name in kind}
    before: dict[str, list[str]] = {name: [] for name in kind}
    for (a, b), times in Counter(edges).items():
        if a not in kind or b not in kind or times > 1 or kind[a] == "Output":
            raise ValueError(
                f"edge {a!r} → {b!r}: expected one, between nodes of the graph, not from an Output"
            )
        after[a].append(b)
        before[b].append(a)
    return after, before


def _loop(name: str, back: list[str], kind: dict[str, str], after: dict, before: dict) -> str:
    """Name of the one node that leads from a LIF back to it."""
    if len(back) > 1:
        raise ValueError(f"node {name!r}: expected one recurrent Affine or Linear, got {back}")
    (loop,) = back
    if kind[loop] not in ("Affine", "Linear") or not after[loop] == before[loop] == [name]:
        raise ValueError(
            f"node {loop!r}: expected an Affine or Linear from {name!r} back to it and nowhere "
            f"else, got {kind[loop]} from {before[loop]} to {after[loop]}"
        )
    return loop


def _state(
    nodes: dict[str, Any],
    names: tuple[str, str, str | None],
    n_inputs: int,
    form: Dialect,
    is_readout: bool,
) -> dict[str, Tensor]:
    """Parameters of a layer by name, in float64, from its synapses, neurons and recurrence."""
    synapses, neurons, loop = names
    weight = _numbers(synapses, nodes[synapses], "weight", None, n_inputs).double()
    n_units = len(weight)
    bias = _bias(synapses, nodes[synapses], n_units)
    beta, gain = _beta_and_gain(neurons, nodes[neurons], n_units, form, is_readout)
    state = {"weight": (gain[:, None] * weight)[None], "beta": beta}
    if loop is not None:
        weight = _numbers(loop, nodes[loop], "weight", n_units, n_units).double()
        state["recurrent_weight"] = gain[:, None] * weight
        bias = bias + _bias(loop, nodes[loop], n_units)
    return state | {"bias": gain * bias}


def _bias(name: str, node: Any, n_units: int) -> Tensor:
    """Bias [n_units] of an Affine; zeros for a Linear."""
    if type(node).__name__ == "Linear":
        return torch.zeros(n_units, dtype=torch.float64)
    return _numbers(name, node, "bias", n_units).double()


def _beta_and_gain(
    name: str, node: Any, n_units: int, form: Dialect, is_readout: bool
) -> tuple[Tensor, Tensor]:
    """β and the gain r (1 − β) / v_threshold, by which an input raises V in threshold units."""
    for zero in ("v_leak", "v_reset"):
        if not hasattr(node, zero):  # no v_reset: an LI, or a LIF before nir 1.0.6
            continue
        if _numbers(name, node, zero, n_units).any():
            raise ValueError(f"node {name!r}: expected {zero} = 0, got another value")
    tau_s, r = (_numbers(name, node, x, n_units) for x in ("tau", "r"))
    threshold = torch.ones_like(r)
    if hasattr(node, "v_threshold"):
        threshold = _numbers(name, node, "v_threshold", n_units)
    if not (threshold > 0).all():
        raise ValueError(f"node {name!r}: expected v_threshold > 0, got {threshold.min():.6g}")
    if is_readout:
        threshold = torch.ones_like(r)

    leak = _leak(tau_s.double(), form)
    beta = 1 - leak if form.decay == "euler" else torch.exp(-_step_s(form) / tau_s.double())
    least, most = BETA_BOUNDS
    slack = 1e-6 if form.decay == "euler" else 1e-6 * least  # for the rounding of τ
    outside = ~((beta >= least - slack) & (beta <= most * (1 + 1e-6)))
    if outside.any():
        least_s, most_s = _tau_bounds(form)
        raise ValueError(
            f"node {name!r}: expected tau from {least_s:.6g} to {most_s:.6g} s for steps of "
            f"{form.step_ms:g} ms, got {tau_s[outside][0]:.6g}"
        )
    input_gain = {"none": torch.ones_like(leak), "leak": leak}.get(form.gain, r.double() * leak)
    gain = input_gain / threshold.double()
    rounding = max(torch.finfo(x.dtype).eps for x in (tau_s, r, threshold))
    return beta, torch.where((gain - 1).abs() <= 4 * rounding, torch.ones_like(gain), gain)


def _tau_bounds(form: Dialect) -> tuple[float, float]:
    """Range of τ in seconds that corresponds to `BETA_BOUNDS`."""
    (least, most), step_s = BETA_BOUNDS, _step_s(form)
    if form.decay == "euler":
        return step_s / (1 - least), step_s / (1 - most)
    return -step_s / math.log(least), -step_s / math.log(most)


def _never_spikes(node: Any) -> bool:
    """Whether the node is an LI, or a LIF with no threshold below `NEVER`."""
    threshold = np.asarray(getattr(node, "v_threshold", NEVER))
    return threshold.dtype.kind == "f" and bool((threshold >= NEVER).all())


def _numbers(name: str, node: Any, key: str, *shape: int | None) -> Tensor:
    """Read a finite parameter of a node, of this shape (None = any), in float32 or else float64."""
    array = np.asarray(getattr(node, key))
    sizes = ", ".join("n" if n is None else str(n) for n in shape)
    fits = array.ndim == len(shape) and all(
        n == (m or n) for n, m in zip(array.shape, shape, strict=True)
    )
    if not fits or not array.size:
        raise ValueError(
            f"node {name!r}: expected {key} of shape [{sizes}], got {list(array.shape)}"
        )
    if array.dtype.kind not in "fiu":
        raise ValueError(f"node {name!r}: expected {key} of numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        dtype = np.float32 if _is_dtype(array, np.float32) else np.float64
        values = torch.from_numpy(np.array(array, dtype, order="C"))
    if not values.isfinite().all():
        raise ValueError(f"node {name!r}: expected finite numbers, got {key} with NaN or Inf")
    return values


def _is_dtype(array: np.ndarray, dtype: type) -> bool:
    """Whether the array has this dtype, in either byte order."""
    return array.dtype.newbyteorder("=") == dtype


def _size(name: str, shape: Any) -> int:
    """Size of an Input or Output, which must have one dimension."""
    array = np.asarray(shape)
    if array.shape != (1,) or array.dtype.kind not in "iu" or array[0] < 1:
        raise ValueError(f"node {name!r}: expected a shape [n], got {array.tolist()!r:.80}")
    return int(array[0])


def _layer(name: str, state: dict[str, Tensor], dtype: torch.dtype, is_readout: bool) -> Any:
    """Make a layer and load these parameters into it."""
    state = {key: value.to(dtype) for key, value in state.items()}
    for key, value in state.items():
        if not value.isfinite().all():
            raise ValueError(
                f"node {name!r}: expected {key} × r (1 − β) / v_threshold in the range of {dtype}, "
                "got an overflow"
            )
    _, n_units, n_inputs = state["weight"].shape
    options: dict[str, Any] = {"dt_ms": 1.0, "tau_membrane_ms": 1.0, "beta_bounds": BETA_BOUNDS}
    if is_readout:
        layer = LeakyReadout(n_inputs, n_units, **options)
    else:
        options |= {"recurrent": "recurrent_weight" in state, "recurrent_delay": 1}
        layer = ALIFLayer(n_inputs, n_units, tau_adaptation_ms=None, **options)
    layer.to(dtype).load_state_dict(state)
    return layer


def _copy_of_spikes(n_units: int, dtype: torch.dtype) -> LeakyReadout:
    """Readout whose membrane equals its input; training leaves it unchanged."""
    bounds = (0.0, BETA_BOUNDS[1])
    readout = LeakyReadout(n_units, n_units, dt_ms=1.0, tau_membrane_ms=1.0, beta_bounds=bounds)
    with torch.no_grad():
        readout.weight.copy_(torch.eye(n_units))
        readout.bias.zero_()
        readout.beta.zero_()
    return readout.to(dtype).requires_grad_(False)


def _network(layers: list[Any], dt_ms: float) -> SpikingClassifier:
    """Network made of these hidden layers and, last, this readout."""
    options: dict[str, Any] = {"tau_membrane_ms": dt_ms, "tau_adaptation_ms": None}
    n_inputs, n_classes = layers[0].weight.shape[2], len(layers[-1].bias)
    network = SpikingClassifier(n_inputs, n_classes, 1, 1, dt_ms=dt_ms, **options)
    *hidden, network.readout = layers
    network.layers = torch.nn.ModuleList(hidden)
    return network
