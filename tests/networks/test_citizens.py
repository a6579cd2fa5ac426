"""Networks and neurons as PyTorch's other tools use them: each works, or is refused in one line."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import blockspike as bs

INPUT = (torch.rand(30, 4, 20, generator=torch.Generator().manual_seed(0)) < 0.3).float()
WORDS = r"^alif: expected method='standard' in a transform of torch.func .*, got '{}'$"


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


def test_transforms_of_functions_have_the_gradient_of_backward():
    made = network(method="standard")
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


@pytest.mark.parametrize("method", ["fused", "blocks"])
@pytest.mark.parametrize("transform", [grad, vmap])
def test_kernels_have_no_transforms(transform, method):
    current, beta = torch.rand(20, 2, 4), torch.full((4,), 0.9)

    def n_spikes(beta: Tensor) -> Tensor:
        return bs.alif(current, beta, method=method).spikes.sum()

    with pytest.raises(RuntimeError, match=WORDS.format(method)):
        transform(n_spikes)(beta if transform is grad else beta[None])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("method", ["fused", "standard"])
def test_a_compiled_network_is_the_network(method):
    made = network(method=method)
    expected, ours = made(INPUT), torch.compile(made, backend="aot_eager")(INPUT)
    assert torch.equal(ours.scores, expected.scores)
    with_gradients = [x for x in made.parameters() if x.requires_grad]
    both = [torch.autograd.grad(x.scores.square().sum(), with_gradients) for x in (ours, expected)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("max_delay", [0, 3])
def test_a_compiled_network_takes_batches_of_other_sizes(max_delay):
    torch._dynamo.reset()
    made = network(max_delay=max_delay).eval()
    compiled = torch.compile(made, backend="aot_eager")
    for x in (INPUT, INPUT[:, :1], INPUT[:-3], INPUT[:-5, 1:]):
        assert torch.equal(compiled(x).scores, made(x).scores)


def test_hooks_that_do_not_run_are_told():
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


def test_a_network_is_not_exported():
    with pytest.raises(
        RuntimeError, match="^alif: expected to run eagerly, got torch.export, .*to_nir"
    ):
        torch.export.export(network().eval(), (INPUT,))


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
