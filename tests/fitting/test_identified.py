"""What spikes tell of a neuron, in pA."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blockspike.fitting.identified import identified
from blockspike.fitting.parameters import NeuronParameters, simulate, simulated_trace

DT_MS = 0.1


def neuron(**more: float) -> NeuronParameters:
    own = {
        "tau_membrane_ms": 15.0, "tau_adaptation_ms": 120.0, "b": 0.3, "gain": 0.008, "rest": 0.2,
        "noise": 0.1, "arp_ms": 2.0,
    } | more  # fmt: skip
    return NeuronParameters(**{k: torch.tensor([x], dtype=torch.float64) for k, x in own.items()})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"coupling": 0.5, "tau_coupling_ms": 10.0, "coupling_onset": 0.6, "coupling_width": 0.2},
        {"coupling": 0.4, "tau_coupling_ms": 5.0, "coupling_onset": 1.3, "coupling_width": 0.1},
        {"coupling": -0.5, "tau_coupling_ms": 5.0, "coupling_onset": 0.3, "coupling_width": 0.2},
        {"coupling": 1.2, "tau_coupling_ms": 5.0, "coupling_onset": 1.5, "coupling_width": 0.2},
    ],
)
def test_a_neuron_fires_above_its_rheobase_and_not_below(more: dict):
    parameters = neuron(**more)
    rheobase_pa = float(identified(parameters)["rheobase_pa"])
    for factor, fires in ((0.99, False), (1.01, True)):
        rising = torch.linspace(0, 1, 10_000).clamp(max=0.5) * 2  # slow: a threshold may lag
        current = (rising * factor * rheobase_pa).reshape(-1, 1, 1)
        assert bool(simulate(parameters, current, DT_MS).any()) is fires


def test_a_threshold_that_outruns_the_membrane_has_no_rheobase():
    own = {"coupling": 1.2, "tau_coupling_ms": 5.0, "coupling_onset": 0.3, "coupling_width": 0.1}
    assert identified(neuron(**own))["rheobase_pa"].isnan().all()


@pytest.mark.parametrize("after_ms", [20.0, 100.0])
@pytest.mark.parametrize("tau_current_1_ms", [9.0, 15.0])  # the latter is that of the membrane
def test_adaptation_is_the_current_that_makes_up_for_a_spike(
    after_ms: float, tau_current_1_ms: float
):
    parameters = neuron(
        b_2=0.2, tau_adaptation_2_ms=10.0, current_1=0.4, tau_current_1_ms=tau_current_1_ms,
        current_2=-0.1, tau_current_2_ms=70.0,
    )  # fmt: skip
    time = torch.arange(2.0, after_ms, DT_MS, dtype=torch.float64)  # V is held for 2 ms
    membrane = 0.0
    for t in time.tolist():  # by small steps of the equations
        wanted = 0.4 * np.exp(-t / tau_current_1_ms) - 0.1 * np.exp(-t / 70)
        membrane += DT_MS * (wanted - membrane) / 15
    threshold = 0.3 * np.exp(-after_ms / 120) + 0.2 * np.exp(-after_ms / 10)
    reset = np.exp(
        -(after_ms - 2) / 15
    )  # where V would be from the threshold, less where it is from 0
    found = float(identified(parameters)[f"adaptation_{after_ms:g}ms_pa"])
    assert found == pytest.approx((reset + membrane + threshold) / 0.008, rel=0.01)


@pytest.mark.parametrize("arp_ms", [0.0, 5.0])
def test_adaptation_is_what_a_spike_takes_from_the_membrane(arp_ms: float):
    """At a current that holds V near the threshold, with a spike and without."""
    own = {"b": 0.0, "current_1": 0.4, "tau_current_1_ms": 10.0, "arp_ms": arp_ms, "noise": 0.0}
    parameters = neuron(**own)
    current = torch.full((3200, 1, 1), (1 - 1e-6 - 0.2) / 0.008, dtype=torch.float64)
    current[2000] += 1e5
    trace = simulated_trace(parameters, current, DT_MS)
    (step,) = trace.spikes[:, 0, 0].nonzero()[:, 0].tolist()
    for after_ms in (20.0, 100.0):
        found = float(identified(parameters)[f"adaptation_{after_ms:g}ms_pa"])
        missing = 1 - float(trace.membrane[step + round(after_ms / DT_MS), 0, 0])
        assert found == pytest.approx(missing / 0.008, rel=0.02)


def test_what_trades_off_leaves_them_as_they_are():
    one = neuron()
    factor = 2.4
    other = replace(
        one, gain=one.gain * factor, b=one.b * factor, noise=one.noise * factor,
        rest=1 - (1 - one.rest) * factor,
    )  # fmt: skip
    first, second = identified(one), identified(other)
    for name in ("rheobase_pa", "adaptation_100ms_pa"):  # after 100 ms, the reset is forgotten
        assert float(first[name]) == pytest.approx(float(second[name]), rel=0.01)


def test_a_neuron_with_escape_noise_fires_once_a_second_at_its_rheobase():
    parameters = neuron(
        noise=0.0, escape_width=0.1, coupling=0.5, tau_coupling_ms=10.0, coupling_onset=0.1,
        coupling_width=0.1, b=0.0,
    )  # fmt: skip
    current = identified(parameters)["rheobase_pa"].expand(20_000, 1, 1)
    draws = torch.randn(20_000, 1, 200, generator=torch.Generator().manual_seed(0))
    spikes = simulate(parameters, current, DT_MS, draws)[:, 0, :, 0]
    first = spikes.max(0)
    waiting = torch.where(first.values > 0, first.indices, 20_000) * DT_MS
    silent = float((waiting > 1000 + 100).double().mean())  # V settles within the first 100 ms
    assert silent == pytest.approx(np.exp(-1), abs=0.12)


def test_the_reset_counts_in_the_adaptation_also_where_it_is_all():
    without, hardly = (identified(neuron(b=b)) for b in (0.0, 1e-9))
    for name in ("adaptation_20ms_pa", "adaptation_100ms_pa"):
        assert without[name] > 0
        torch.testing.assert_close(without[name], hardly[name])
