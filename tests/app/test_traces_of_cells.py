"""Traces of cells for figures and pages."""

import numpy as np
import pandas as pd

from blockspike.app.cell_traces import cell_traces
from blockspike.figures.cell_traces import CellTraces
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.scores import predict

FIRST = 20


def traces_of(*currents_pa: np.ndarray) -> CellTraces:
    neuron = FittedNeuron(
        "cell", tau_membrane_ms=10.0, tau_adaptation_ms=50.0, b=0.2, gain_per_pa=0.02, rest=0.1,
        arp_ms=2.0, dt_ms=0.5,
    )  # fmt: skip
    predicted = [predict(neuron, current, FIRST) for current in currents_pa]
    n = len(currents_pa)
    scores = pd.DataFrame({"etv_15ms": [1.0] * n, "gamma_4ms": [1.0] * n})
    return cell_traces(
        neuron, currents_pa, [x.noiseless[None] for x in predicted], predicted, scores,
        titles=["a"] * n, voltage_mv=None,
    )  # fmt: skip


def test_segments_of_different_length_are_as_alone_and_end_with_nan():
    random = np.random.default_rng(0)
    currents = [random.normal(60, 40, n) for n in (300, 180, 240)]
    both = traces_of(*currents)
    assert both.n_steps == 300 - FIRST and np.isfinite(both.membrane[0]).all()
    for segment, current in enumerate(currents):
        alone, n_steps = traces_of(current), len(current) - FIRST
        for name in ("current_pa", "membrane", "threshold"):
            shown = getattr(both, name)[segment]
            np.testing.assert_array_equal(shown[:n_steps], getattr(alone, name)[0])
            assert np.isnan(shown[n_steps:]).all()
        own = both.recorded[both.recorded[:, 0] == segment]
        np.testing.assert_array_equal(own[:, 1:], alone.recorded[:, 1:])
        assert len(own) > 0
        n_rates = alone.model_hz.shape[1]
        np.testing.assert_array_equal(both.model_hz[segment, :n_rates], alone.model_hz[0])
