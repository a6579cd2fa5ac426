"""Surrogate derivatives against formulas in plain Python, and the kernels against PyTorch."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from neuron_cases import (
    DTYPES,
    OTHER_SURROGATES,
    SURROGATES,
    Gaussian,
    assert_same_result,
    make_inputs,
    run,
)

from blockspike.neurons import (
    SLAYER,
    Arctan,
    Boxcar,
    FastSigmoid,
    MultiGaussian,
    Surrogate,
    Triangular,
    alif,
)
from blockspike.neurons.cpu.exponential import exp2_negative
from blockspike.neurons.cpu.kernels import kernel_with_fma
from blockspike.neurons.cpu.lane_memory import load_lanes, store_lanes
from blockspike.neurons.cpu.lanes import n_lanes
from blockspike.neurons.cpu.steps import numbers
from blockspike.neurons.cpu.surrogate import Slope, slope_of
from blockspike.neurons.model import where
from blockspike.neurons.surrogates import spike
from tiers import mostly_slow

EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def normal(x, mean, std):
    return math.exp(-((x - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi * std**2)


def formula(surrogate, u: float) -> float:
    """Surrogate derivative at one margin (docs/paper.md, Surrogates)."""
    match surrogate:
        case FastSigmoid(slope):
            return (slope * abs(u) + 1) ** -2
        case Boxcar(width, height):
            return height if -width / 2 < u <= width / 2 else 0.0
        case Triangular(width, height):
            return height * max(0.0, 1 - abs(u) / width)
        case Arctan(alpha):
            return alpha / 2 / (1 + (math.pi / 2 * alpha * u) ** 2)
        case SLAYER(slope, height):
            return height * math.exp(-slope * abs(u))
        case Gaussian(sigma, height):
            return height * math.exp(-(u**2) / (2 * sigma**2))
    u /= surrogate.width
    sides = normal(u, 0.5, 3) + normal(u, -0.5, 3)
    return surrogate.height * 0.5 * (1.15 * normal(u, 0, 0.5) - 0.15 * sides)


def margins(dtype) -> np.ndarray:
    """Margins of both signs, from denormal to 1e12, with the boxcar's corners and neighbours."""
    tiny = np.finfo(dtype).tiny
    positive = np.concatenate(
        [
            np.array([0.0, 0.5, 1.0, 6.3, 6.4, 12.5, 39.9, 40.0, 41.0, 1e3, 1e6, 1e12]),
            np.array([tiny / 8, tiny, tiny * 8, np.sqrt(tiny), np.finfo(dtype).eps]),
            np.geomspace(1e-30, 1e3, 400),
            np.linspace(0, 45, 901),
        ]
    ).astype(dtype)
    with np.errstate(under="ignore"):
        near = np.nextafter(positive, dtype(0)), np.nextafter(positive, dtype(2000))
    positive = np.concatenate([positive, *near])
    return np.concatenate([positive, -positive])


@kernel_with_fma
def surrogate_derivative(surrogate, constants, margin, out):
    for first in range(0, margin.size, n_lanes(margin)):
        i = np.uintp(first)
        n = np.uintp(min(n_lanes(margin), margin.size - first))
        slope = slope_of(surrogate, load_lanes(margin, i, n), constants)
        store_lanes(slope, out, i, n, False)


def kernel_derivative(surrogate, u: np.ndarray) -> np.ndarray:
    out = np.full_like(u, np.nan)
    constants = numbers(surrogate.constants, u)
    surrogate_derivative(Slope(type(surrogate), len(constants)), constants, u, out)
    return out


def tolerance(surrogate, u: np.ndarray, rtol: float) -> np.ndarray:
    """Tolerance `rtol` relative to the formula's terms; absolute below 1e−15 of the peak."""
    if isinstance(surrogate, MultiGaussian):
        scaled = u / surrogate.width
        terms = [0.575 * normal(x, 0, 0.5) + 0.15 * normal(abs(x), 0.5, 3) for x in scaled]
        return surrogate.height * (rtol * np.array(terms) + 1e-15)
    # The argument of an exponential has a rounding error too, and 1 − |u| / width cancels.
    absolute = {SLAYER: 1e-15, Gaussian: 1e-15, Triangular: rtol}.get(type(surrogate), 0.0)
    return rtol * np.array([formula(surrogate, x) * _condition(surrogate, x) for x in u]) + absolute


def _condition(surrogate, u: float) -> float:
    """How much an exponential magnifies relative errors of its argument."""
    match surrogate:
        case SLAYER(slope, _):
            return 1 + slope * abs(u)
        case Gaussian(sigma, _):
            return 1 + (u / sigma) ** 2
    return 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("surrogate", SURROGATES + OTHER_SURROGATES, ids=repr)
def test_formula(surrogate, dtype):
    u = margins(dtype)
    ours = surrogate.derivative(torch.from_numpy(u)).numpy()
    expected = np.array([formula(surrogate, float(x)) for x in u])
    assert ours.dtype == dtype
    allowed = tolerance(surrogate, u.astype(float), 50 * EPS[dtype])
    assert (np.abs(ours - expected) <= allowed).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("surrogate", SURROGATES + OTHER_SURROGATES, ids=repr)
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
@pytest.mark.parametrize("surrogate", SURROGATES + OTHER_SURROGATES, ids=repr)
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


@pytest.mark.parametrize(
    "surrogate", mostly_slow(OTHER_SURROGATES, lambda s: isinstance(s, Gaussian | SLAYER)), ids=repr
)
def test_fused_equals_standard(surrogate):
    inputs = make_inputs((65, 3, 17))
    expected = run(inputs, method="standard", surrogate=surrogate)
    assert expected[0].sum() > 0
    assert_same_result(run(inputs, method="fused", surrogate=surrogate), expected, 1e-9)


@dataclass(frozen=True)
class Tent(Surrogate):
    """Compiled under the name and in the place of another, below."""

    @staticmethod
    def formula(margin, constants):
        zero, one = constants
        return where(abs(margin) < one, 0.5, zero)


def test_kernels_know_surrogates_apart():
    @dataclass(frozen=True)
    class Other(Surrogate):
        @staticmethod
        def formula(margin, constants):
            zero, one = constants
            return where(abs(margin) < one, 0.25, zero)

    Other.__qualname__ = Other.formula.__qualname__ = Tent.__qualname__
    u = np.zeros(3)
    assert kernel_derivative(Tent(), u).tolist() == [0.5] * 3
    assert kernel_derivative(Other(), u).tolist() == [0.25] * 3


@dataclass(frozen=True)
class Unknown(Surrogate):
    """Its formula is no arithmetic."""

    @staticmethod
    def formula(margin, constants):
        return margin.softplus()


def test_a_formula_that_no_kernel_can_take_is_named():
    inputs = make_inputs((20, 2, 3))
    with pytest.raises(ValueError, match=r"^Unknown.formula: expected .*softplus"):
        alif(**inputs, surrogate=Unknown())


@dataclass(frozen=True)
class Flat(MultiGaussian):
    """Inherits a derivative that is another formula's."""

    @staticmethod
    def formula(margin, constants):
        return constants[1]


def test_a_subclass_has_its_own_formula_everywhere():
    u = torch.linspace(-1, 1, 5)
    assert Flat().derivative(u).tolist() == [1.0] * 5
    assert kernel_derivative(Flat(), u.numpy()).tolist() == [1.0] * 5


def of_factor(factor: float) -> Surrogate:
    @dataclass(frozen=True)
    class Closed(Surrogate):
        @staticmethod
        def formula(margin, constants):
            return factor * margin

    return Closed()


def test_a_formula_with_a_closure():
    for factor in (2.0, 3.0):
        assert kernel_derivative(of_factor(factor), np.full(3, 0.5)).tolist() == [factor * 0.5] * 3


def test_a_width_of_0_is_refused():
    for kind in (Boxcar, Triangular, MultiGaussian):
        with pytest.raises(ValueError, match=f"{kind.__name__}: width: expected .* > 0, got 0"):
            kind(width=0)
    for kind in (FastSigmoid, SLAYER):
        with pytest.raises(ValueError, match=f"{kind.__name__}: slope: expected .* > 0, got -3"):
            kind(slope=-3)


def test_kernels_notice_a_changed_global_of_a_notebook():
    u = np.full(3, 0.5)
    for value in (2.0, 3.0):
        cell = {"FACTOR": value, "Surrogate": Surrogate, "dataclass": dataclass}
        exec(NOTEBOOK_CELL, cell)
        assert kernel_derivative(cell["Own"](), u).tolist() == [value * 0.5] * 3


NOTEBOOK_CELL = """
def scaled(margin):
    return FACTOR * margin

@dataclass(frozen=True)
class Own(Surrogate):
    @staticmethod
    def formula(margin, constants):
        return scaled(margin)
"""


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_is_named(value):
    for make in (lambda: FastSigmoid(slope=value), lambda: Boxcar(height=value)):
        with pytest.raises(ValueError, match=": (slope|height): expected a finite number"):
            make()


def test_a_class_of_surrogates_is_refused():
    with pytest.raises(
        ValueError, match=r"^surrogate: expected one such as MultiGaussian\(\), got"
    ):
        alif(torch.ones(3, 1, 1), torch.ones(1), surrogate=FastSigmoid)  # pyright: ignore
