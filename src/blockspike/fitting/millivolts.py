"""Fitted neurons in mV, MΩ and pF, where their voltage was recorded.

Spikes alone tell nothing of mV. The membrane of the fitted neuron, reset by the recorded spikes,
is compared to the recorded voltage between spikes; the electrode's own resistance, through which
the current also passes, is part of the comparison.
"""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from blockspike.data.parts import Part, beside, stacked
from blockspike.fitting.likelihood import margins_at
from blockspike.fitting.parameters import NeuronParameters

COLUMNS = (
    "reset_mv", "threshold_mv", "rest_mv", "resistance_mohm", "capacitance_pf", "electrode_mohm",
    "voltage_explained",
)  # fmt: skip
_BEFORE_MS, _AFTER_MS = 2.0, 10.0  # about a spike, where the voltage is that of the spike
_LEAST_MS = 200.0  # of voltage between spikes
_HEIGHT_MV = 20.0  # by which the voltage at a spike must exceed the median
_OF_THRESHOLD = ("b", "b_2", "coupling")


def millivolts_of_cells(
    parameters: NeuronParameters, part: Part, voltage_mv: list[np.ndarray | None],
    scale_pa: np.ndarray, dt_ms: float,
) -> pd.DataFrame:  # fmt: skip
    """Scales of the fitted membranes, by least squares against the recorded voltage.

    voltage = reset + (threshold − reset) · V + electrode · current, over the steps that are not
    within 2 ms before or 10 ms after a spike.

    Args:
        parameters: of the cells, for the current of the part.
        part: whose current drove the cells.
        voltage_mv: of each cell, mean voltage [B, T] of the first trial of each segment, NaN where
            it is not known; None without.
        scale_pa: pA of a unit of the part's current, [C].
        dt_ms: length of a step.

    Returns:
        A row per cell of `COLUMNS`: potentials of reset, threshold (without adaptation) and rest;
        resistance and capacitance of the membrane, resistance of the electrode; share of the
        voltage's variance that is explained. NaN where there is no voltage, where it does not show
        the spikes, or where it does not follow the membrane: it falls as the membrane rises, or
        most of it is the electrode's. Columns are left out if all are NaN.
    """
    rows = []
    for cell, voltage in enumerate(voltage_mv):
        row = None
        if voltage is not None:
            own = parameters[torch.tensor([cell])]
            segments = part.segments(cell)
            current = stacked([beside([current for current, _ in segments])])
            trains = beside([trains[0] for _, trains in segments])
            row = _millivolts(own, current, trains, voltage.T, float(scale_pa[cell]), dt_ms)
        rows.append(row or {})
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    return table if table.notna().to_numpy().any() else pd.DataFrame(index=range(len(rows)))


def _millivolts(
    own: NeuronParameters, current: Tensor, trains: np.ndarray, voltage: np.ndarray,
    scale_pa: float, dt_ms: float,
) -> dict[str, Any] | None:  # fmt: skip
    """A row of one cell, from current [T, B, 1], trains and voltage [T, B]."""
    nothing = {x.name: torch.zeros_like(own.b) for x in fields(own) if x.name in _OF_THRESHOLD}
    without_adaptation = replace(own, **nothing)
    spikes = torch.from_numpy(trains).unsqueeze(2)
    membrane = margins_at(without_adaptation, current, spikes, dt_ms)[:, :, 0] + 1
    membrane[1:] = (membrane[1:] + membrane[:-1]) / 2  # of the middle of a step, as the voltage is
    between = _between_spikes(trains > 0, dt_ms) & np.isfinite(voltage) & np.isfinite(membrane)
    if between.sum() * dt_ms < _LEAST_MS or not _shows_spikes(trains > 0, voltage, dt_ms):
        return None
    through_electrode = current[:, :, 0].double().numpy()[between] * scale_pa / 1000  # nA
    columns = np.stack([np.ones(between.sum()), membrane[between], through_electrode], 1)
    recorded = voltage[between].astype(float)
    (reset_mv, unit_mv, electrode_mohm), *_ = np.linalg.lstsq(columns, recorded, rcond=None)
    if not unit_mv > 0:
        return None
    left = recorded - columns @ np.array([reset_mv, unit_mv, electrode_mohm])
    resistance_mohm = unit_mv * float(own.gain) / scale_pa * 1000
    if electrode_mohm > resistance_mohm:
        return None
    return {
        "reset_mv": reset_mv,
        "threshold_mv": reset_mv + unit_mv,
        "rest_mv": reset_mv + unit_mv * float(own.rest),
        "resistance_mohm": resistance_mohm,
        "capacitance_pf": 1000 * float(own.tau_membrane_ms) / resistance_mohm,
        "electrode_mohm": electrode_mohm,
        "voltage_explained": 1 - left.var() / recorded.var(),
    }


def _between_spikes(fired: np.ndarray, dt_ms: float) -> np.ndarray:
    """Steps [T, B] without a spike nearby, or before the first ones, of which nothing is known."""
    before, after = round(_BEFORE_MS / dt_ms), round(_AFTER_MS / dt_ms)
    near = np.zeros(fired.shape, bool)
    near[:after] = True
    for shift in range(-before, after + 1):
        if shift < 0:
            near[:shift] |= fired[-shift:]
        else:
            near[shift:] |= fired[: len(fired) - shift]
    return ~near


def _shows_spikes(fired: np.ndarray, voltage: np.ndarray, dt_ms: float) -> bool:
    """Whether the voltage is high where the spikes are: it may be that of other trials."""
    known = np.isfinite(voltage).all(0)
    if not fired[:, known].any():
        return True
    n_after = round(_BEFORE_MS / dt_ms) + 1
    padded = np.pad(voltage[:, known], ((0, n_after), (0, 0)), mode="edge")
    peak = np.max([padded[k : k + len(voltage)] for k in range(n_after)], 0)
    return np.median(peak[fired[:, known]]) > np.median(voltage[:, known]) + _HEIGHT_MV
