"""Every peer makes a layer that can be timed, and the closest ones spike like `alif`."""

import importlib
import sys
from importlib import metadata
from typing import Any

import pytest
import torch

from blockspike.benchmark import peers
from blockspike.benchmark.peers import PEERS, Peer, version_of
from blockspike.neurons import alif

N_STEPS, BATCH, N_INPUTS, N_UNITS = 12, 3, 10, 7
BY_NAME = {peer.name: peer for peer in PEERS}
each_peer = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
# torch.compile warns about its own actions.
warnings_of_compile = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture
def no_packages(monkeypatch):
    """Hide all peers' packages, even those already imported."""

    def find_none(name: str):
        raise metadata.PackageNotFoundError(name)

    roots = {peer.package for peer in PEERS}
    for name in roots | {name for name in sys.modules if name.split(".")[0] in roots}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "blockspike.benchmark.jax_peers", raising=False)
    monkeypatch.setattr(metadata, "version", find_none)


def make(peer: Peer, recurrent: bool) -> Any:
    """Make the peer's layer; skip if its package, from the extra `peers`, is missing."""
    if version_of(peer.package) is None:
        pytest.skip(f"{peer.package} is not installed")
    torch.manual_seed(0)
    return peer.make(N_INPUTS, N_UNITS, recurrent, 0)


def inputs(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.rand(N_STEPS, BATCH, N_INPUTS, generator=generator)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((peer, recurrent), marks=warnings_of_compile if "compile" in peer.name else ())
        for peer in PEERS
        for recurrent in ((False, True) if peer.has_recurrent else (False,))
    ],
    ids=lambda param: f"{param[0].name}{' recurrent' if param[1] else ''}",
)
def layer(request):
    """One layer for all tests, because one of them takes seconds to compile."""
    return make(*request.param)


@pytest.fixture
def weights(layer):
    """The layer's matrices: [N, inputs] first, then [N, …, N] if it is recurrent."""
    matrices = [weight for weight in layer.parameters() if weight.ndim == 2]
    return sorted(matrices, key=lambda weight: weight.shape[1] != N_INPUTS)


def test_names():
    assert len(BY_NAME) == len(PEERS)
    assert all(peer.differs and {*peer.devices} <= {"cpu", "cuda"} for peer in PEERS)


@pytest.mark.usefixtures("no_packages")
def test_importing_peers_needs_no_package(monkeypatch):
    monkeypatch.delitem(sys.modules, peers.__name__)
    assert importlib.import_module(peers.__name__) is not peers


@each_peer
@pytest.mark.usefixtures("no_packages")
def test_a_missing_package_is_named(peer):
    assert version_of(peer.package) is None
    with pytest.raises(ImportError, match=f"{peer.package}|jax"):
        peer.make(N_INPUTS, N_UNITS, False, 0)


def test_spikes(layer):
    spikes = layer(inputs())
    assert spikes.shape == (N_STEPS, BATCH, N_UNITS) and spikes.dtype == torch.float32
    assert set(spikes.unique().tolist()) == {0.0, 1.0}


def test_gradient_reaches_the_weights(layer, weights):
    grads = torch.autograd.grad(layer(inputs()).sum(), weights)
    assert weights[0].shape == (N_UNITS, N_INPUTS)
    assert all(grad.isfinite().all() and grad[:, -N_UNITS:].any() for grad in grads)


def test_recurrent_weights_only_if_recurrent(request, weights):
    recurrent = request.node.callspec.params["layer"][1]
    assert len(weights) == 1 + recurrent


def test_every_call_starts_at_rest(layer, weights):
    results = []
    for seed in (1, 2, 1):
        spikes = layer(inputs(seed))
        results.append((spikes, *torch.autograd.grad(spikes.sum(), weights)))
    first, other, again = results
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_call_leaves_nothing_behind(layer):
    spikes = layer(inputs())
    assert spikes.grad_fn is not None
    for module in layer.modules():
        stores = [vars(module), *(x for x in vars(module).values() if isinstance(x, dict))]
        kept = [x for store in stores for x in store.values() if isinstance(x, torch.Tensor)]
        assert all(x.grad_fn is None for x in kept)


def test_sinabs_does_not_import_samna():
    make(BY_NAME["sinabs"], True)
    assert "samna" not in sys.modules  # the one on PyPI installs another package when imported


def fire(layer, b: float, recurrent_weight=None):
    """Spikes of `alif` for the layer's current, without a refractory period."""
    beta = torch.full((N_UNITS,), 0.9)
    with torch.no_grad():
        current = layer.synapses(inputs())
        b_ = torch.full((N_UNITS,), b)
        weight = None if recurrent_weight is None else recurrent_weight.contiguous()
        return alif(
            current, beta, beta, b_, arp=0, recurrent_weight=weight, method="standard"
        ).spikes


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(
    ("name", "b"),
    [("sinabs", 1.0), ("SpikingJelly (FlexSN)", 1.0), ("SpikingJelly (LIFNode)", 0.0)],
)
def test_layers_spike_like_alif(name, b, recurrent):
    layer = make(BY_NAME[name], recurrent)
    weight = None
    if recurrent:
        matrices = [w for key, w in layer.named_parameters() if key.startswith("neurons.r")]
        weight = matrices[0][:, -N_UNITS:]
    assert torch.equal(layer(inputs()), fire(layer, b, weight))


def test_norse_spikes_like_alif_a_step_later():
    layer = make(BY_NAME["Norse"], False)
    spikes = layer(inputs())
    with torch.no_grad():
        layer.synapses.weight *= 0.1
        layer.synapses.bias *= 0.1
    assert torch.equal(spikes[1:], fire(layer, 1.0)[:-1]) and not spikes[0].any()
