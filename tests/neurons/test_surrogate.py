"""Surrogate derivatives against formulas in plain Python, and the kernels against PyTorch."""

import math

import numpy as np
import pytest
import torch
from neuron_cases import DTYPES, SURROGATES

from blockspike.neurons import Boxcar, FastSigmoid, MultiGaussian, alif
from blockspike.neurons.cpu.surrogate import exp2_negative, surrogate_code, surrogate_derivative
from blockspike.neurons.surrogate import spike

EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def normal(x, mean, std):
    return math.exp(-((x - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi * std**2)


def formula(surrogate, u: float) -> float:
    """Surrogate derivative at one margin (docs/paper.md, Surrogates)."""
    if isinstance(surrogate, FastSigmoid):
        return (10 * abs(u) + 1) ** -2
    if isinstance(surrogate, Boxcar):
        return 1.0 if -0.5 < u <= 0.5 else 0.0
    return 0.5 * (1.15 * normal(u, 0, 0.5) - 0.15 * (normal(u, 0.5, 3) + normal(u, -0.5, 3)))


def margins(dtype) -> np.ndarray:
    """Margins of both signs, from denormal to 1e12, with the boxcar's corners and neighbours."""
    tiny = np.finfo(dtype).tiny
    positive = np.concatenate(
        [
            [0.0, 0.5, 1.0, 6.3, 6.4, 12.5, 39.9, 40.0, 41.0, 1e3, 1e6, 1e12],
            [tiny / 8, tiny, tiny * 8, np.sqrt(tiny), np.finfo(dtype).eps],
            np.geomspace(1e-30, 1e3, 400),
            np.linspace(0, 45, 901),
        ]
    ).astype(dtype)
    with np.errstate(under="ignore"):
        near = np.nextafter(positive, dtype(0)), np.nextafter(positive, dtype(2000))
    positive = np.concatenate([positive, *near])
    return np.concatenate([positive, -positive])


def kernel_derivative(surrogate, u: np.ndarray) -> np.ndarray:
    out = np.full_like(u, np.nan)
    surrogate_derivative(surrogate_code(surrogate), u, out)
    return out


def tolerance(surrogate, u: np.ndarray, rtol: float) -> np.ndarray:
    """Tolerance `rtol` relative to the formula's terms; absolute below 1e−15 of the peak."""
    if not isinstance(surrogate, MultiGaussian):
        return rtol * np.array([formula(surrogate, x) for x in u])
    terms = [0.575 * normal(x, 0, 0.5) + 0.15 * normal(abs(x), 0.5, 3) for x in u]
    return rtol * np.array(terms) + 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_formula(surrogate, dtype):
    u = margins(dtype)
    ours = surrogate.derivative(torch.from_numpy(u)).numpy()
    expected = np.array([formula(surrogate, float(x)) for x in u])
    assert ours.dtype == dtype
    allowed = tolerance(surrogate, u.astype(float), 50 * EPS[dtype])
    assert (np.abs(ours - expected) <= allowed).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_kernel_equals_the_torch_derivative(surrogate, dtype):
    u = margins(dtype)
    expected = surrogate.derivative(torch.from_numpy(u)).numpy()
    ours = kernel_derivative(surrogate, u)
    assert ours.dtype == dtype and np.isfinite(ours).all()
    rtol = 50 * EPS[dtype] if dtype == np.float32 else 2e-11
    assert (np.abs(ours - expected) <= tolerance(surrogate, u.astype(float), rtol)).all()


@pytest.mark.parametrize(
    ("surrogate", "area"), [(FastSigmoid(), 0.2), (Boxcar(), 1.0), (MultiGaussian(), 0.425)]
)
def test_area(surrogate, area):
    # ∫ du: fast sigmoid 2/10 (minus the tail 2/(10·(10·1000 + 1))); Gaussians 0.5·(1.15 − 2·0.15).
    u = torch.cat([-torch.logspace(3, -9, 200_000, dtype=torch.float64), torch.zeros(1).double()])
    u = torch.cat([u, -u.flip(0)[1:]])
    assert torch.trapezoid(surrogate.derivative(u), u).item() == pytest.approx(area, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_spike(surrogate, dtype):
    u = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0], dtype=dtype, requires_grad=True)
    s = spike(u, surrogate)
    assert s.tolist() == [0, 0, 0, 0, 1, 1] and s.dtype == dtype
    (s * torch.arange(6)).sum().backward()
    assert u.grad is not None
    assert torch.equal(u.grad, torch.arange(6) * surrogate.derivative(u.detach()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_negative(dtype):
    x = -np.concatenate([[0.0], np.geomspace(1e-20, 126, 3000), np.linspace(0, 126, 3000)])
    x = x.astype(dtype)
    ours = np.array([exp2_negative(value) for value in x])
    rtol = 4 * EPS[dtype] if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(ours, np.exp2(x.astype(float)), rtol=rtol)
    assert exp2_negative(dtype(-126)) == 2.0**-126
    assert exp2_negative(np.nextafter(dtype(-126), dtype(-127))) == 0
    assert exp2_negative(dtype(-1e30)) == exp2_negative(dtype(-np.inf)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_threshold_the_multi_gaussian_is_0(dtype):
    huge = np.finfo(dtype).max
    u = np.array([40.0, 1e3, 1e30, huge], dtype)
    assert not kernel_derivative(MultiGaussian(), np.concatenate([u, -u])).any()


@pytest.mark.parametrize("method", ["fused", "blocks"])
def test_huge_currents_have_the_gradient_of_the_loop(method):
    found = []
    for m in ("standard", method):
        current = torch.full((20, 2, 3), -1e300, dtype=torch.float64)
        beta = torch.full((3,), 0.9, dtype=torch.float64, requires_grad=True)
        found += torch.autograd.grad(alif(current, beta, method=m).spikes.sum(), beta)
    assert torch.equal(*found) and not found[0].any()
