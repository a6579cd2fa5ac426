"""Traces of synthetic cells, for tests of figures and pages of fits."""

import numpy as np

from blockspike.figures.cell_traces import CellTraces, smoothed_hz, spikes_of

DT_MS, N_STEPS, N_MODEL = 0.5, 2000, 4


def made_cell(name: str = "cell", n_segments: int = 1, seed: int = 0, rate_hz=20.0) -> CellTraces:
    """A cell whose segment k fires at (k + 1) · `rate_hz`, with 3 recorded trials and a voltage."""
    rng = np.random.default_rng(seed)
    chance = [(k + 1) * rate_hz * DT_MS / 1000 for k in range(n_segments)]
    recorded = [(rng.random((3, N_STEPS)) < p).astype(np.float32) for p in chance]
    model = [(rng.random((N_MODEL, N_STEPS)) < p).astype(np.float32) for p in chance]
    shape = (n_segments, N_STEPS)
    return CellTraces(
        name=name,
        titles=[f"stimulus {k}" for k in range(n_segments)],
        dt_ms=DT_MS,
        n_steps=N_STEPS,
        n_recorded=np.full(n_segments, 3),
        recorded=spikes_of(recorded),
        model=spikes_of(model),
        n_model=N_MODEL,
        current_pa=rng.normal(50, 20, shape).astype(np.float32),
        membrane=rng.normal(0.5, 0.2, shape).astype(np.float16),
        threshold=np.ones(shape, np.float16),
        recorded_hz=np.stack([smoothed_hz(x.mean(0), DT_MS, 10) for x in recorded]),
        model_hz=np.stack([smoothed_hz(x.mean(0), DT_MS, 10) for x in model]),
        rate_steps=10,
        etv_15ms=rng.random(n_segments),
        gamma_4ms=rng.random(n_segments),
        rates=rng.uniform(1, 50, (n_segments, 4)).astype(np.float32),
        are_steps=False,
        voltage_mv=rng.normal(-60, 5, shape).astype(np.float16),
    )
