"""NIR: round trips, steps of every dialect, foreign graphs, and errors."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import AdLIFLayer, ALIFLayer, CSiLIFLayer, EulerAdLIFLayer
from blockspike.networks.nir import DIALECTS, DROPPABLE, NEVER, Dialect, from_nir, to_nir, write
from blockspike.networks.readout import LeakyReadout

N_STEPS, BATCH, DT_MS = 40, 3, 2.0


def made(dtype=torch.float64, **options) -> Any:
    """Network whose layers spike and whose neurons all have their own β and bias."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"recurrent_delay": 1, "tau_adaptation_ms": None} | options
    net: Any = SpikingClassifier(12, 4, 10, **({"n_layers": 2, "dt_ms": DT_MS} | settings))
    with torch.no_grad():
        for layer in [*net.layers, net.readout]:
            layer.weight.mul_(4)
            layer.bias.uniform_(-0.1, 0.2)
            layer.beta.uniform_(0.6, 0.98)
            if getattr(layer, "recurrent_weight", None) is not None:
                layer.recurrent_weight.normal_(0, 0.5)
    return net.to(dtype).eval()


def made_spikes(n_inputs=12, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(N_STEPS, BATCH, n_inputs, generator=generator) < 0.2).to(dtype)


def through_a_file(graph, tmp_path) -> Any:
    write(tmp_path / "graph.nir", graph)
    return nir.read(tmp_path / "graph.nir")


def assert_equal_output(net, expected, x):
    output, other = net(x), expected(x)
    for spikes, expected_spikes in zip(output.spikes, other.spikes, strict=True):
        assert 0.05 < expected_spikes.mean() < 0.8
        assert torch.equal(spikes, expected_spikes)
    torch.testing.assert_close(output.readout, other.readout, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.scores, other.scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dt_ms", [0.1, DT_MS])
@pytest.mark.parametrize("recurrent", [True, False])
def test_round_trip(recurrent, dt_ms, tmp_path):
    net = made(recurrent=recurrent, n_layers=1)
    graph = to_nir(net, dt_ms)
    names = ["input", "layer_0_affine", "layer_0_lif", "layer_0_recurrent", "output"]
    names = [x for x in names if recurrent or "recurrent" not in x]
    assert sorted(graph.nodes) == [*names, "readout_affine", "readout_membrane"]
    back = from_nir(through_a_file(graph, tmp_path), dt_ms)
    assert back.readout.weight.dtype == torch.float64
    assert_equal_output(back, net, made_spikes())


def test_weights_contain_the_normalisation(tmp_path):
    net = made(batch_norm=True)
    with torch.no_grad():
        for layer in net.layers:
            layer.norm.gain.uniform_(0.5, 1.5)
            layer.norm.mean.uniform_(-0.1, 0.1)
    back = from_nir(through_a_file(to_nir(net, DT_MS), tmp_path), DT_MS).eval()
    assert not back.has_batch_norm
    assert_equal_output(back, net, made_spikes())


@pytest.mark.parametrize(("gain", "rtol"), [("weights", 2**-23), ("r", 0), ("none", 0)])
def test_round_trip_of_float32_gives_the_same_numbers(gain, rtol, tmp_path):
    """Weights that were divided by 1 − β may differ by one rounding."""
    net = made(torch.float32)
    graph = to_nir(net, DT_MS, dialect=Dialect(gain=gain))
    for name in ("layer_0_affine", "layer_0_recurrent", "layer_0_lif", "readout_membrane"):
        arrays = [x for x in vars(graph.nodes[name]).values() if isinstance(x, np.ndarray)]
        assert arrays and all(x.dtype == np.float32 for x in arrays)
    back = from_nir(through_a_file(graph, tmp_path), DT_MS, dialect=Dialect(gain=gain))
    expected = net.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for name, value in back.state_dict().items():
        rtol_here = 0 if name.endswith("beta") else rtol
        torch.testing.assert_close(value, expected[name], rtol=rtol_here, atol=0)


@pytest.mark.parametrize("bound", [0.001, 0.999])
@pytest.mark.parametrize("then", [torch.float32, torch.float64])
def test_beta_at_its_bounds_survives_a_round_trip(bound, then):
    """In float32, rounding may put β outside its bounds."""
    net = made(torch.float32)
    with torch.no_grad():
        net.layers[0].beta.fill_(bound)
    for dialect, atol in (("nir", 0), ("norse", 1e-7)):
        back: Any = from_nir(to_nir(net.to(then), DT_MS, dialect=dialect), DT_MS, dialect=dialect)
        torch.testing.assert_close(back.layers[0].beta, net.layers[0].beta, rtol=1e-6, atol=atol)


def test_time_constants_are_in_seconds():
    net = SpikingClassifier(12, 4, 10, 1, dt_ms=1.0, tau_membrane_ms=20.0, tau_adaptation_ms=None)
    graph: Any = to_nir(net, 1.0)
    for name in ("layer_0_lif", "readout_membrane"):
        node = graph.nodes[name]
        np.testing.assert_allclose(node.tau, 0.02, rtol=1e-5)
        assert not node.v_leak.any() and (node.r == 1).all()
    lif = graph.nodes["layer_0_lif"]
    assert (lif.v_threshold == 1).all() and not lif.v_reset.any()


STEPS: dict[str, Any] = {
    # node → (β, g)
    "nir": lambda n: (np.exp(-1e-3 * DT_MS / n.tau), n.r * (1 - np.exp(-1e-3 * DT_MS / n.tau))),
    "norse": lambda n: (1 - 1e-3 * DT_MS / n.tau, 1e-3 * DT_MS / n.tau),
    "sinabs": lambda n: (np.exp(-1 / n.tau), np.ones_like(n.tau)),
    "snntorch": lambda n: (1 - 1e-4 / n.tau, n.r * 1e-4 / n.tau),
    "spyx": lambda n: (1 - 1e-3 * DT_MS / n.tau, np.ones_like(n.tau)),
}


def flat(nodes: dict[str, Any]) -> dict[str, Any]:
    """Nodes of a graph with the subgraphs of recurrent layers expanded."""
    found = {}
    for name, node in nodes.items():
        if isinstance(node, nir.NIRGraph):
            found |= {name: node.nodes["lif"]}
            found |= {name.replace("_lif", "_recurrent"): node.nodes["w_rec"]}
        else:
            found[name] = node
    return found


def stepped(nodes: dict[str, Any], step, x) -> list[np.ndarray]:
    """Spikes of both layers and the readout's membrane, computed with a simulator's step."""
    v: dict[str, Any] = dict.fromkeys(("layer_0", "layer_1", "readout"), 0.0)
    spikes: dict[str, Any] = {"layer_0": np.zeros((BATCH, 10)), "layer_1": np.zeros((BATCH, 10))}
    found = []
    for row in x:
        for name in v:
            synapses = nodes[f"{name}_affine"]
            neurons = nodes[f"{name}_{'membrane' if name == 'readout' else 'lif'}"]
            current = row @ synapses.weight.T + synapses.bias
            if f"{name}_recurrent" in nodes:
                current = current + spikes[name] @ nodes[f"{name}_recurrent"].weight.T
            beta, gain = step(neurons)
            v[name] = beta * v[name] + gain * current
            row = spikes[name] = (v[name] > getattr(neurons, "v_threshold", np.inf)).astype(float)
            found.append(v[name] if name == "readout" else row)
            v[name] = np.where(row == 1, 0.0, v[name])
    return [np.stack(found[i::3]) for i in range(3)]


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_step_of_each_dialect_equals_a_step_of_ours(dialect, recurrent, tmp_path):
    net = made(recurrent=recurrent)
    x = made_spikes()
    graph = through_a_file(to_nir(net, DT_MS, dialect=dialect), tmp_path)
    assert any(isinstance(n, nir.NIRGraph) for n in graph.nodes.values()) == (
        dialect == "snntorch" and recurrent
    )
    *spikes, membrane = stepped(flat(graph.nodes), STEPS[dialect], x.numpy())
    output = net(x)
    for found, expected in zip(spikes, output.spikes, strict=True):
        assert 0.05 < expected.mean() < 0.8
        np.testing.assert_array_equal(found, expected.detach().numpy())
    np.testing.assert_allclose(membrane, output.readout.detach().numpy(), rtol=1e-9, atol=1e-9)
    assert_equal_output(from_nir(graph, DT_MS, dialect=dialect), net, x)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_r_of_others_counts_as_the_dialect_says(dialect):
    x = made_spikes()
    graph: Any = to_nir(made(recurrent=False), DT_MS, dialect=dialect)
    for node in graph.nodes.values():
        if hasattr(node, "r"):
            node.r = node.r * np.linspace(0.6, 1.5, len(node.r))
    *spikes, membrane = stepped(flat(graph.nodes), STEPS[dialect], x.numpy())
    output = from_nir(graph, DT_MS, dialect=dialect)(x)
    for found, expected in zip(spikes, output.spikes, strict=True):
        np.testing.assert_array_equal(found, expected.detach().numpy())
    np.testing.assert_allclose(membrane, output.readout.detach().numpy(), rtol=1e-9, atol=1e-9)


def test_a_custom_dialect():
    net, x = made(), made_spikes()
    form = Dialect("euler", "r", step_ms=0.5, readout="lif")
    graph: Any = to_nir(net, DT_MS, dialect=form)
    beta = net.layers[0].beta.detach()
    np.testing.assert_allclose(graph.nodes["layer_0_lif"].tau, 5e-4 / (1 - beta))
    assert (graph.nodes["readout_membrane"].v_threshold == np.finfo(np.float32).max).all()
    assert_equal_output(from_nir(graph, DT_MS, dialect=form), net, x)
    exact = replace(form, decay="exact")
    assert not torch.equal(from_nir(graph, DT_MS, dialect=exact)(x).scores, net(x).scores)


def test_nodes_of_a_file_come_in_the_order_of_the_chain(tmp_path):
    """The order is alphabetical; snnTorch can only connect recurrent layers in this order."""
    net = made(n_layers=11)
    names = list(through_a_file(to_nir(net, DT_MS, dialect="snntorch"), tmp_path).nodes)
    assert names[:5] == [
        "input",
        "layer_00_affine",
        "layer_00_lif",
        "layer_01_affine",
        "layer_01_lif",
    ]
    assert names[-4:] == ["layer_10_lif", "output", "readout_affine", "readout_membrane"]
    assert set(names) == set(to_nir(net, DT_MS, dialect="snntorch").nodes)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_graph_that_ends_in_a_lif_has_its_spikes_as_readout(n_layers, tmp_path):
    net, x = made(n_layers=n_layers), made_spikes()
    graph = through_a_file(to_nir(net, DT_MS, readout="none"), tmp_path)
    assert not [name for name in graph.nodes if name.startswith("readout")]
    back: Any = from_nir(graph, DT_MS)
    output, expected = back(x), net(x)
    for spikes, expected_spikes in zip(output.spikes, expected.spikes, strict=True):
        assert torch.equal(spikes, expected_spikes)
    assert torch.equal(output.readout, output.spikes[-1])
    assert torch.equal(output.scores, output.spikes[-1].sum(0))
    again = to_nir(back, DT_MS, readout="none")
    assert again.nodes.keys() == graph.nodes.keys()

    back.train()
    before = {name: value.detach().clone() for name, value in back.named_parameters()}
    back(x).scores.square().sum().backward()
    assert all(p.grad is not None for name, p in back.named_parameters() if "layers" in name)
    torch.optim.SGD([p for p in back.parameters() if p.requires_grad], lr=1e-3).step()
    back.project_()
    for name, value in back.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("readout"), name


def test_a_silent_layer_inside_is_not_a_readout():
    graph = a_graph(z=node_lif(np.random.default_rng(0), 5, v_threshold=np.full(5, NEVER)))
    net: Any = from_nir(graph, 1.0)
    output = net(made_spikes())
    assert len(net.layers) == 2 and output.spikes[0].any() and not output.spikes[1].any()


def test_a_file_omits_a_reset_of_zero(tmp_path):
    """nir 1.0.4, which sinabs requires, refuses v_reset; later versions default to 0."""
    net = made()
    for dialect in ("nir", "snntorch"):
        write(tmp_path / "ours.nir", to_nir(net, DT_MS, dialect=dialect))
        nir.write(tmp_path / "theirs.nir", to_nir(net, DT_MS, dialect=dialect))
        names: dict[str, list[str]] = {"ours": [], "theirs": []}
        for file, found in names.items():
            with h5py.File(tmp_path / f"{file}.nir") as content:
                content.visit(found.append)
        resets = [name for name in names["theirs"] if name.endswith("v_reset")]
        assert len(resets) == (2 if dialect == "nir" else 3)  # the readout is a LIF too
        assert set(names["theirs"]) - set(names["ours"]) == set(resets)
        back = from_nir(nir.read(tmp_path / "ours.nir"), DT_MS, dialect=dialect)
        assert_equal_output(back, net, made_spikes())


def test_a_file_keeps_a_nonzero_reset(tmp_path):
    graph = parameter("z", "v_reset", -0.1)()
    before = graph.nodes["z"].v_reset.copy()
    write(tmp_path / "graph.nir", graph)
    back: Any = nir.read(tmp_path / "graph.nir")
    np.testing.assert_array_equal(back.nodes["z"].v_reset, before)
    np.testing.assert_array_equal(graph.nodes["A.lif"].v_reset, np.zeros(7))


@dataclass(eq=False)
class LIF(nir.ir.node.NIRNode):
    """LIF node as in nir 1.0.4."""

    tau: np.ndarray
    r: np.ndarray
    v_leak: np.ndarray
    v_threshold: np.ndarray

    def __post_init__(self):
        self.input_type = {"input": np.array(self.tau.shape)}
        self.output_type = {"output": np.array(self.tau.shape)}


def test_versions_of_nir_without_v_reset(monkeypatch, tmp_path):
    monkeypatch.setattr(nir, "LIF", LIF)
    net = made()
    graph = to_nir(net, DT_MS)
    assert type(graph.nodes["layer_0_lif"]) is LIF
    write(tmp_path / "graph.nir", graph)
    assert_equal_output(from_nir(graph, DT_MS), net, made_spikes())


@pytest.mark.parametrize("synapses", [nir.Affine, nir.Linear])
def test_a_recurrent_layer_as_a_subgraph(synapses, tmp_path):
    """snnTorch writes recurrent layers in this form."""
    graph = a_graph()
    loop = graph.nodes.pop("A.rec")
    if synapses is nir.Linear:
        loop = nir.Linear(loop.weight)
    lif = graph.nodes.pop("A.lif")
    inside = {
        "input": nir.Input({"input": np.array([7])}),
        "output": nir.Output({"output": np.array([7])}),
        "neurons": lif,
        "w": loop,
    }
    edges_inside = [("input", "neurons"), ("w", "neurons"), ("neurons", "w"), ("neurons", "output")]
    graph.nodes["A"] = nir.NIRGraph(inside, edges_inside)
    pairs = [(a, b) for a, b in graph.edges if "A.rec" not in (a, b)]
    graph.edges = [tuple("A" if x == "A.lif" else x for x in pair) for pair in pairs]
    expected = from_nir(a_graph(**{"A.rec": loop}), 1.0)
    assert_equal_output(from_nir(through_a_file(graph, tmp_path), 1.0), expected, made_spikes())


def test_any_part_of_the_chain_may_be_a_subgraph():
    graph, expected = a_graph(), from_nir(a_graph(), 1.0)
    inside = {x: graph.nodes.pop(x) for x in ("1", "z")}
    ends = {"x": shaped(np.array([7])), "y": nir.Output({"output": np.array([5])})}
    path = [("x", "1"), ("1", "z"), ("z", "y")]
    inner = nir.NIRGraph(inside | ends, path)
    graph.nodes["B"] = nir.NIRGraph({"in": ends["x"], "C": inner, "out": ends["y"]},
                                    [("in", "C"), ("C", "out")], type_check=False)  # fmt: skip
    graph.edges = [e for e in graph.edges if not {"1", "z"} & {*e}] + [("A.lif", "B"), ("B", "w")]
    assert_equal_output(from_nir(graph, 1.0), expected, made_spikes())
    inside["z"].tau[0] = 20.0
    with pytest.raises(ValueError, match="^node 'B.C.z': expected tau"):
        from_nir(graph, 1.0)


def test_another_step_gives_the_same_neuron(tmp_path):
    """τ is kept, and so is the steady-state voltage for a constant current."""
    graph = through_a_file(to_nir(made(), DT_MS), tmp_path)
    assert graph.metadata == {"dt_ms": DT_MS}
    fine: Any = from_nir(graph, DT_MS / 4)
    net = made()
    torch.testing.assert_close(fine.readout.beta**4, net.readout.beta)
    settled = [n.readout.bias / (1 - n.readout.beta) for n in (fine, net)]
    torch.testing.assert_close(*settled)


def test_graphs_are_copies_both_ways():
    net = made()
    graph = to_nir(net, DT_MS)
    before = {name: vars(node).copy() for name, node in graph.nodes.items()}
    before = {name: {k: np.copy(v) for k, v in x.items()} for name, x in before.items()}
    back = from_nir(graph, DT_MS)
    with torch.no_grad():
        for parameter in [*net.parameters(), *back.parameters()]:
            parameter.add_(1)
    for name, values in before.items():
        for key in {"weight", "bias", "tau", "r"} & values.keys():
            np.testing.assert_array_equal(getattr(graph.nodes[name], key), values[key])


def node_lif(rng, n, **values) -> nir.LIF:
    given: dict[str, Any] = {
        "tau": rng.uniform(0.004, 0.05, n),
        "r": rng.uniform(0.5, 20, n),
        "v_leak": np.zeros(n),
        "v_threshold": rng.uniform(0.2, 3, n),
        "v_reset": np.zeros(n),
    }
    return nir.LIF(**(given | values))


def a_graph(**replaced) -> Any:
    """Foreign graph with odd names: 12 → 7 with a recurrent Affine → 5 without one → 3."""
    rng = np.random.default_rng(0)
    nodes = {
        "in": nir.Input({"input": np.array([12])}),
        "0": nir.Affine(rng.normal(0, 0.5, (7, 12)), rng.normal(0.1, 0.2, 7)),
        "A.lif": node_lif(rng, 7),
        "A.rec": nir.Affine(rng.normal(0, 0.5, (7, 7)), rng.normal(0, 0.1, 7)),
        "1": nir.Linear(rng.normal(0.8, 1, (5, 7))),
        "z": node_lif(rng, 5),
        "w": nir.Affine(rng.normal(0, 1, (3, 5)), rng.normal(0, 1, 3)),
        "read": nir.LI(rng.uniform(0.004, 0.05, 3), rng.uniform(-2, 2, 3), np.zeros(3)),
        "out": nir.Output({"output": np.array([3])}),
    }
    edges = [
        ("z", "w"), ("A.lif", "A.rec"), ("in", "0"), ("A.rec", "A.lif"), ("w", "read"),
        ("0", "A.lif"), ("A.lif", "1"), ("read", "out"), ("1", "z"),
    ]  # fmt: skip
    return nir.NIRGraph(nodes | replaced, edges, type_check=False)


def integrated(node, v, current, dt_s):
    """Integrate τ dv/dt = (v_leak − v) + r I over one step of constant I."""
    settled = node.v_leak + node.r * current
    return settled + (v - settled) * np.exp(-dt_s / node.tau)


def simulated(graph, x, dt_s):
    """Spikes of both layers and the readout's voltage, computed from NIR's equations alone."""
    nodes = graph.nodes
    v: dict[str, Any] = {"A.lif": 0.0, "z": 0.0, "read": 0.0}
    first, found = np.zeros((x.shape[1], 7)), []
    for row in x:
        current = row @ nodes["0"].weight.T + nodes["0"].bias
        current = current + first @ nodes["A.rec"].weight.T + nodes["A.rec"].bias
        v["A.lif"] = integrated(nodes["A.lif"], v["A.lif"], current, dt_s)
        first = (v["A.lif"] > nodes["A.lif"].v_threshold).astype(float)
        v["A.lif"] = np.where(first == 1, nodes["A.lif"].v_reset, v["A.lif"])
        v["z"] = integrated(nodes["z"], v["z"], first @ nodes["1"].weight.T, dt_s)
        second = (v["z"] > nodes["z"].v_threshold).astype(float)
        v["z"] = np.where(second == 1, nodes["z"].v_reset, v["z"])
        current = second @ nodes["w"].weight.T + nodes["w"].bias
        v["read"] = integrated(nodes["read"], v["read"], current, dt_s)
        found.append((first, second, v["read"]))
    return [np.stack(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize("dt_ms", [1.0, 3.0])
def test_a_graph_follows_the_equations_of_nir(dt_ms, tmp_path):
    graph = a_graph()
    net: Any = from_nir(through_a_file(graph, tmp_path), dt_ms)
    assert [layer.weight.shape for layer in net.layers] == [(7, 12), (5, 7)]
    x = made_spikes()
    *spikes, membrane = simulated(graph, x.numpy(), 1e-3 * dt_ms)
    output = net(x)
    for found, expected in zip(output.spikes, spikes, strict=True):
        assert 0.05 < expected.mean() < 0.8
        np.testing.assert_array_equal(found.detach().numpy(), expected)
    np.testing.assert_allclose(output.readout.detach().numpy(), membrane, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(output.scores.detach().numpy(), membrane.sum(0), rtol=1e-9)
    graph.nodes["A.rec"].weight[:] = 0
    assert (simulated(graph, x.numpy(), 1e-3 * dt_ms)[0] != spikes[0]).any()


@pytest.mark.parametrize("node", ["0", "A.rec"])
@pytest.mark.parametrize("kind", [">f8", ">f4", "f4", "f2", "i8"])
def test_weights_of_any_dtype(kind, node):
    """One weight in a dtype other than float64 makes the network float32."""
    weight = np.round(a_graph().nodes[node].weight * 4).astype(kind)
    net: Any = from_nir(a_graph(**{node: nir.Linear(weight)}), 1.0)
    expected: Any = from_nir(a_graph(**{node: nir.Linear(weight.astype(float))}), 1.0)
    dtype = torch.float64 if kind == ">f8" else torch.float32
    assert {p.dtype for p in net.parameters()} == {dtype}
    for value, other in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other.to(dtype))


def test_an_imported_network_trains(tmp_path):
    net: Any = from_nir(through_a_file(a_graph(), tmp_path), 1.0).train()
    net(made_spikes()).scores.square().sum().backward()
    names = {name for name, _ in net.named_parameters()}
    assert "layers.0.recurrent_weight" in names and "layers.1.recurrent_weight" not in names
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    net.project_()
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name])
    torch.optim.SGD(net.parameters(), lr=1e3).step()
    net.project_()
    for layer in [*net.layers, net.readout]:
        assert layer.beta.min() >= 0.001 and layer.beta.max() <= 0.999
        assert set(layer.beta.tolist()) & {0.001, 0.999}


LOSSES = [
    ({"adaptation"}, {"tau_adaptation_ms": 50.0, "b": 0.5}, {"tau_adaptation_ms": 50.0, "b": 0.0}),
    ({"refractory period"}, {"arp_ms": 6.0}, {"arp_ms": 0.0}),
    ({"refractory period"}, {"arp_ms": 6.0, "recurrent": False}, {"recurrent": False}),
    ({"recurrent delay"}, {"recurrent_delay": 3}, {"recurrent_delay": 1}),
    ({"recurrent delay", "refractory period"}, {"recurrent_delay": None, "arp_ms": 6.0}, {}),
    ({"synaptic delays"}, {"max_delay": 5}, {}),
    (
        set(DROPPABLE) - {"input scaling"},
        {"tau_adaptation_ms": 50.0, "arp_ms": 6.0, "recurrent_delay": None, "max_delay": 5},
        {},
    ),
]


@pytest.mark.parametrize(("allow_dropping", "rich", "plain"), LOSSES)
def test_only_named_properties_are_dropped(allow_dropping, rich, plain):
    x, net, expected = made_spikes(), made(**rich), made(**plain)
    state = {k: v for k, v in net.state_dict().items() if k in expected.state_dict()}
    if "b" in plain:
        state = {k: 0 * v if k.endswith(".b") else v for k, v in state.items()}
    expected.load_state_dict(state)
    assert not torch.equal(net(x).scores, expected(x).scores)
    graph = to_nir(net, DT_MS, allow_dropping=allow_dropping)
    assert_equal_output(from_nir(graph, DT_MS), expected, x)
    to_nir(net, DT_MS, allow_dropping=DROPPABLE)
    for name in allow_dropping:
        message = (
            f"^layer_0: expected what NIR can represent, got {name}; `allow_dropping` may name "
        )
        with pytest.raises(ValueError, match=message):
            to_nir(net, DT_MS, allow_dropping=set(DROPPABLE) - {name})


def test_input_scaling_is_lost_only_if_named():
    x, net, plain = made_spikes(), made(input_events=20.0), made()
    message = "^layer_0: expected what NIR can represent, got input scaling; `allow_dropping`"
    with pytest.raises(ValueError, match=message):
        to_nir(net, DT_MS, allow_dropping=set(DROPPABLE) - {"input scaling"})
    assert not torch.equal(net(x).scores, plain(x).scores)
    graph = to_nir(net, DT_MS, allow_dropping={"input scaling"})
    assert_equal_output(from_nir(graph, DT_MS), plain, x)


@pytest.mark.parametrize(
    "options",
    [
        {"tau_adaptation_ms": 50.0, "b": 0.0},
        {"recurrent_delay": None},
        {"recurrent_delay": 3, "recurrent": False},
    ],
)
def test_properties_without_effect_need_no_permission(options):
    net = made(**options)
    assert_equal_output(from_nir(to_nir(net, DT_MS), DT_MS), net, made_spikes())


def with_parameter(net, name, value):
    with torch.no_grad():
        net.get_parameter(name)[..., -1] = value
    return net


class OtherLayer(ALIFLayer):
    """Subclass that may behave differently."""


class OtherReadout(LeakyReadout):
    """Subclass that may behave differently."""


def with_other_readout():
    net = made()
    net.readout = OtherReadout(10, 4, dt_ms=DT_MS).double()
    return net


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (made, {"readout": "LI"}, "^readout: expected one of li, lif, none, got 'LI'"),
        (made, {"dialect": "lava"}, "^dialect: expected one of nir, norse, .*, got 'lava'"),
        (
            lambda: made(arp_ms=6.0, max_delay=5),
            {"allow_dropping": ["synaptic delay"]},
            "^layer_0: expected .* got refractory period, synaptic delays; .*, synaptic delays, ",
        ),
        (with_other_readout, {}, "^readout: .* got class OtherReadout"),
        *[
            (
                lambda layer=layer: SpikingClassifier(12, 4, 10, 1, dt_ms=DT_MS, layer=layer),
                {"allow_dropping": DROPPABLE},
                f"^layer_0: .* got class {layer.__name__}",
            )
            for layer in (EulerAdLIFLayer, AdLIFLayer, CSiLIFLayer, OtherLayer)
        ],
        *[
            (
                lambda name=name, beta=beta: with_parameter(made(), f"{name}.beta", beta),
                {},
                f"^{label}: .* got beta outside 0 < beta < 1",
            )
            for name, label, beta in (
                ("layers.1", "layer_1", 1.0), ("readout", "readout", 0.0),
                ("layers.0", "layer_0", float("nan")),
            )
        ],
    ],
)  # fmt: skip
def test_networks_that_are_refused(net, options, message):
    with pytest.raises(ValueError, match=message):
        to_nir(net(), **({"dt_ms": DT_MS} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "Euler"}, "^decay: expected one of exact, euler, got 'Euler'"),
        ({"gain": "R"}, "^gain: expected one of weights, leak, r, none, got 'R'"),
    ],
)
def test_dialects_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dialect(**options)


def test_a_parametrised_layer_is_exported_with_its_effective_weights():
    net = made()
    for layer in (net.layers[0], net.readout):
        torch.nn.utils.parametrizations.weight_norm(layer, "weight")
        layer.parametrizations.weight.original0.data.mul_(1.5)  # pyright: ignore
    graph = to_nir(net, dt_ms=DT_MS)
    for layer in (net.layers[0], net.readout):
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    same = to_nir(net, dt_ms=DT_MS)
    nodes: dict[str, Any] = graph.nodes
    for name, other in same.nodes.items():
        if isinstance(other, nir.Affine):
            np.testing.assert_array_equal(nodes[name].weight, other.weight)


def test_any_readout_is_accepted_if_it_is_not_written():
    """`readout="none"` leaves it out of the graph."""
    net = with_other_readout()
    found = from_nir(to_nir(net, DT_MS, readout="none"), DT_MS)(made_spikes()).spikes
    for spikes, expected in zip(found, net(made_spikes()).spikes, strict=True):
        assert torch.equal(spikes, expected)


def test_unequal_sizes_and_a_copy_of_a_copy():
    net = from_nir(a_graph(), 1.0)
    assert_equal_output(from_nir(to_nir(net, 1.0), 1.0), net, made_spikes())


def shaped(shape: Any) -> nir.Input:
    return nir.Input({"input": shape})


def changed(**replaced) -> Any:
    return lambda: a_graph(**replaced)


def parameter(name, key, value) -> Any:
    """Graph with a node's parameter set to an array, or its last entry set to a number."""

    def make():
        graph = a_graph()
        array = getattr(graph.nodes[name], key)
        if np.isscalar(value):
            array[..., -1] = value
        else:
            setattr(graph.nodes[name], key, value)
        return graph

    return make


def edges(add=(), remove=(), nodes=()) -> Any:
    def make():
        graph = a_graph()
        graph.nodes.update(nodes)
        graph.edges = [e for e in graph.edges if e not in remove] + list(add)
        return graph

    return make


ONES = np.ones(5)
CUBA = nir.CubaLIF(ONES, ONES, ONES, ONES, ONES)
REC = nir.Linear(np.eye(5))


CHAIN = "^graph: expected one chain of nodes, got "
KINDS = "^graph: expected .Affine or Linear, LIF. once or more, .* got "
TAU = "^node '{}': expected tau in s with β from 0.001 to 0.999 for steps of 1 ms, got {:g}$"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # kinds of nodes
        (changed(z=CUBA), KINDS + "Affine LIF Linear CubaLIF Affine LI$"),
        (changed(w=nir.Scale(ONES)), KINDS + "Affine LIF Linear LIF Scale LI"),
        (changed(z=nir.LI(ONES, ONES, ONES)), KINDS + "Affine LIF Linear LI Affine LI"),
        (edges([("A.lif", "z")], [("A.lif", "1"), ("1", "z")]), KINDS + "Affine LIF LIF Affine LI"),
        (
            edges([("in", "w")], [("in", "0"), ("0", "A.lif"), ("A.lif", "1"), ("1", "z"),
                                  ("z", "w"), ("A.lif", "A.rec"), ("A.rec", "A.lif")]),
            KINDS + "Affine LI",
        ),
        # edges
        (changed(more=shaped(np.array([3]))), CHAIN + r"\['in', 'more'"),
        (changed(**{"in": REC}), CHAIN + r"\[\] and besides"),
        (edges(remove=[("read", "out")]), CHAIN + ".*'read'"),
        (
            edges([("z", "more"), ("more", "read")], nodes={"more": nir.Linear(np.ones((3, 5)))}),
            CHAIN + r".* and besides \[\('more', 'read'\), \('z', 'more'\)\]",
        ),
        (
            edges([("more", "read")], nodes={"more": nir.Linear(np.ones((3, 5)))}),
            CHAIN + r".* and besides \[\('more', 'read'\)\]",
        ),
        (edges([("w", "1")]), CHAIN + r".* and besides \[\('w', '1'\)\]"),
        # recurrence
        (edges([("z", "z")]), CHAIN + ".*'z', 'z'"),
        (
            edges([("z", "r"), ("r", "z")], nodes={"r": node_lif(np.random.default_rng(0), 5)}),
            CHAIN + r".* and besides \[\('r', 'z'\), \('z', 'r'\)\]",
        ),
        (edges([("z", "r"), ("r", "z")], nodes={"r": nir.Scale(ONES)}), CHAIN + ".*'r'"),
        (
            edges([("z", "r"), ("r", "z"), ("z", "s"), ("s", "z")], nodes={"r": REC, "s": REC}),
            CHAIN + r".* and besides \[\('r', 'z'\), \('z', 'r'\)\]",
        ),
        (edges([("w", "z")]), CHAIN + ".* and besides .*'read', 'out'"),
        (
            edges([("z", "r"), ("r", "z"), ("r", "A.lif")], nodes={"r": nir.Linear(np.eye(5))}),
            CHAIN + r".* and besides \[\('r', 'A.lif'\)\]",
        ),
        # numbers
        (parameter("z", "v_leak", 0.1), "^node 'z': expected v_leak = 0, got 0.1"),
        (parameter("z", "v_reset", -0.1), "^node 'z': expected v_reset = 0, got -0.1"),
        (parameter("read", "v_leak", 0.1), "^node 'read': expected v_leak = 0, got 0.1"),
        (parameter("z", "v_leak", np.nan), "^node 'z': expected v_leak = 0, got nan"),
        *[
            (parameter("z", "v_threshold", x), f"^node 'z': expected v_threshold > 0, got {x:g}")
            for x in (0.0, -1.0, np.nan)
        ],
        *[
            (parameter(name, "tau", tau), TAU.format(name, tau))
            for name, tau in (
                ("z", 20.0), ("z", 1.001), ("z", 1.44e-4), ("z", 0.0), ("z", -0.01), ("z", np.nan),
                ("z", np.inf), ("read", 20.0),
            )
        ],
    ],
)  # fmt: skip
def test_graphs_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        from_nir(make(), 1.0)


@pytest.mark.parametrize(
    "replaced",
    [
        {"1": nir.Linear(np.ones((5, 6)))},
        {"A.rec": nir.Linear(np.ones((7, 6)))},
        {"z": node_lif(np.random.default_rng(0), 6)},
        {"1": nir.Linear(np.ones((2, 5, 7)))},
    ],
)
def test_shapes_that_do_not_match(replaced):
    """nir checks shapes, unless told not to; then PyTorch does."""
    with pytest.raises((ValueError, RuntimeError), match="size|weight"):
        from_nir(a_graph(**replaced), 1.0)(made_spikes())


def test_without_nir_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    graph = a_graph()
    for call in (lambda: to_nir(made(), DT_MS), lambda: write("graph.nir", graph)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'blockspike\[nir\]'"):
            call()
