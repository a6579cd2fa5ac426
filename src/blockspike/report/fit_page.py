"""The page of a fit: a table of its cells, their parameters and scores, and a section per cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from blockspike.figures.cell_traces import SIGMA_MS, CellTraces
from blockspike.report.packed import pack_rows, pack_spikes
from blockspike.report.page import render_template

NOTHING = "–"
# Column of `fits.csv` without its part, meaning.
_SCORES = {
    "etv_15ms": "normalised ETV, σ 15 ms",
    "etv_15ms_se": "its standard error, from a jackknife over pieces of time",
    "null_etv_15ms": "null: a constant rate during the stimulus, σ 15 ms",
    "reliability_etv_15ms": "reliability: another trial of the neuron, σ 15 ms",
    "noiseless_etv_15ms": "neuron without noise, σ 15 ms",
    "trial_etv_15ms": "single trials of the model, σ 15 ms",
    "etv_10ms": "normalised ETV, σ 10 ms",
    "etv_5ms": "normalised ETV, σ 5 ms",
    "gamma_4ms": "coincidence factor Γ ± 4 ms",
    "gamma_a_2ms": "Γ ± 2 ms relative to reliability",
    "md_star_4ms": "Md* ± 4 ms",
    "bits_per_spike": "bits per spike beyond a constant rate, with escape noise",
    "voltage_rms_mv": "root mean squared error of the voltage between spikes (mV)",
    "rate_hz": "rate of the model (Hz)",
    "recorded_hz": "recorded rate (Hz)",
    "rate_error": "relative error of the rate",
}
# Column of `fits.csv`: symbol, meaning, unit.
PARAMETERS = {
    "tau_membrane_ms": ("τ_m", "time constant of the membrane", "ms"),
    "rheobase_pa": ("rheobase", "least steady current at which it fires", "pA"),
    "adaptation_20ms_pa": ("adaptation, 20 ms", "current that a spike costs 20 ms later", "pA"),
    "adaptation_100ms_pa": ("adaptation, 100 ms", "and 100 ms later", "pA"),
    "reset_mv": ("reset", "potential after a spike", "mV"),
    "threshold_mv": ("threshold", "potential at which it fires, without adaptation", "mV"),
    "rest_mv": ("rest", "resting potential", "mV"),
    "resistance_mohm": ("R", "resistance of the membrane", "MΩ"),
    "capacitance_pf": ("C", "capacitance of the membrane", "pF"),
    "electrode_mohm": ("R_e", "resistance of the electrode", "MΩ"),
    "compensated_mohm": (
        "R_e compensated",
        "resistance of the electrode that was compensated",
        "MΩ",
    ),
    "compensated_tau_ms": ("τ_e", "time constant of that electrode", "ms"),
    "voltage_explained": ("R²", "share of the voltage between spikes that these explain", ""),
    "gain_per_pa": ("gain", "steady change of V per current", "thresholds/pA"),
    "rest": ("rest", "where V settles without a current", "thresholds"),
    "noise": ("noise", "standard deviation of V by the neuron’s own noise", "thresholds"),
    "arp_ms": ("ARP", "absolute refractory period", "ms"),
    "reset_share": ("reset share", "share of V that a reset leaves", ""),
    "b": ("b", "rise of the threshold with each spike", "thresholds"),
    "tau_adaptation_ms": ("τ_a", "time constant of that rise", "ms"),
    "b_2": ("b₂", "second rise of the threshold", "thresholds"),
    "tau_adaptation_2_ms": ("τ_a2", "time constant of the second rise", "ms"),
    "current_1_pa": ("w₁", "current that a spike leaves behind, subtracted", "pA"),
    "tau_current_1_ms": ("τ_w1", "its time constant", "ms"),
    "current_2_pa": ("w₂", "second current that a spike leaves behind", "pA"),
    "tau_current_2_ms": ("τ_w2", "its time constant", "ms"),
    "coupling": ("coupling", "how much the threshold follows V", ""),
    "tau_coupling_ms": ("τ_c", "how fast the threshold follows V", "ms"),
    "coupling_onset": ("onset", "V above which the threshold follows", "thresholds"),
    "coupling_width": ("width", "width of that onset", "thresholds"),
    "escape_width": (
        "escape width",
        "change of V by which the rate grows e-fold; 1 kHz at the threshold",
        "thresholds",
    ),
    "dt_ms": ("dt", "time step", "ms"),
}
_TABLE_SCORES = {
    "test_etv_15ms": "ETV", "test_etv_15ms_se": "± s.e.", "test_null_etv_15ms": "null",
    "test_reliability_etv_15ms": "reliability",
    "test_gamma_4ms": "Γ", "test_recorded_hz": "recorded (Hz)", "test_rate_hz": "model (Hz)",
}  # fmt: skip
_OVERVIEW_SCORES = ("test_etv_15ms", "test_null_etv_15ms", "test_reliability_etv_15ms")
# Levels of a series. The series of many cells have few points, and little is seen between them.
_LEVELS, _LEVELS_OF_MANY, _MANY_CELLS = 4000, 200, 20
_HISTOGRAM_BINS = 40
_HISTOGRAM_SHARE = 0.98  # of the intervals, at least; the longest are beyond the axis


class Value(NamedTuple):
    """A number as shown, and as it is sorted by; NaN is sorted last."""

    text: str
    number: float


@dataclass(frozen=True)
class CellSection:
    """Section of one cell.

    Attributes:
        name, kind: the cell and its type, or "".
        values: scores and parameters in the columns of the table of cells.
        unconstrained: parameters of which the stimulus says little, or "".
        parameters: symbol, meaning, value, interval and unit, as text.
        scores: meaning, test and training, as text.
        intervals, rates: summaries in words.
        n_rows: rows of the raster: the most trials of a segment, and those of the model.
        titles: its test segments.
        traces: numbers to draw, for JSON.
    """

    name: str
    kind: str
    unconstrained: str
    values: list[Value]
    parameters: list[tuple[str, ...]]
    scores: list[tuple[str, ...]]
    intervals: str
    rates: str
    n_rows: int
    titles: Sequence[str]
    traces: dict[str, Any]


def render_fit(
    made_by: dict[str, Any],
    run_name: str,
    title: str,
    table: pd.DataFrame,
    cells: Sequence[CellTraces],
    failed: dict[str, str],
) -> str:
    """Render the page of a fit as HTML that loads nothing from elsewhere.

    Args:
        made_by: see `blockspike.report.page.render`.
        run_name: folder of the run.
        title: name of the data set.
        table: a row per cell, as in `fits.csv`. Columns `<name>_low` and `<name>_high` hold 90 %
            intervals, `not_constrained` the parameters of which the stimulus says little, and the
            first column whose name ends in "type" the types of the cells.
        cells: their traces, in the same order.
        failed: cell that could not be fitted → reason.

    Raises:
        ValueError: the table lacks a column, or its cells are not those of the traces.
    """
    _check(table, cells)
    kind = next((str(name) for name in table if str(name).endswith("type")), None)
    shown = [name for name in PARAMETERS if name in table and (table[name] != 0).any()]
    scores = {name: label for name, label in _TABLE_SCORES.items() if name in table}
    n_levels = _LEVELS if len(cells) < _MANY_CELLS else _LEVELS_OF_MANY
    sections = [
        _section(row, cell, kind, shown, list(scores), n_levels)
        for row, cell in zip(table.to_dict("records"), cells, strict=True)
    ]
    varied = [name for name in shown if table[name].nunique() > 1]
    return render_template(
        "fit.html.j2",
        made_by,
        "fit.js",
        run_name=run_name,
        data_set=title,
        kind=kind and kind.replace("_", " "),
        columns=[*scores.values(), *(_headings(name) for name in shown)],
        sections=sections,
        failed=failed,
        is_compensated="compensated_mohm" in table,
        has_intervals=any(f"{name}_low" in table for name in shown),
        sigma_ms=f"{SIGMA_MS:g}",
        overview={
            "cells": table["cell"].astype(str).tolist(),
            "kinds": [section.kind for section in sections],
            "parameters": [
                {"label": _headings(name), "values": _numbers(table, name)} for name in varied
            ],
            "scores": {
                label: _numbers(table, name)
                for name, label in scores.items()
                if name in _OVERVIEW_SCORES
            },
        },
    )  # fmt: skip


def _check(table: pd.DataFrame, cells: Sequence[CellTraces]) -> None:
    for name in ("cell", "test_etv_15ms"):
        if name not in table:
            raise ValueError(f"fits.csv: expected a column {name}, got {', '.join(table)}")
    names = [cell.name for cell in cells]
    if not cells or table["cell"].astype(str).tolist() != names:
        raise ValueError(
            f"fits.csv: expected a row for each of the {len(names)} cells of traces.npz, got "
            f"{len(table)} rows that differ from them"
        )


def _section(
    row: dict[Any, Any],
    cell: CellTraces,
    kind: str | None,
    parameters: Sequence[str],
    scores: Sequence[str],
    n_levels: int,
) -> CellSection:
    counts, intervals = _interval_histogram(cell)
    return CellSection(
        name=cell.name,
        kind=_text(row, kind),
        unconstrained=_in_words(_text(row, "not_constrained")),
        values=[
            *(Value(score(name, row[name]), float(row[name])) for name in scores),
            *(Value(number(row[name]), float(row[name])) for name in parameters),
        ],
        parameters=[_parameter(name, row) for name in parameters],
        scores=[
            (
                label if cell.n_recorded.max() > 1 else label.removeprefix("normalised "),
                *(score(name, row.get(f"{part}_{name}")) for part in ("test", "train")),
            )
            for name, label in _SCORES.items()
            if f"test_{name}" in row or f"train_{name}" in row
        ],
        intervals=intervals,
        rates=_rates_in_words(cell),
        n_rows=int(cell.n_recorded.max()) + cell.n_model,
        titles=[
            f"{title}: ETV {score('etv', etv)}, Γ {score('gamma', gamma)}"
            for title, etv, gamma in zip(cell.titles, cell.etv_15ms, cell.gamma_4ms, strict=True)
        ],
        traces=_packed(cell, n_levels) | {"intervals": counts},
    )


def _text(row: dict[Any, Any], name: str | None) -> str:
    value = None if name is None else row.get(name)
    is_known = value is not None and value == value  # not NaN
    return str(value) if is_known else ""


def _in_words(names: str) -> str:
    """Names of columns, such as "tau_adaptation_ms, gain", as the page calls the parameters."""
    known = {name: f"{symbol} ({meaning})" for name, (symbol, meaning, _) in PARAMETERS.items()}
    return ", ".join(known.get(name, name) for name in names.split(", "))


def _headings(name: str) -> str:
    symbol, _, unit = PARAMETERS[name]
    return f"{symbol} ({unit})" if unit else symbol


def _parameter(name: str, row: dict[Any, Any]) -> tuple[str, ...]:
    symbol, meaning, unit = PARAMETERS[name]
    low, high = (row.get(f"{name}_{end}", np.nan) for end in ("low", "high"))
    interval = NOTHING if pd.isna(low) or pd.isna(high) else f"{number(low)} to {number(high)}"
    return symbol, meaning, number(row[name]), interval, unit


def number(value: Any) -> str:
    """A number with three digits and a minus sign; a dash if it is unknown."""
    if value is None or pd.isna(value):
        return NOTHING
    size = abs(float(value))
    text = f"{float(value):.0f}" if size >= 999.5 else f"{float(value):.3g}"
    return text.replace("-", "−")


def score(name: str, value: Any) -> str:
    """A score as text: a rate as `number` shows it, others with three decimals."""
    if value is None or pd.isna(value) or name.endswith("hz"):
        return number(value)
    return f"{round(float(value), 3) + 0.0:.3f}".replace("-", "−")


def _numbers(table: pd.DataFrame, name: str) -> list[float | None]:
    """Plain numbers of a column for JSON, which has no NaN."""
    values = table[name].to_numpy(float)
    return [float(value) if np.isfinite(value) else None for value in values]


def _packed(cell: CellTraces, n_levels: int) -> dict[str, Any]:
    series = {
        name: getattr(cell, name)
        for name in (
            "current_pa", "voltage_mv", "membrane", "threshold", "recorded_hz", "model_hz",
        )
    }  # fmt: skip
    return {
        "dt_ms": cell.dt_ms,
        "n_steps": cell.n_steps,
        "rate_steps": cell.rate_steps,
        "n_recorded": cell.n_recorded.tolist(),
        "n_model": cell.n_model,
        "recorded": pack_spikes(cell.recorded, int(cell.n_recorded.max()), cell.n_steps),
        "model": pack_spikes(cell.model, cell.n_model, cell.n_steps),
        "rates": np.asarray(cell.rates, float).round(3).tolist(),
        "are_steps": cell.are_steps,
        **{name: None if x is None else pack_rows(x, n_levels) for name, x in series.items()},
    }


def _interval_histogram(cell: CellTraces) -> tuple[dict[str, Any], str]:
    """Shares of intervals between spikes per bin, of recording and model; and a summary."""
    found = {
        name: _intervals_ms(spikes, cell.dt_ms)
        for name, spikes in (("recorded", cell.recorded), ("model", cell.model))
    }
    every = np.concatenate(list(found.values()))
    end = float(np.quantile(every, _HISTOGRAM_SHARE)) if len(every) else 0.0
    # No bin is narrower than a step, of which intervals are multiples.
    steps = max(1, int(np.ceil(end / cell.dt_ms / _HISTOGRAM_BINS)))
    edges = (np.arange(_HISTOGRAM_BINS + 1) * steps + 0.5) * cell.dt_ms
    words = []
    counts: dict[str, Any] = {"edges_ms": edges.round(6).tolist()}
    for name, intervals in found.items():
        inside, _ = np.histogram(intervals, edges)
        counts[name] = (inside / max(len(intervals), 1)).round(5).tolist()
        if len(intervals):
            spread = intervals.std() / intervals.mean()
            words.append(
                f"{name}: median {number(np.median(intervals))} ms, coefficient of variation "
                f"{number(spread)}"
            )
        else:
            words.append(f"{name}: no intervals")
    return counts, "; ".join(words)


def _intervals_ms(spikes: np.ndarray, dt_ms: float) -> np.ndarray:
    """Intervals between spikes [n, 3] of one trial of one segment."""
    ordered = spikes[np.lexsort(spikes.T[::-1])]
    same = (np.diff(ordered[:, :2], axis=0) == 0).all(1)
    return np.diff(ordered[:, 2])[same] * dt_ms


def _rates_in_words(cell: CellTraces) -> str:
    error = np.abs(cell.rates[:, 2] - cell.rates[:, 1])
    during = "the step" if cell.are_steps else "the segment"
    return (
        f"Rate during {during} against "
        f"{'its level' if cell.are_steps else 'the mean current'}: model and recording differ by "
        f"{number(error.mean())} Hz on average, at most {number(error.max())} Hz"
    )
