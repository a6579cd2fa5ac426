"""Bad arguments raise a ValueError that names the argument, what was expected, and its value."""

import re

import pytest
import torch
from neuron_cases import METHODS, alif, make_inputs

import blockspike as bs

INPUTS = make_inputs((9, 2, 5), recurrent=True)
META = torch.device("meta")
BAD = [
    ({"current": torch.zeros(9, 5)}, "current", "[T, B, N]", "[9, 5]"),
    ({"current": torch.zeros(0, 2, 5)}, "current", "non-empty", "[0, 2, 5]"),
    ({"current": torch.zeros(9, 0, 5)}, "current", "non-empty", "[9, 0, 5]"),
    ({"current": [1.0]}, "current", "tensor", "list"),
    ({"current": torch.zeros(9, 2, 5).half()}, "current", "float32 or float64", "float16"),
    ({"current": torch.zeros(9, 2, 5).long()}, "current", "float32 or float64", "int64"),
    ({"beta": torch.zeros(4).double()}, "beta", "[5]", "[4]"),
    ({"beta": torch.zeros(5, 1).double()}, "beta", "[5]", "[5, 1]"),
    ({"beta": 0.9}, "beta", "tensor", "float"),
    ({"beta": torch.zeros(5)}, "beta", "torch.float64", "torch.float32"),
    ({"beta": torch.zeros(5, device=META).double()}, "beta", "cpu", "meta"),
    ({"p": torch.zeros(()).double()}, "p", "[5]", "[]"),
    ({"p": torch.zeros(5)}, "p", "torch.float64", "torch.float32"),
    ({"p": None}, "p, b", "both or neither", "only b"),
    ({"b": torch.zeros(6).double()}, "b", "[5]", "[6]"),
    ({"b": torch.zeros(5, device=META).double()}, "b", "cpu", "meta"),
    ({"b": None}, "p, b", "both or neither", "only p"),
    ({"recurrent_weight": torch.zeros(5, 4).double()}, "recurrent_weight", "[5, 5]", "[5, 4]"),
    ({"recurrent_weight": torch.zeros(5, 5)}, "recurrent_weight", "float64", "float32"),
    ({"arp": -1}, "arp", "≥ 0", "-1"),
    ({"arp": 1.0}, "arp", "int", "1.0"),
    ({"arp": True}, "arp", "int", "True"),
    ({"surrogate": "boxcar"}, "surrogate", "MultiGaussian", "'boxcar'"),
    ({"method": "quick"}, "method", "standard, blocks, fused", "'quick'"),
]


@pytest.mark.parametrize(("change", "name", "expected", "given"), BAD)
def test_bad_argument(change, name, expected, given):
    for method in [change["method"]] if "method" in change else METHODS:
        with pytest.raises(ValueError, match=f"^{name}: ") as error:
            alif(**(INPUTS | change | {"method": method}))
        message = f"expected .*{re.escape(expected)}.*got .*{re.escape(given)}"
        assert re.search(message, str(error.value))


@pytest.mark.parametrize(("name", "value"), [("p", -0.75), ("b", -1.5)])
def test_blocks_refuse_a_threshold_that_may_fall_below_rest(name, value):
    """With such a threshold the equations give several spikes in a block, which has only one."""
    inputs = make_inputs((60, 2, 5))
    inputs["b"].data += 1.5
    inputs[name].data[2] = value
    loop, fused = (alif(**inputs, arp=3, method=method).spikes for method in ("standard", "fused"))
    assert torch.equal(loop, fused)
    assert (loop[:, :, 2].unfold(0, 4, 1).sum(-1) > 1).any()
    for method in ("blocks", "parallel blocks"):
        for grad in (True, False):
            message = f"^{name}: expected values ≥ 0 for 'blocks', got {value}$"
            with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message):
                alif(**inputs, arp=3, method=method)


MOST = 2**24


@pytest.mark.parametrize("method", METHODS)
def test_a_refractory_period_that_float32_cannot_count(method):
    current = torch.zeros(1, 1, 1).expand(MOST + 1, 1, 1)
    beta = torch.zeros(1)
    with pytest.raises(ValueError, match=f"^arp: expected at most {MOST} steps.*got {MOST + 1}$"):
        alif(current, beta, arp=MOST + 1, method=method)
    alif(current[:9], beta, arp=MOST + 1, method=method)  # too short to count that far


def test_the_longest_refractory_period_is_counted():
    current = torch.full((1, 1, 1), 9.0).expand(MOST + 3, 1, 1)
    spikes = alif(current, torch.zeros(1), arp=MOST).spikes
    assert spikes.flatten().nonzero().flatten().tolist() == [0, MOST + 1]
    spikes = alif(current.double(), torch.zeros(1).double(), arp=MOST + 1).spikes
    assert spikes.flatten().nonzero().flatten().tolist() == [0, MOST + 2]


def test_fused_on_another_device_names_the_method():
    inputs = {name: value.detach().to(META) for name, value in INPUTS.items()}
    with pytest.raises(ValueError, match="^method='fused': expected current on .*cpu.*got meta"):
        alif(**inputs, method="fused")


@pytest.mark.parametrize("step", [0, 4, 5, 37, 39])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_current_that_is_not_finite(method, recurrent, value, step):
    inputs = make_inputs((40, 3, 7), recurrent=recurrent)
    current = inputs["current"].detach()
    current[3, 1, 2] = 100.0  # a spike, so that steps 4 … 8 are refractory
    current[step, 1, 2] = float(value)
    with pytest.raises(ValueError, match="^current: expected finite") as error:
        alif(**(inputs | {"current": current}), arp=5, method=method)
    assert f"got {value} at step {step}, sample 1, neuron 2 (1 such values)" in str(error.value)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", ["beta", "p", "b", "recurrent_weight"])
@pytest.mark.parametrize("method", METHODS)
def test_parameter_that_is_not_finite(method, name, value, grad):
    inputs = make_inputs((40, 3, 7), recurrent=True)
    inputs[name].data.flatten()[3] = float(value)
    if name == "recurrent_weight":
        inputs["current"].data[:, :, 3] = 0  # the neuron of this weight is silent
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=f"^{name}: ") as error:
        alif(**inputs, arp=2, method=method)
    assert f"expected finite values, got {value} (1 such values)" in str(error.value)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("arp", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_adaptation_that_overflows(method, arp, grad):
    """An infinite threshold would silence the neuron, and without adaptation one of 0 · Inf."""
    current = torch.full((4000, 1, 2), 0.1)
    beta = torch.full((2,), 0.95, requires_grad=grad)
    p, b = torch.tensor([0.9, 1.1]), torch.tensor([0.1, 0.0])
    with pytest.raises(bs.NotFiniteError, match="^(adaptation|membrane): expected finite") as error:
        alif(current, beta, p, b, arp=arp, method=method)
    assert error.value.neuron == 1


@pytest.mark.parametrize("method", METHODS)
def test_membrane_that_overflows(method):
    inputs = make_inputs((400, 1, 2), dtype=torch.float32)
    current = torch.full((400, 1, 2), -1.0)
    beta = torch.full((2,), 10.0)
    with pytest.raises(ValueError, match="^membrane: expected finite values, got NaN or Inf"):
        alif(current, beta, inputs["p"], inputs["b"], method=method)
