"""The likelihood of recorded spikes under escape noise."""

import numpy as np
import pytest
import torch

from blockspike.data.parts import Part
from blockspike.fitting.likelihood import (
    EscapeNoise,
    bits_per_spike,
    fit_escape_noise,
    likelihoods_of_cells,
    margins_at,
    share_while_refractory,
)
from blockspike.fitting.parameters import NeuronParameters, simulate

DT_MS = 0.5
GIF = {
    "tau_membrane_ms": 12.0, "tau_adaptation_ms": 90.0, "b": 0.2, "gain": 1.1, "rest": 0.3,
    "noise": 0.15, "arp_ms": 3.0, "reset_share": 0.2, "b_2": 0.1, "tau_adaptation_2_ms": 12.0,
    "current_1": 0.2, "tau_current_1_ms": 9.0, "current_2": 0.1, "tau_current_2_ms": 110.0,
}  # fmt: skip
COUPLING = {
    "coupling": 0.3, "tau_coupling_ms": 8.0, "coupling_onset": 0.4, "coupling_width": 0.2,
}  # fmt: skip


def neurons(n: int, **more: float) -> NeuronParameters:
    one = {name: torch.full((n,), x, dtype=torch.float64) for name, x in (GIF | more).items()}
    return NeuronParameters(**one)


def current(n_steps: int, *shape: int) -> torch.Tensor:
    return torch.randn(n_steps, *shape, generator=torch.Generator().manual_seed(0)).double() * 4


@pytest.mark.parametrize("more", [{}, COUPLING])
def test_a_neuron_given_its_own_spikes_crosses_its_threshold_where_it_fired(more: dict):
    parameters, driving = neurons(3, **more), current(2000, 2, 3)
    spikes = simulate(parameters, driving, DT_MS)
    assert spikes.sum() > 20
    margins = margins_at(parameters, driving, spikes, DT_MS)
    assert np.array_equal(margins > 0, spikes.numpy() > 0)


def test_other_spikes_reset_and_adapt_the_neuron():
    parameters, driving = neurons(1, current_1=0.0, current_2=0.0), current(400, 1, 1) * 0
    train = torch.zeros(400, 1, 1)
    train[100] = 1
    margins = margins_at(parameters, driving, train, DT_MS)[:, 0, 0]
    assert margins[100] == pytest.approx(GIF["rest"] - 1)
    assert np.isneginf(margins[101:107]).all()  # refractory
    beta, share = np.exp(-DT_MS / GIF["tau_membrane_ms"]), GIF["reset_share"] * GIF["rest"]
    decay = [np.exp(-6 * DT_MS / GIF[f"tau_adaptation{x}_ms"]) for x in ("", "_2")]
    membrane = beta * share + (1 - beta) * GIF["rest"]
    threshold = 1 + GIF["b"] * decay[0] + GIF["b_2"] * decay[1]
    assert margins[107] == pytest.approx(membrane - threshold)


def test_escape_noise_is_recovered():
    margins, true = np.random.default_rng(0).normal(-2, 1, (40_000, 5)), EscapeNoise(200.0, 0.5)
    rate = true.rate_hz * DT_MS / 1000 * np.exp(margins / true.width)
    fired = np.random.default_rng(1).random(rate.shape) < -np.expm1(-rate)
    found = fit_escape_noise(margins, fired, DT_MS)
    assert found is not None
    assert found.rate_hz == pytest.approx(true.rate_hz, rel=0.1)
    assert found.width == pytest.approx(true.width, rel=0.03)
    best = found.log_likelihood(margins, fired, DT_MS)
    for rate_hz, width in ((1.02, 1), (1, 1.02), (0.98, 1), (1, 0.98)):
        near = EscapeNoise(found.rate_hz * rate_hz, found.width * width)
        assert near.log_likelihood(margins, fired, DT_MS) < best


def test_a_constant_rate_has_no_bits_per_spike():
    fired = np.random.default_rng(0).random((2000, 2)) < 0.02
    rate_hz = 1000 * fired.mean() / DT_MS
    flat = EscapeNoise(-1000 / DT_MS * np.log1p(-fired.mean()), 1e9)
    margins = np.zeros(fired.shape)
    assert bits_per_spike(flat, margins, fired, rate_hz, DT_MS) == pytest.approx(0, abs=0.02)
    assert np.isnan(bits_per_spike(flat, margins, fired & False, rate_hz, DT_MS))


def test_there_is_no_maximum_without_spikes_or_with_spikes_at_low_margins():
    margins = np.random.default_rng(0).normal(0, 1, (500, 1))
    assert fit_escape_noise(margins, np.zeros((500, 1)), DT_MS) is None
    assert fit_escape_noise(margins, margins < -1.5, DT_MS) is None
    assert fit_escape_noise(margins * 0, margins > 1, DT_MS) is None
    assert fit_escape_noise(margins, margins > 2, DT_MS) is None  # no noise at all
    outlier = np.concatenate([margins, [[40.0]]])  # one high margin without a spike
    fired = np.random.default_rng(1).random(outlier.shape) < 0.02
    found = fit_escape_noise(outlier, fired, DT_MS)
    rate_hz = 1000 * fired.mean() / DT_MS
    assert found is None or bits_per_spike(found, outlier, fired, rate_hz, DT_MS) > 0


def test_a_spike_within_the_refractory_period_costs_87_bits():
    margins = np.random.default_rng(0).normal(-1, 1, 4000)
    noise = EscapeNoise(100.0, 1.0)
    rate = noise.rate_hz * DT_MS / 1000 * np.exp(margins)
    fired = np.random.default_rng(1).random(4000) < -np.expm1(-rate)
    rate_hz, n = 1000 * fired.mean() / DT_MS, fired.sum()
    free = bits_per_spike(noise, margins, fired, rate_hz, DT_MS)
    refractory = margins.copy()
    first = fired.argmax()
    refractory[first] = -np.inf
    lost = n * (free - bits_per_spike(noise, refractory, fired, rate_hz, DT_MS))
    own = np.log2(-np.expm1(-rate[first]))
    assert lost == pytest.approx(60 / np.log(2) + own, rel=1e-6)


def test_intervals_in_which_a_neuron_cannot_fire_are_counted():
    trains = np.zeros((2, 100))
    trains[0, [3, 7, 20]], trains[1, [50, 53]] = 1, 1  # intervals of 4, 13 and 3 steps
    for arp_ms, share in ((0.0, 0), (2.5, 0), (3.0, 1 / 3), (6.0, 2 / 3)):
        assert share_while_refractory([trains * 0, trains], 0.5 * arp_ms, 0.5) == share
    assert share_while_refractory([trains * 0], 2.0, 0.5) == 0


def test_no_step_rules_all_others():
    noise, margins = EscapeNoise(100.0, 0.1), np.full((1000, 1), -0.5)
    margins[:100] = 1e6  # the recorded neuron is blocked there, the model fires
    fired = np.zeros((1000, 1))
    fired[500] = 1
    assert bits_per_spike(noise, margins, fired, 2.0, DT_MS) > -5000


def test_the_neuron_itself_is_likelier_than_another_one():
    true, driving = neurons(2), current(6000, 1, 2)
    other = neurons(2, tau_membrane_ms=40.0, b=0.0)
    draws = torch.randn(6000, 1, 3, generator=torch.Generator().manual_seed(1))
    spikes = simulate(true, driving, DT_MS, draws)[:, 0].float()  # [T, R, C]
    trains = [[spikes[:, :2, 0].T.numpy()], [spikes[:, :, 1].T.numpy()]]  # one trial fewer
    train = Part(driving.float(), trains, [[0], [0]])
    test = Part(driving.float(), trains, [[1000], [1000]])
    own, worse = (likelihoods_of_cells(x, train, test, DT_MS) for x in (true, other))
    assert (own["train_bits_per_spike"] > 1).all() and (own["test_bits_per_spike"] > 1).all()
    assert (own["test_bits_per_spike"] > worse["test_bits_per_spike"] + 0.2).all()


def test_a_cell_without_a_maximum_gets_a_row_without_numbers():
    silent = Part(current(300, 1, 1).float(), [[np.zeros((2, 300), np.float32)]], [[0]])
    row = likelihoods_of_cells(neurons(1), silent, silent, DT_MS)
    assert len(row) == 1 and row.isna().to_numpy().all()
