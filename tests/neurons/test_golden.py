"""Golden vectors from the authors' published code: spikes, membrane, threshold, gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from neuron_cases import METHODS, alif

from blockspike.neurons import Boxcar, FastSigmoid, MultiGaussian

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
SURROGATES = {"fast_sigmoid": FastSigmoid(), "boxcar": Boxcar(), "multi_gaussian": MultiGaussian()}


def load(case: dict, dtype: torch.dtype) -> tuple[dict, dict, dict]:
    """Arrays of a case, differentiable inputs, and options for `alif`."""
    arrays = dict(np.load(GOLDEN / case["file"]))
    names = ["current", "beta"] + ["p", "b"] * case["adapt"]
    names += ["recurrent_weight"] * case["recurrent"]
    inputs = {n: torch.tensor(arrays[n], dtype=dtype, requires_grad=True) for n in names}
    options = {
        "arp": case["arp"],
        "surrogate": SURROGATES[case["surrogate"]],
        "detach_spikes": case["detach"],
    }
    return arrays, inputs, options


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"][:-4])
def test_golden_float64(case, method):
    arrays, inputs, options = load(case, torch.float64)
    trace = alif(**inputs, **options, method=method, membrane=method != "blocks")
    np.testing.assert_array_equal(trace.spikes.detach().numpy(), arrays["spikes"])
    if method != "blocks":  # by its kernel
        membrane, threshold = trace.membrane.detach().numpy(), trace.threshold.detach().numpy()
        np.testing.assert_allclose(membrane, arrays["membrane"], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(threshold, arrays["threshold"], rtol=1e-6)

    trace.spikes.backward(torch.tensor(arrays["cotangent"]))
    kind = "blocks" if method.endswith("blocks") else "standard"
    for name, value in inputs.items():
        expected = arrays[f"{kind}_grad_{name}"]
        grad = torch.zeros_like(value) if value.grad is None else value.grad  # None = no influence
        expected = np.broadcast_to(expected, value.shape)  # stored as one 0 if there is no gradient
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            grad.numpy(), expected, rtol=1e-6, atol=1e-7 * scale, err_msg=name
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"][:-4])
def test_golden_spikes_float32(case, method):
    arrays, inputs, options = load(case, torch.float32)
    spikes = alif(**inputs, **options, method=method).spikes
    np.testing.assert_array_equal(spikes.detach().numpy(), arrays["spikes"])
