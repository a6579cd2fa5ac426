"""The guard fails when a ratio is below its floor, and only then."""

import pytest

from blockspike.benchmark import guard


@pytest.fixture
def measured(monkeypatch):
    """Set the ratios slow / fast that the guard measures in each try; the last one repeats."""

    def set_ratios(*ratios: float):
        left = list(ratios)

        def measure(rounds):
            ratio = left.pop(0) if len(left) > 1 else left[0]
            slow = dict.fromkeys(("standard", "blocks", "dense synapses"), (ratio,) * rounds)
            return slow | dict.fromkeys(("fused", "event-driven synapses"), (1.0,) * rounds)

        monkeypatch.setattr(guard, "_measure_neurons", measure)
        monkeypatch.setattr(guard, "_measure_synapses", measure)

    return set_ratios


def test_ratios_above_the_floors_pass(measured):
    measured(100.0)
    claims = guard.check_floors(2)
    assert [c.claim for c in claims] == [f"{slow} / {fast}" for slow, fast in guard.FLOORS]
    assert all(c.met and c.measured == 100 for c in claims)


def test_a_ratio_below_its_floor_fails(measured):
    measured(1.01)
    assert not any(c.met for c in guard.check_floors(2))


def test_a_low_ratio_is_measured_again(measured):
    measured(1.0, 1.0, 100.0)
    assert all(c.met for c in guard.check_floors(2))


@pytest.mark.slow
def test_the_real_measurements_have_all_compared_contenders(monkeypatch):
    monkeypatch.setattr(guard, "_SHAPE", (6, 2, 20))
    monkeypatch.setattr(guard.dynamics, "GUARD", guard.dynamics.Size(64, 2, 8, 5))
    seconds = guard._measure_neurons(2) | guard._measure_synapses(2)
    for pair in guard.FLOORS:
        assert all(len(seconds[name]) == 2 and min(seconds[name]) > 0 for name in pair)
