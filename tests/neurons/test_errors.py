"""Bad arguments raise a ValueError that names the argument, what was expected, and its value."""

import re

import pytest
import torch
from neuron_cases import METHODS, alif, make_inputs

import blockspike as bs

INPUTS = make_inputs((9, 2, 5), recurrent=True)
META = torch.device("meta")
BAD = [
    ({"current": torch.zeros(9, 0, 5)}, "current", "non-empty", "[9, 0, 5]"),
    ({"current": [1.0]}, "current", "tensor", "list"),
    ({"current": torch.zeros(9, 2, 5).long()}, "current", "float32 or float64", "int64"),
    ({"beta": torch.zeros(4).double()}, "beta", "[5]", "[4]"),
    ({"beta": 0.9}, "beta", "tensor", "0.9"),
    ({"beta": torch.zeros(5, device=META).double()}, "beta", "cpu", "meta"),
    ({"p": torch.zeros(5)}, "p", "torch.float64", "torch.float32"),
    ({"p": None}, "p, b", "both or neither", "only b"),
    ({"b": None}, "p, b", "both or neither", "only p"),
    ({"recurrent_weight": torch.zeros(5, 4).double()}, "recurrent_weight", "[5, 5]", "[5, 4]"),
    ({"arp": -1}, "arp", "≥ 0", "-1"),
    ({"arp": 1.0}, "arp", "int", "1.0"),
    ({"surrogate": "boxcar"}, "surrogate", "MultiGaussian", "'boxcar'"),
    ({"method": "quick"}, "method", "standard, fused, or blocks", "'quick'"),
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
