"""Networks to and from NIR, the Neuromorphic Intermediate Representation.

What it can say, what is lost, and how its equations map to ours: docs/nir.md. The format is that of
Pedersen et al., Nature Communications 15, 8122 (2024). Nothing here depends on a graph's metadata.
"""

import math
from collections import Counter
from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blockspike.networks import LeakyReadout, SpikingClassifier, SpikingLayer

if TYPE_CHECKING:
    import nir

LOSABLE = (
    "adaptation",
    "refractory period",
    "recurrent delay",
    "synaptic delays",
    "input scaling",
)
"""What `lose` may name."""
BETA_BOUNDS = (0.001, 0.999)
"""Of the layers that `from_nir` makes."""
_NEXT = {
    "Input": ("Affine", "Linear"),
    "Affine": ("LIF", "LI"),
    "Linear": ("LIF", "LI"),
    "LIF": ("Affine", "Linear"),
    "LI": ("Output",),
    "Output": (),
}
"""Which node may follow which in a chain, by class."""


def to_nir(network: SpikingClassifier, dt_ms: float, lose: Collection[str] = ()) -> "nir.NIRGraph":
    """The graph of a network, to be written by `nir.write(path, graph)`; a copy of its numbers.

    Nodes are named synapses_0, lif_0, recurrent_0, synapses_1, …, li. Time constants are in
    seconds, arrays in the dtype of the network. The recurrent edges of a graph have no delay in
    continuous time; in steps it is one, like our `recurrent_delay = 1`. The graph ends with the
    readout's membrane: how scores are made of it, dropout and surrogate are not in it.

    Args:
        network: of `SpikingLayer`s and a `LeakyReadout`.
        dt_ms: length of the step that the network was made for.
        lose: what to leave out where NIR has no words for it, of `LOSABLE`.

    Raises:
        ValueError: a bad argument, or something would be lost that `lose` does not name.
        ModuleNotFoundError: nir is not installed.
    """
    nir = _nir()
    _check_dt(dt_ms)
    _check_network(network, lose)
    layers: list[tuple[str, Any]] = [*_named_layers(network), ("readout", network.readout)]
    n_inputs = layers[0][1].weight.shape[2]
    nodes, edges = {"input": nir.Input({"input": np.array([n_inputs])})}, []
    last = "input"
    for i, (name, layer) in enumerate(layers):
        weight, bias = _array(name, "weight", layer.weight)[0], _array(name, "bias", layer.bias)
        tau_s, r = _tau_and_r(name, _array(name, "beta", layer.beta), dt_ms)
        synapses, neurons = f"synapses_{i}", "li" if name == "readout" else f"lif_{i}"
        nodes[synapses] = nir.Affine(weight, bias)
        edges += [(last, synapses), (synapses, neurons)]
        last = neurons
        if name == "readout":
            nodes[neurons] = nir.LI(tau_s, r, v_leak=0 * r)
            continue
        nodes[neurons] = nir.LIF(tau_s, r, 0 * r, v_threshold=np.ones_like(r), v_reset=0 * r)
        if layer.recurrent_weight is not None:
            loop = f"recurrent_{i}"
            nodes[loop] = nir.Linear(_array(name, "recurrent_weight", layer.recurrent_weight))
            edges += [(neurons, loop), (loop, neurons)]
    nodes["output"] = nir.Output({"output": np.array([len(network.readout.bias)])})
    return nir.NIRGraph(nodes, [*edges, (last, "output")], metadata={"dt_ms": float(dt_ms)})


def from_nir(graph: "nir.NIRGraph", dt_ms: float) -> SpikingClassifier:
    """The network of a graph, as of `nir.read(path)`, in steps of dt_ms; a copy of its numbers.

    The graph is one chain Input → (Affine or Linear → LIF) once or more → Affine or Linear → LI →
    Output, of any sizes and names; a Linear or Affine may lead from a LIF back to it, and gets the
    delay of one step that such an edge has once time is in steps. Time constants are in seconds.
    The network is in float64 if all weights are, else in float32; its scores are sums over time.

    Args:
        graph: to be checked, by node, before anything is made of it.
        dt_ms: length of a step; the input is taken as constant within one.

    Raises:
        ValueError: a bad dt_ms, or the graph is anything else; names the node and what was
            expected there: shapes, finite numbers, v_leak = v_reset = 0, v_threshold > 0 and a
            tau of `BETA_BOUNDS`.
        ModuleNotFoundError: nir is not installed.
    """
    nir = _nir()
    _check_dt(dt_ms)
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"graph: expected a nir.NIRGraph, got {type(graph).__name__}")
    nodes: dict[str, Any] = graph.nodes
    chain, loops = _chain(nodes, [(a, b) for a, b in graph.edges])
    first, *inner, last = chain
    weights = [np.asarray(nodes[name].weight) for name in (*inner[::2], *loops.values())]
    is_double = all(_is_dtype(weight, np.float64) for weight in weights)
    dtype = torch.float64 if is_double else torch.float32

    sizes = [_size(first, nodes[first].input_type["input"])]
    layers = []
    for synapses, neurons in zip(inner[::2], inner[1::2], strict=True):
        state = _state(nodes, synapses, neurons, loops.get(neurons), sizes[-1], dt_ms)
        layers.append(_layer(neurons, state, dtype, is_readout=neurons == inner[-1]))
        sizes.append(len(state["bias"]))
    if (found := _size(last, nodes[last].output_type["output"])) != sizes[-1]:
        raise ValueError(f"node {last!r}: expected a shape [{sizes[-1]}], got [{found}]")

    options: dict[str, Any] = {"tau_membrane_ms": dt_ms, "tau_adaptation_ms": None}
    network = SpikingClassifier(sizes[0], sizes[-1], 1, 1, dt_ms=dt_ms, **options)
    *hidden, network.readout = layers
    network.layers = torch.nn.ModuleList(hidden)
    return network


def _nir() -> Any:
    try:
        return import_module("nir")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "graphs of NIR need the package nir: pip install 'blockspike[nir]'"
        ) from None


def _check_dt(dt_ms: float) -> None:
    if not 0 < dt_ms < math.inf:
        raise ValueError(f"dt_ms: expected a finite value > 0, got {dt_ms}")


def _check_network(network: SpikingClassifier, lose: Collection[str]) -> None:
    known = ", ".join(LOSABLE)
    if not set(lose) <= set(LOSABLE):
        raise ValueError(f"lose: expected a collection of names out of {known}, got {lose!r}")
    if not isinstance(network, SpikingClassifier):
        raise ValueError(f"network: expected a SpikingClassifier, got {type(network).__name__}")
    problems = []
    if network.input_events is not None and "input scaling" not in lose:
        problems.append("network: expected what NIR can say, got input scaling")
    for name, layer in _named_layers(network):
        if type(layer) is not SpikingLayer:
            problems.append(f"{name}: expected a SpikingLayer, got {type(layer).__name__}")
        elif lost := [x for x in _lost(layer) if x not in lose]:
            problems.append(f"{name}: expected what NIR can say, got {', '.join(lost)}")
    if type(network.readout) is not LeakyReadout:
        kind = type(network.readout).__name__
        problems.append(f"readout: expected a LeakyReadout, got {kind}")
    if problems:
        raise ValueError("; ".join(problems) + f" (`lose` may name {known})")


def _named_layers(network: SpikingClassifier) -> list[tuple[str, Any]]:
    return [(f"layers.{i}", layer) for i, layer in enumerate(network.layers)]


def _lost(layer: SpikingLayer) -> list[str]:
    """What a graph would not have of a layer."""
    delay = layer.arp + 1 if layer.recurrent_delay is None else layer.recurrent_delay
    lost = {
        "adaptation": layer.b is not None and bool((layer.b != 0).any()),
        "refractory period": layer.arp > 0,
        "recurrent delay": layer.recurrent_weight is not None and delay != 1,
        "synaptic delays": layer.delays is not None,
        "temporal receptive field": len(layer.weight) > 1,
    }
    return [name for name, is_lost in lost.items() if is_lost]


def _array(layer: str, name: str, parameter: Tensor) -> np.ndarray:
    """A copy, so that a graph stays as it is when training goes on."""
    if not parameter.isfinite().all():
        raise ValueError(f"{layer}: expected finite numbers, got {name} with NaN or Inf")
    return parameter.detach().cpu().numpy().copy()


def _tau_and_r(layer: str, beta: np.ndarray, dt_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """τ in seconds and r with which NIR's equation, integrated over a step, is ours."""
    outside = (beta <= 0) | (beta >= 1)
    if outside.any():
        raise ValueError(f"{layer}: expected 0 < beta < 1, got {beta[outside][0]:.6g}")
    wide = beta.astype(np.float64)
    tau_s = -1e-3 * dt_ms / np.log(wide)
    return tau_s.astype(beta.dtype), (1 / (1 - wide)).astype(beta.dtype)


def _chain(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
    """Names from Input to Output, and of the recurrent node of each LIF that has one."""
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
    if "LIF" not in (kind[name] for name in chain):
        raise ValueError(f"node {chain[-2]!r}: expected a LIF between {chain[0]!r} and it")
    for name in nodes:
        if name not in chain and name not in loops.values():
            raise ValueError(f"node {name!r}: expected one chain of nodes, got one beside it")
    return chain, loops


def _neighbours(
    kind: dict[str, str], edges: list[tuple[str, str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The nodes after and before each, once their classes and the edges are checked."""
    for name, found in kind.items():
        if found not in _NEXT:
            raise ValueError(f"node {name!r}: expected one of {', '.join(_NEXT)}, got {found}")
    after: dict[str, list[str]] = {name: [] for name in kind}
    before: dict[str, list[str]] = {name: [] for name in kind}
    for (a, b), times in Counter(edges).items():
        if a not in kind or b not in kind or times > 1 or kind[a] == "Output":
            raise ValueError(
                f"edge {a!r} → {b!r}: expected once, between nodes of the graph, not from an Output"
            )
        after[a].append(b)
        before[b].append(a)
    return after, before


def _loop(name: str, back: list[str], kind: dict[str, str], after: dict, before: dict) -> str:
    """The one node that leads from a LIF back to it."""
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
    synapses: str,
    neurons: str,
    loop: str | None,
    n_inputs: int,
    dt_ms: float,
) -> dict[str, Tensor]:
    """The parameters of a layer by name, in float64."""
    weight = _numbers(synapses, nodes[synapses], "weight", None, n_inputs).double()
    n_units = len(weight)
    bias = _bias(synapses, nodes[synapses], n_units)
    beta, gain = _beta_and_gain(neurons, nodes[neurons], n_units, dt_ms)
    state = {"weight": (gain[:, None] * weight)[None], "beta": beta}
    if loop is not None:
        weight = _numbers(loop, nodes[loop], "weight", n_units, n_units).double()
        state["recurrent_weight"] = gain[:, None] * weight
        bias = bias + _bias(loop, nodes[loop], n_units)
    return state | {"bias": gain * bias}


def _bias(name: str, node: Any, n_units: int) -> Tensor:
    """[n_units], 0 for a Linear."""
    if type(node).__name__ == "Linear":
        return torch.zeros(n_units, dtype=torch.float64)
    return _numbers(name, node, "bias", n_units).double()


def _beta_and_gain(name: str, node: Any, n_units: int, dt_ms: float) -> tuple[Tensor, Tensor]:
    """β, and what an input adds to V in units of the threshold: r (1 − β) / v_threshold."""
    is_lif = type(node).__name__ == "LIF"
    for zero in ("v_leak", "v_reset") if is_lif else ("v_leak",):
        if _numbers(name, node, zero, n_units).any():
            raise ValueError(f"node {name!r}: expected {zero} = 0, got another value")
    tau_s, r = (_numbers(name, node, x, n_units) for x in ("tau", "r"))
    threshold = _numbers(name, node, "v_threshold", n_units) if is_lif else torch.ones_like(r)
    if not (threshold > 0).all():
        raise ValueError(f"node {name!r}: expected v_threshold > 0, got {threshold.min():.6g}")

    steps = 1e-3 * dt_ms / tau_s.double()
    beta = torch.exp(-steps)
    low, high = BETA_BOUNDS[0] * (1 - 1e-6), BETA_BOUNDS[1] * (1 + 1e-6)  # τ is rounded
    outside = ~((beta >= low) & (beta <= high))
    if outside.any():
        least_s, most_s = (-1e-3 * dt_ms / math.log(bound) for bound in BETA_BOUNDS)
        raise ValueError(
            f"node {name!r}: expected tau from {least_s:.6g} to {most_s:.6g} s for steps of "
            f"{dt_ms:g} ms, got {tau_s[outside][0]:.6g}"
        )
    gain = -r.double() * torch.expm1(-steps) / threshold.double()
    rounding = max(torch.finfo(x.dtype).eps for x in (tau_s, r, threshold))
    return beta, torch.where((gain - 1).abs() <= 4 * rounding, torch.ones_like(gain), gain)


def _numbers(name: str, node: Any, key: str, *shape: int | None) -> Tensor:
    """A parameter of a node, finite, of this shape (None = any), in float32 or else float64."""
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
    """In any order of bytes."""
    return array.dtype.newbyteorder("=") == dtype


def _size(name: str, shape: Any) -> int:
    """The only dimension of an Input or Output."""
    array = np.asarray(shape)
    if array.shape != (1,) or array.dtype.kind not in "iu" or array[0] < 1:
        raise ValueError(f"node {name!r}: expected a shape [n], got {array.tolist()!r:.80}")
    return int(array[0])


def _layer(name: str, state: dict[str, Tensor], dtype: torch.dtype, is_readout: bool) -> Any:
    """A layer with these parameters, at first made with others."""
    state = {key: value.to(dtype) for key, value in state.items()}
    for key, value in state.items():
        if not value.isfinite().all():
            raise ValueError(
                f"node {name!r}: expected {key} × r (1 − β) / v_threshold in the range of {dtype}"
            )
    _, n_units, n_inputs = state["weight"].shape
    options: dict[str, Any] = {"dt_ms": 1.0, "tau_membrane_ms": 1.0, "beta_bounds": BETA_BOUNDS}
    if is_readout:
        layer = LeakyReadout(n_inputs, n_units, **options)
    else:
        options |= {"recurrent": "recurrent_weight" in state, "recurrent_delay": 1}
        layer = SpikingLayer(n_inputs, n_units, tau_adaptation_ms=None, **options)
    layer.to(dtype).load_state_dict(state)
    return layer
