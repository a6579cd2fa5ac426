"""Networks and neurons as PyTorch's other tools use them."""

import copy
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

import blockspike as bs
from blockspike.networks.dropout_cpu import dropout_mask
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.events import EventBatch

INPUT = (torch.rand(30, 4, 20, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def network(**options) -> bs.SpikingClassifier:
    torch.manual_seed(0)
    made = bs.SpikingClassifier(20, 3, n_hidden=8, dt_ms=2.0, detach_spikes=False, **options)
    with torch.no_grad():
        for layer in made.layers:
            layer.get_parameter("weight").mul_(5)  # so that there are spikes
    return made


def loss_of(made: torch.nn.Module):
    return lambda parameters: functional_call(made, parameters, (INPUT,)).scores.square().sum()


def parameters_of(made: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in made.named_parameters()}


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_transforms_of_functions_have_the_gradient_of_backward(method):
    made = network(method=method)
    parameters = parameters_of(made)
    scores = made(INPUT).scores.square().sum()
    trained = {name: value for name, value in made.named_parameters() if value.requires_grad}
    expected = torch.autograd.grad(scores, list(trained.values()))
    ours = grad(loss_of(made))(parameters)
    for name, gradient in zip(trained, expected, strict=True):
        assert gradient.abs().max() > 0
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4 * scale)
    batch = (bs.EventBatch.from_dense(INPUT),)
    of_events = grad(lambda p: functional_call(made, p, batch).scores.square().sum())(parameters)
    for name, gradient in ours.items():
        torch.testing.assert_close(of_events[name], gradient, rtol=1e-4, atol=1e-2)
    several = {name: torch.stack([x, 0.9 * x]) for name, x in parameters.items()}
    each = [loss_of(made)({name: x[i] for name, x in several.items()}) for i in range(2)]
    torch.testing.assert_close(vmap(loss_of(made))(several), torch.stack(each))
    assert each[0] != each[1]
    assert vmap(grad(loss_of(made)))(several)["layers.0.beta"].shape == (2, 8)


def test_gradients_of_single_samples():
    made = network()
    parameters = parameters_of(made)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(made, parameters, (sample[:, None],)).scores.square().sum()

    found = vmap(grad(loss), in_dims=(None, 1))(parameters, INPUT)
    for i in range(INPUT.shape[1]):
        alone = torch.autograd.grad(
            loss(dict(made.named_parameters()), INPUT[:, i]), made.layers[0].get_parameter("weight")
        )[0]
        torch.testing.assert_close(found["layers.0.weight"][i], alone)
    assert found["layers.0.weight"].abs().sum() > 0


def test_parallel_blocks_have_transforms():
    current, beta = torch.rand(20, 2, 4), torch.full((4,), 0.9, requires_grad=True)

    def total(beta):
        trace = bs.alif(current, beta, arp=2, method="blocks", membrane=True)  # not by the kernel
        return trace.spikes.sum()

    (expected,) = torch.autograd.grad(total(beta), beta)
    assert torch.equal(grad(total)(beta.detach()), expected) and expected.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "standard"},
        {"max_delay": 9, "recurrent_max_delay": 6},
        {"max_delay": 9, "synapses": "dense"},
        {"max_delay": 9, "input_events": 20.0},
    ],
    ids=str,
)
def test_a_compiled_network_is_the_network(options):
    """With drawn delays: for the same draws, and without compiling again as they narrow."""
    torch._dynamo.reset()
    made = network(**options)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    with_gradients = [x for x in made.parameters() if x.requires_grad]
    for x in (INPUT, bs.EventBatch.from_dense(INPUT)):
        for progress in (0.0, 0.3):
            made.anneal_(progress)
            both = []
            with torch._dynamo.config.patch(error_on_recompile=progress > 0):
                for own in (compiled, made):
                    torch.manual_seed(0)
                    scores = own(x).scores
                    both.append(
                        [scores, *torch.autograd.grad(scores.square().sum(), with_gradients)]
                    )
            assert torch.equal(both[0][0], both[1][0])
            torch.testing.assert_close(*both, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("max_delay", [0, 3])
def test_a_compiled_network_takes_batches_of_other_sizes(max_delay):
    torch._dynamo.reset()
    made = network(max_delay=max_delay).eval()
    compiled = torch.compile(made, backend="aot_eager")
    for x in (INPUT, INPUT[:, :1], INPUT[:-3], INPUT[:-5, 1:]):
        assert torch.equal(compiled(x).scores, made(x).scores)


def test_hooks_that_do_not_run_are_reported():
    made = network()
    made.readout.register_forward_hook(lambda *_: None)
    made(INPUT)  # the readout is called, so its hooks run
    layer = made.layers[0]
    called = []
    handle = layer.register_forward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="layers.0: hooks of hidden layers do not run"):
        made(INPUT)
    layer(INPUT)
    assert called == [1]
    handle.remove()
    made(INPUT)


_LOAD = """
import sys, torch, blockspike.networks
program, given, expected = sys.argv[1:]
output = torch.export.load(program).module()(torch.load(given))
assert torch.equal(output.scores, torch.load(expected))
print("equal")
"""


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of weights that are transposed
@pytest.mark.parametrize("max_delay", [0, 3])
def test_an_exported_network_gives_the_same_scores_in_another_process(tmp_path, max_delay):
    made = network(max_delay=max_delay).eval()
    paths = [tmp_path / name for name in ("network.pt2", "input.pt", "scores.pt")]
    torch.export.save(torch.export.export(made, (INPUT,)), paths[0])
    torch.save(INPUT, paths[1])
    torch.save(made(INPUT).scores, paths[2])
    command = [sys.executable, "-c", _LOAD, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


@torch.no_grad()
def test_a_network_exported_with_its_state_runs_in_pieces():
    made = network().eval()
    state = made(INPUT[:10]).state
    program = torch.export.export(made, (INPUT[:10], state)).module()
    for first in (10, 20):
        piece, output = INPUT[first : first + 10], program(INPUT[first : first + 10], state)
        expected = made(piece, state)
        assert torch.equal(output.scores, expected.scores)
        state = output.state
        assert torch.equal(state.layers[1].values, expected.state.layers[1].values)


def test_spikes_may_be_changed_in_place():
    current, beta = torch.rand(20, 2, 3, requires_grad=True), torch.full((3,), 0.9)
    grads = []
    for method in ("standard", "fused"):
        spikes = bs.alif(current, beta, method=method).spikes
        spikes[:5] = 0
        grads.append(torch.autograd.grad(spikes.mul_(2).sum(), current)[0])
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0


def test_a_network_is_made_on_the_meta_device():
    with torch.device("meta"):
        made = network()
    assert "beta on meta" in repr(made)
    with pytest.warns(UserWarning, match="to_empty .* load_state_dict"):
        made.to_empty(device="cpu")
    made.load_state_dict((whole := network()).state_dict())
    assert torch.equal(made(INPUT).scores, whole(INPUT).scores)


def test_copies_are_equal():
    made = network(max_delay=2)
    torch.manual_seed(0)  # delays are drawn
    expected = made(INPUT).scores
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.manual_seed(0)
        assert torch.equal(other(INPUT).scores, expected)


def test_a_representation_has_sizes_and_values():
    shown = repr(network(max_delay=3, arp_ms=4.0))
    for words in (
        "20, 8, max_delay=3, detach_spikes=False, beta=0.9048, p=0.9868, b=1 (fixed), arp=2",
        "Delays(max_delay=3, sigma=1.5)",
        "LeakyReadout(8, 3, beta=",
    ):
        assert words in shown, shown
    shown = repr(bs.EulerAdLIFLayer(20, 4, dt_ms=1.0, recurrent=False))
    assert "20, 4, recurrent=False" in shown and "a=0…1" in shown and "euler='symplectic'" in shown


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # of make_dual
def test_forward_mode_stays_with_the_loop():
    current, beta = torch.ones(5, 1, 2), torch.full((2,), 0.9)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(current, torch.ones_like(current))
        assert bs.alif(current, beta).spikes.sum() > 0
        for method in ("fused", "blocks"):
            with pytest.raises(NotImplementedError, match="jvp"):  # PyTorch's own message
                bs.alif(dual, beta, method=method)


def test_second_derivatives_stay_with_the_loop():
    current, beta = torch.rand(20, 2, 3, requires_grad=True), torch.full((3,), 0.9)
    spikes = bs.alif(current, beta).spikes.sum()
    (first,) = torch.autograd.grad(spikes, current, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(first.sum(), current)


def test_kernels_keep_to_the_device_of_their_input():
    layer, x = bs.ALIFLayer(6, 4, dt_ms=1.0, recurrent=False, max_delay=3), torch.rand(5, 2, 6)
    torch.set_default_device("meta")
    try:
        layer(x).sum().backward()
        layer(EventBatch.from_dense((x > 0.5).float())).sum().backward()
        assert dropout_mask(x, 0.5).device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_neurons_take_half_precision_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.ones(5, 1, 2).bfloat16()
        ones = torch.ones(2)
        assert bs.c_silif(half, ones, ones, ones, ones).spikes.dtype == torch.float32


class Graded(torch.nn.Module):
    """A layer that returns other values than spikes."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def trace(self, x, state=None, *, events=None, membrane=False):
        return bs.SpikeTrace(torch.full(x.shape, self.value), bs.NeuronState("none", (), x))


def test_spikes_off_by_rounding_are_spikes():
    """As those of a straight-through estimator are: the spike + x − x."""
    x = torch.randn(300, 2, 70)
    spikes = (x > 1.5).float() + x - x
    assert not torch.equal(spikes, spikes.round())
    row_ptr, unit = SpikeEvents(spikes).row_ptr_and_unit
    expected = EventBatch.from_dense(spikes.round())
    assert row_ptr.tolist() == expected.row_ptr.tolist()
    assert unit.tolist() == expected.unit.tolist()


@pytest.mark.parametrize("value", [0.25, 0.5, 0.999, 3.0, -1.0, float("nan")])
def test_values_other_than_spikes_are_refused_as_events(value):
    trace, readout = Graded(value).trace(torch.zeros(40, 1, 60)), bs.LeakyReadout(60, 2, dt_ms=1.0)
    with pytest.raises(ValueError, match="^spikes: expected 0 or 1, got"):
        readout(trace.spikes, trace.events)
    readout.synapses = "dense"
    assert readout(trace.spikes, trace.events).abs().sum() != 0


def test_bytes_other_than_0_and_1_are_one_event_each():
    many = torch.full((3, 1, 70), 200, dtype=torch.uint8)
    row_ptr, unit = SpikeEvents(many).row_ptr_and_unit
    assert row_ptr.tolist() == [0, 70, 140, 210] and unit.tolist() == list(range(70)) * 3


def test_threads_that_train_one_layer_draw_for_themselves():
    drawn = []

    class Layer(bs.ALIFLayer):
        def simulate(self, current, **options):
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=self.trace, args=(torch.zeros(3, 1, 6),))
                other.start()
                other.join()
                drawn.append(options["recurrent_weight"])
            return super().simulate(current, **options)

    layer = Layer(6, 4, dt_ms=1.0, recurrent_dropout=0.9)
    layer.train()(torch.zeros(3, 1, 6))
    assert drawn[0] is not layer.recurrent_weight
