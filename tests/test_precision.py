"""Mixed precision, float64 and refused types, on every path and with every method."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from neuron_cases import distance_of_alif
from pytorch_lightning.plugins.precision import DoublePrecision
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from blockspike.fitting.distance import Window, squared_distance
from blockspike.fitting.population import PhysicalPopulation
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.convolution import causal_convolution
from blockspike.networks.layers import ALIFLayer, EulerAdLIFLayer
from blockspike.networks.readout import LeakyReadout
from blockspike.networks.synapses import synaptic_current
from blockspike.neurons import alif, leaky_integrate
from blockspike.neurons.events import EventBatch
from blockspike.neurons.surrogates import MultiGaussian
from blockspike.training.classification import ClassificationModule
from tiers import mostly_slow

LAYERS: dict[str, Callable[..., Any]] = {
    "standard": partial(ALIFLayer, method="standard", arp_ms=2.0),
    "blocks": partial(ALIFLayer, method="blocks", arp_ms=2.0),
    "fused": partial(ALIFLayer, method="fused", arp_ms=2.0),
    "se_adlif, standard": partial(
        EulerAdLIFLayer, method="standard", q=5.0, tau_membrane_ms=(0.5, 1.0)
    ),
    "se_adlif, fused": partial(EulerAdLIFLayer, method="fused", q=5.0, tau_membrane_ms=(0.5, 1.0)),
}
# density of the input, whether it comes as events, and `synapses`
PATHS: dict[str, tuple[float, bool, Any]] = {
    "sparse events, auto": (0.05, True, "auto"),
    "many events, auto": (0.5, True, "auto"),  # becomes dense
    "events as events": (0.5, True, "events"),
    "events as a tensor": (0.05, True, "dense"),
    "a tensor": (0.5, False, "auto"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "delays, in training": {"max_delay": 3},
    "delays, in evaluation": {"max_delay": 3},
}
QUICK = ("blocks", "fused", "se_adlif, fused", "plain", "delays, in training")
EVERY_PATH = [
    pytest.mark.parametrize("options", mostly_slow(OPTIONS, lambda name: name in QUICK)),
    pytest.mark.parametrize("path", PATHS),
    pytest.mark.parametrize("layer", mostly_slow(LAYERS, lambda name: name in QUICK)),
]


def every_path(test):
    """Parametrise a test by layer, path and options."""
    for mark in EVERY_PATH:
        test = mark(test)
    return test


def on_grid(x: Tensor) -> Tensor:
    """Round to multiples of 1/8, whose sums up to 32 are exact even in bfloat16."""
    return torch.round(8 * x) / 8


def make_network(layer: str, path: str, options: str) -> SpikingClassifier:
    """Make a network whose layers both spike; recurrent weights are not exact in half precision."""
    torch.manual_seed(0)
    make = partial(LAYERS[layer], synapses=PATHS[path][2], **OPTIONS[options])
    net = SpikingClassifier(30, 4, 16, dt_ms=1.0, synapses=PATHS[path][2], layer=make)
    with torch.no_grad():
        for module in (*net.layers, net.readout):
            module.weight.copy_(on_grid(8 * module.weight.uniform_(-0.1, 0.25)))  # pyright: ignore
        for module in net.layers:
            module.recurrent_weight.mul_(0.1003)  # pyright: ignore
    return net.train("evaluation" not in options)


def make_input(path: str) -> EventBatch | Tensor:
    density, as_events, _ = PATHS[path]
    generator = torch.Generator().manual_seed(1)
    spikes = torch.rand(40, 3, 30, generator=generator, dtype=torch.float32) < density
    return EventBatch.from_dense(spikes) if as_events else spikes


def run(net: SpikingClassifier, x: EventBatch | Tensor, autocast: bool = False):
    """Run forward and backward; returns spikes, scores and gradients by name."""
    torch.manual_seed(1)  # delays are drawn
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = net(x)
        loss = F.cross_entropy(output.scores, torch.tensor([0, 1, 2]))
    loss.backward()
    needed = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    if not net.training:  # in evaluation, delays are whole steps and have no gradient
        needed = [(name, p) for name, p in needed if not name.endswith("delays.delay")]
    grads: dict[str, Any] = {name: p.grad for name, p in needed}
    return [*output.spikes, output.scores], grads


@every_path
def test_autocast_rounds_only_products(layer, path, options):
    """If products are exact in bfloat16, the results are bit-identical."""
    expected, expected_grads = run(make_network(layer, path, options), make_input(path))
    found, grads = run(make_network(layer, path, options), make_input(path), autocast=True)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32 and reference.any()
        assert torch.equal(value, reference)
    for name, reference in expected_grads.items():
        assert reference is not None and grads[name].dtype == torch.float32, name
        error = (grads[name] - reference).abs().max()
        assert error <= 0.05 * reference.abs().max(), name


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@every_path
def test_float64_throughout(layer, path, options):
    single = run(make_network(layer, path, options), make_input(path))[0][-1].detach()
    net = make_network(layer, path, options).double()
    with default_dtype(torch.float64):
        made = make_network(layer, path, options)
        assert {p.dtype for p in made.parameters()} == {torch.float64}
        made.load_state_dict(net.state_dict())
        results = [run(net, make_input(path)), run(made, make_input(path))]
    results.append(run(make_network(layer, path, options).double(), make_input(path)))
    for values, grads in results:
        for value in (*values, *grads.values()):
            assert value is not None and value.dtype == torch.float64
        torch.testing.assert_close(values[-1].float(), single, rtol=1e-3, atol=1e-3)
    for values, grads in results[1:]:
        assert all(map(torch.equal, values, results[0][0]))
        assert all(torch.equal(grads[name], grad) for name, grad in results[0][1].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_take_half_precision_under_autocast(dtype):
    """A custom `nn.Linear` gives them half precision."""
    torch.manual_seed(0)
    current, beta = on_grid(torch.randn(20, 2, 5)), torch.full((5,), 0.9)
    weight = torch.full((5, 5), 0.1003)
    half = current.to(dtype).requires_grad_()
    for method in ("standard", "blocks", "fused"):
        options: dict[str, Any] = {"method": method, "recurrent_weight": weight}
        with torch.autocast("cpu", dtype):
            spikes = alif(half, beta, **options).spikes
            spikes.sum().backward()  # under autocast too, as some people do
        assert torch.equal(spikes, alif(current, beta, **options).spikes) and spikes.any()
        assert half.grad is not None and half.grad.dtype == dtype
    with torch.autocast("cpu", dtype):
        membrane = leaky_integrate(half, beta)
        convolved = causal_convolution(half, weight[None])
    assert torch.equal(membrane, leaky_integrate(current, beta))
    assert torch.equal(convolved, causal_convolution(current, weight[None]))


@pytest.mark.slow
def test_fitting_under_autocast_and_in_float64():
    torch.manual_seed(0)
    current, target = 1 + torch.randn(200, 1, 2), (torch.rand(200, 1, 2) < 0.1).float()
    make = partial(PhysicalPopulation, 2, 3, dt_ms=1.0, n_trials=0)
    for method in ("standard", "fused", "blocks"):
        found = []
        for autocast in (False, True):
            population = make(method=method)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = population.distance(current, target, 0.9, Window(0, 150, 200))[0].sum()
            loss.backward()
            found.append([p.grad for p in population.parameters() if p.requires_grad])
        assert all(map(torch.equal, *found)) and all(grad.any() for grad in found[0])
        double = make(method=method).double()
        fitted = double.distance(current.double(), target.double(), 0.9, Window(0, 150, 200))[0]
        assert fitted.dtype == torch.float64
        fitted.sum().backward()


HALF = torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leaky_integrate(torch.zeros(9, 2, 5), torch.zeros(5).double()),
         "^current, beta: expected .*got .*float32 and .*float64$"),
    ],
)  # fmt: skip
def test_other_types_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("options", OPTIONS)
def test_spikes_as_whole_numbers(options, dtype):
    net = make_network("fused", "a tensor", options)
    spikes = make_input("a tensor")
    assert isinstance(spikes, Tensor)

    def seeded(module: torch.nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(1)  # delays are drawn
        result = module(x)
        return result if isinstance(result, Tensor) else result.scores

    assert torch.equal(seeded(net, spikes.to(dtype)), seeded(net, spikes.float()))
    net.double()
    assert torch.equal(seeded(net, spikes.to(dtype)), seeded(net, spikes.double()))
    net.input_events = 50.0
    assert torch.equal(seeded(net, spikes.to(dtype)), seeded(net, spikes.double()))
    layer = ALIFLayer(30, 2, dt_ms=1.0, **OPTIONS[options])
    for module in (LeakyReadout(30, 2, dt_ms=1.0), layer):
        assert torch.equal(seeded(module, spikes.to(dtype)), seeded(module, spikes.float()))


def test_lightning_converts_an_event_batch():
    events = EventBatch.from_dense(torch.ones(3, 2, 4, dtype=torch.int64)).scaled_to(5.0)
    assert events.scale is not None
    events.scale = events.scale.float()
    found, labels = DoublePrecision().convert_input((events, torch.zeros(2)))
    assert found.scale.dtype == labels.dtype == torch.float64
    assert torch.equal(found.row_ptr, events.row_ptr) and found.shape == events.shape
    assert found.unit is events.unit  # nothing is copied
    assert torch.equal(found.dense(), events.dense())


@pytest.mark.parametrize("input_events", [None, 40.0])
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_lightning_trains_in(precision, input_events):
    """Some batches are sparse and some are not, so that `auto` switches."""
    generator = torch.Generator().manual_seed(0)
    spikes = [torch.rand(20, 6, 12, generator=generator) < share for share in (0.05, 0.6)] * 2
    batches = [(EventBatch.from_dense(x), torch.arange(6) % 2) for x in spikes]
    pl.seed_everything(0, verbose=False)
    network = SpikingClassifier(12, 2, 16, dt_ms=1.0, arp_ms=2.0, input_events=input_events)
    module = ClassificationModule(network, 2, 1.0, partial(torch.optim.Adam, lr=0.01))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        precision=precision,
    )  # fmt: skip
    loader = partial(DataLoader[Any], batches, batch_size=None, num_workers=0)  # pyright: ignore
    before = [p.detach().clone() for p in module.parameters()]
    trainer.fit(module, loader(), loader())
    expected = torch.float64 if precision == "64-true" else torch.float32
    changed = [
        not torch.equal(p.to(q), q) for p, q in zip(module.parameters(), before, strict=True)
    ]
    assert {p.dtype for p in module.parameters()} == {expected} and sum(changed) >= 9
    assert trainer.callback_metrics["val/loss"].isfinite()


@pytest.mark.slow
def test_squared_distances_and_fits_of_half_precision_use_single():
    spikes, target = torch.rand(9, 2, 4).round(), torch.rand(9, 2, 4).round()
    expected = squared_distance(spikes, target, 0.9, Window(0, 9, 9))[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distance(spikes.bfloat16(), target.bfloat16(), 0.9, Window(0, 9, 9))[0]
        values = [torch.rand(4).bfloat16() for _ in range(6)]
        options: dict[str, Any] = {"decay": 0.9, "arp": 1, "surrogate": MultiGaussian()}
        fitted, _ = distance_of_alif(spikes, target, *values, window=Window(0, 9, 9), **options)
    assert torch.equal(found, expected)
    assert fitted.dtype == torch.float32


def test_synapses_alone_give_single_precision():
    weight, bias = on_grid(torch.randn(2, 4, 30)), torch.zeros(4)
    for path in PATHS:
        x, mode = make_input(path), PATHS[path][2]
        with torch.autocast("cpu", torch.bfloat16):
            current = synaptic_current(x, weight, bias, mode=mode)
        assert torch.equal(current, synaptic_current(x, weight, bias, mode=mode))
        assert current.dtype == torch.float32
