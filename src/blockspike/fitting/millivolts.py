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

from blockspike.data.parts import Part, beside, stacked
from blockspike.data.spikes import between_spikes, shows_spikes
from blockspike.fitting.likelihood import margins_at
from blockspike.fitting.parameters import NeuronParameters

COLUMNS = (
    "reset_mv", "threshold_mv", "rest_mv", "resistance_mohm", "capacitance_pf", "electrode_mohm",
    "voltage_explained",
)  # fmt: skip
_LEAST_MS = 200.0  # of voltage between spikes
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
            row = _millivolts(own, part, cell, voltage, float(scale_pa[cell]), dt_ms)
        rows.append(row or {})
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    return table if table.notna().to_numpy().any() else pd.DataFrame(index=range(len(rows)))


def voltage_errors_of_cells(
    parameters: NeuronParameters, millivolts: pd.DataFrame, part: Part,
    voltage_mv: list[np.ndarray | None], scale_pa: np.ndarray, dt_ms: float,
) -> np.ndarray:  # fmt: skip
    """Root mean squared errors [C] in mV of the fitted membranes between spikes.

    Args:
        parameters, part, voltage_mv, scale_pa, dt_ms: as in `millivolts_of_cells`.
        millivolts: its table, of this part or another.

    Returns:
        NaN of a cell without a scale or a voltage. Steps before the first scored one do not count.
    """
    errors = np.full(len(voltage_mv), np.nan)
    for cell, voltage in enumerate(voltage_mv):
        if voltage is None or "reset_mv" not in millivolts:
            continue
        row = millivolts.iloc[cell]
        unit_mv = row["threshold_mv"] - row["reset_mv"]
        scales = np.array([row["reset_mv"], unit_mv, row["electrode_mohm"]], float)
        own = parameters[torch.tensor([cell])]
        columns, recorded, _ = _compared(own, part, cell, voltage, float(scale_pa[cell]), dt_ms)
        if len(recorded):
            errors[cell] = np.sqrt(np.mean((recorded - columns @ scales) ** 2))
    return errors


def _compared(
    own: NeuronParameters, part: Part, cell: int, voltage: np.ndarray, scale_pa: float, dt_ms: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Columns 1, membrane and current in nA, [n, 3], and the voltage [n], of steps between spikes.

    And whether the voltage [B, T] shows the spikes.
    """
    segments = part.segments(cell)
    current = stacked([beside([current for current, _ in segments])])
    fired = beside([trains[0] for _, trains in segments]) > 0
    nothing = {x.name: torch.zeros_like(own.b) for x in fields(own) if x.name in _OF_THRESHOLD}
    spikes = torch.from_numpy(fired).unsqueeze(2)
    membrane = margins_at(replace(own, **nothing), current, spikes, dt_ms)[:, :, 0] + 1
    membrane[1:] = (membrane[1:] + membrane[:-1]) / 2  # of the middle of a step, as the voltage is
    between = between_spikes(fired, dt_ms) & np.isfinite(voltage.T) & np.isfinite(membrane)
    between &= np.arange(len(fired))[:, None] >= part.first[cell]
    through_electrode = current[:, :, 0].double().numpy()[between] * scale_pa / 1000  # nA
    columns = np.stack([np.ones(between.sum()), membrane[between], through_electrode], 1)
    return columns, voltage.T[between].astype(float), shows_spikes(fired, voltage.T, dt_ms)


def _millivolts(
    own: NeuronParameters, part: Part, cell: int, voltage: np.ndarray, scale_pa: float, dt_ms: float
) -> dict[str, Any] | None:
    """A row of one cell."""
    columns, recorded, is_its_own = _compared(own, part, cell, voltage, scale_pa, dt_ms)
    if len(recorded) * dt_ms < _LEAST_MS or not is_its_own:
        return None
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
