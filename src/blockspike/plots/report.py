"""The report: one HTML file of tables and plotly figures, which needs no network."""

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.subplots import make_subplots

from blockspike.plots.cells import SIGMA_MS, CellTraces
from blockspike.plots.means import labels_of, means, rounded, text_of
from blockspike.plots.style import BLUE, GREEN, GREY, METHOD_COLOURS, ORANGE
from blockspike.plots.sweep import roles

_MOST_NAMED = 20  # runs with an entry in a legend
_CONFIG = {"responsive": True, "displaylogo": False, "scrollZoom": False}


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, tables, figures and pictures (name → data: address)."""

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[pd.DataFrame] = ()
    figures: Sequence[go.Figure] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)


def render(title: str, sections: Sequence[Section], made_by: Mapping[str, Any]) -> str:
    """The page as HTML that loads nothing from elsewhere.

    Args:
        title: of the page.
        sections: see the functions below.
        made_by: versions, machine and commit, as from `blockspike.runs.run.provenance`.
    """
    n_drawn = 0

    def html(figure: go.Figure) -> str:
        nonlocal n_drawn
        n_drawn += 1
        library = "inline" if n_drawn == 1 else False
        return figure.to_html(full_html=False, include_plotlyjs=library, config=_CONFIG)

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    commit = f", commit {made_by['git_sha'][:12]}" if made_by["git_sha"] else ""
    made = f"{time.strftime('%Y-%m-%d %H:%M %z')} on {made_by['machine']}{commit}; {versions}"
    template = environment.get_template("report.html.j2")
    return template.render(title=title, sections=sections, made=made, html=html)


def runs_section(states: pd.DataFrame) -> Section:
    """Every run and its state; `states` as from `blockspike.runs.status.run_states`."""
    counts = ", ".join(f"{n} {state}" for state, n in states["state"].value_counts().items())
    shown = states.dropna(axis="columns", how="all").drop(columns="folder")
    scores = [name for name in shown if str(name).endswith("_score")]
    shown = shown.assign(**{name: shown[name].round(3) for name in scores})
    if "seconds" in shown:
        shown["seconds"] = shown["seconds"].round()
    note = "Scores are accuracies, of fits the explained temporal variance (ETV)."
    return Section("Runs", [f"{counts}. {note}"], [shown])


def sweep_section(experiment: str, table: pd.DataFrame) -> Section | None:
    """Means of an experiment's runs, drawn and as a table; None if they differ in the seed alone.

    Args:
        experiment: its name.
        table: its rows, as `blockspike collect` writes.
    """
    try:
        chosen = roles(table)
    except ValueError:  # none has a score, or they differ in the seed alone
        return None
    found = means(table, chosen.all)
    points, color = found.points, ", ".join(chosen.color)
    data = points.assign(
        label=labels_of(points, chosen.color), facet=labels_of(points, chosen.all[-1:])
    )
    is_number = pd.api.types.is_numeric_dtype(points[chosen.x])
    if not is_number:
        data[chosen.x] = points[chosen.x].map(text_of)
    figure = px.scatter(
        data.sort_values(chosen.x), chosen.x, "mean", error_y="standard_error",
        color="label" if color else None, symbol="label" if color else None,
        facet_col="facet" if chosen.facet else None, facet_col_wrap=3, hover_data=["n"],
        color_discrete_map=METHOD_COLOURS, labels={"mean": found.metric, "label": color},
        color_discrete_sequence=px.colors.qualitative.Safe,
    )  # fmt: skip
    figure.for_each_annotation(lambda x: x.update(text=x.text.replace("facet", chosen.facet or "")))
    figure.update_traces(mode="lines+markers" if is_number else "markers")
    figure.update_layout(template="simple_white", height=420 if len(data["facet"].unique()) < 4 or not chosen.facet else 700)
    texts = {name: points[name].map(text_of) for name in found.by}
    shown = pd.DataFrame({**texts, found.metric: rounded(points), "runs": points["n"]})
    note = "Mean ± standard error over seeds; a fold counts once."
    return Section(f"Sweep {experiment}", [note, *found.caveats], [shown], [figure])


def curves_section(metrics: Mapping[str, pd.DataFrame], title: str = "Learning curves") -> Section:
    """Metrics of runs by epoch: of one run in training and validation, else the better known.

    Args:
        metrics: name of a run → a row per epoch, as in `metrics.csv`.
        title: of the section.
    """
    columns = {str(name) for own in metrics.values() for name in own if "/" in str(name)}
    kinds = sorted({name.partition("/")[2] for name in columns if not name.startswith("time/")})
    figure = make_subplots(
        -(-len(kinds) // 2), min(2, len(kinds)), subplot_titles=kinds, horizontal_spacing=0.1
    )
    colours = px.colors.qualitative.Safe
    for k, (run, own) in enumerate(metrics.items()):
        for i, kind in enumerate(kinds):
            parts = [x for x in ("val", "train") if f"{x}/{kind}" in own]
            for part in parts if len(metrics) == 1 else parts[:1]:
                name = run if len(metrics) > 1 else {"val": "validation", "train": "training"}[part]
                is_named = len(metrics) <= _MOST_NAMED and i == 0
                figure.add_scatter(
                    x=own["epoch"] + 1, y=own[f"{part}/{kind}"], name=name, legendgroup=name,
                    showlegend=is_named, hovertemplate="epoch %{x}: %{y:.4g}", mode="lines",
                    line={
                        "color": colours[k % len(colours)], "dash": "dot" if part == "train" else "solid",
                        "width": 2 if len(metrics) <= _MOST_NAMED else 1,
                    }, row=i // 2 + 1, col=i % 2 + 1,
                )  # fmt: skip
    return Section(title, figures=[figure])


def network_section(
    row: Mapping[str, Any], counts: np.ndarray | None, activity: Mapping[str, np.ndarray]
) -> Section:
    """A trained classifier on test recordings: scores, confusion matrix and raster.

    Args:
        row: content of `result.json`.
        counts: numbers of test samples [true class, predicted class]; None = not tested.
        activity: arrays of `activity.npz`; may be empty.
    """
    figures = []
    if counts is not None:
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        heat = px.imshow(
            share.round(1), color_continuous_scale="Blues", zmin=0, zmax=100,
            labels={"x": "predicted class", "y": "true class", "color": "%"},
        )  # fmt: skip
        heat.update_layout(height=520, title="Share of each true class (%)")
        figures.append(heat)
    if activity:
        figures.append(_raster(activity))
    names = [name for name in row if str(name).endswith(("accuracy", "_hz", "epoch", "_s"))]
    scores = pd.DataFrame({"result": names, "value": [f"{row[name]:.4g}" for name in names]})
    return Section("Test", [str(row["data_set"])], [scores], figures)


def _raster(activity: Mapping[str, np.ndarray]) -> go.Figure:
    """Input, hidden layers and readout of a few test recordings, one at a time."""
    dt_ms = float(activity["dt_ms"])
    n_layers = sum(name.startswith("n_units_layer") for name in activity)
    n_samples = sum(name.endswith("_label") for name in activity)
    names = ["input", *(f"hidden {i}" for i in range(1, n_layers)), "readout"]
    figure = make_subplots(
        len(names), 1, shared_xaxes=True, vertical_spacing=0.03, row_heights=[2, *[1.5] * n_layers]
    )
    choices = {}
    for k in range(n_samples):
        label, predicted = (int(activity[f"sample{k}_{x}"]) for x in ("label", "predicted"))
        traces: list[Any] = []
        for i in range(n_layers):
            step, unit = activity[f"sample{k}_layer{i}"]
            traces.append(_ticks(step * dt_ms, unit, GREY if i == 0 else BLUE, names[i]))
        readout = activity[f"sample{k}_readout"].T
        traces += [
            go.Scatter(
                y=y.astype(np.float32), x0=0, dx=dt_ms, name=f"class {c}",
                line={"color": ORANGE if c == label else "#bbb", "width": 2 if c == label else 1},
            )
            for c, y in enumerate(readout)
        ]  # fmt: skip
        choices[f"recording {k + 1}: class {label}, classified as {predicted}"] = traces
    rows = [*range(1, n_layers + 1), *[len(names)] * len(activity["sample0_readout"].T)]
    _choose(figure, choices, [(row, 1) for row in rows])
    for i, name in enumerate(names):
        figure.update_yaxes(title_text=name, row=i + 1, col=1)
    figure.update_xaxes(title_text="time (ms)", row=len(names), col=1)
    return figure.update_layout(height=160 * len(names) + 120, showlegend=False)


_MEANINGS = {
    "tau_membrane_ms": "time constant of the membrane",
    "rheobase_pa": "least steady current at which it fires",
    "adaptation_20ms_pa": "current that a spike costs 20 ms later",
    "adaptation_100ms_pa": "current that a spike costs 100 ms later",
    "reset_mv": "potential after a spike",
    "threshold_mv": "potential at which it fires, without adaptation",
    "rest_mv": "resting potential",
    "resistance_mohm": "resistance of the membrane",
    "capacitance_pf": "capacitance of the membrane",
    "electrode_mohm": "resistance of the electrode",
    "compensated_mohm": "resistance of the electrode that was compensated",
    "compensated_tau_ms": "time constant of that electrode",
    "voltage_explained": "share of the voltage between spikes that these explain",
    "gain_per_pa": "steady change of V per current, in thresholds/pA",
    "rest": "where V settles without a current, in thresholds",
    "noise": "standard deviation of V by the neuron's noise, in thresholds",
    "arp_ms": "absolute refractory period",
    "reset_share": "share of V that a reset leaves",
    "b": "rise of the threshold with each spike, in thresholds",
    "tau_adaptation_ms": "time constant of that rise",
    "b_2": "second rise of the threshold, in thresholds",
    "tau_adaptation_2_ms": "time constant of the second rise",
    "current_1_pa": "current that a spike leaves behind, subtracted",
    "tau_current_1_ms": "time constant of that current",
    "current_2_pa": "second current that a spike leaves behind",
    "tau_current_2_ms": "time constant of the second current",
    "coupling": "how much the threshold follows V",
    "tau_coupling_ms": "how fast the threshold follows V",
    "coupling_onset": "V above which the threshold follows, in thresholds",
    "coupling_width": "width of that onset, in thresholds",
    "escape_width": "change of V by which the rate grows e-fold, in thresholds",
    "dt_ms": "time step",
}
PARAMETERS = tuple(_MEANINGS)
"""Columns of `fits.csv` that the page explains."""


def fit_sections(
    table: pd.DataFrame, cells: Sequence[CellTraces], failed: Mapping[str, str]
) -> list[Section]:
    """Fitted neurons: their parameters and scores, and each cell's traces.

    Args:
        table: a row per cell, as in `fits.csv`. Columns `<name>_low` and `<name>_high` hold 90 %
            intervals, `not_constrained` the parameters of which the stimulus says little, and the
            first column whose name ends in "type" the types of the cells.
        cells: their traces, in the same order.
        failed: cell that could not be fitted → reason.
    """
    order = table["test_etv_15ms"].to_numpy(float).argsort()[::-1]
    table, cells = table.iloc[order], [cells[k] for k in order]
    kind = next((str(name) for name in table if str(name).endswith("type")), None)
    names = [name for name in PARAMETERS if name in table and (table[name] != 0).any()]
    about = ["cell", *([kind] if kind else [])]
    parameters = table[about].assign(**{
        name: [_with_interval(row, name) for row in table.to_dict("records")] for name in names
    })  # fmt: skip
    if "not_constrained" in table:
        parameters["not constrained"] = table["not_constrained"]
    meanings = pd.DataFrame({"parameter": names, "meaning": [_MEANINGS[name] for name in names]})
    scores = [name for name in table if str(name).startswith(("test_", "train_"))]
    of_scores = table[["cell"]].assign(**{name: table[name].map(_number) for name in scores})
    if len(table) == 1:
        meanings.insert(1, "value", parameters[names].iloc[0].tolist())
        parameters = parameters.drop(columns=names)
        of_scores = of_scores.drop(columns="cell").T.reset_index()
        of_scores.columns = ["score", "value"]
    explained = [
        f"ETV is the share of the variance of the recorded rate that the model explains, σ "
        f"{SIGMA_MS:g} ms, relative to the best possible; null is the ETV of a constant rate "
        "during the stimulus, reliability that of another trial of the neuron. Thresholds are "
        "relative to the distance from the reset to the threshold without adaptation.",
        *(f"Left out: {reason}" for reason in failed.values()),
    ]
    tables = [x for x in (parameters, meanings) if len(x.columns) > 1 or len(table) > 1]
    several = [_all_scores(table), _distributions(table, names, kind)] if len(table) > 1 else []
    return [
        Section("Parameters", ["In brackets: 90 % intervals."] * any(
            f"{name}_low" in table for name in names), tables, several[1:]),
        Section("Scores", explained, [of_scores], several[:1]),
        Section("Cells" if len(table) > 1 else "Cell", _ABOUT_CELLS, figures=[_cells(cells)]),
    ]  # fmt: skip


_ABOUT_CELLS = (
    f"Grey: recorded, orange: model; rates are smoothed by a Gaussian of σ {SIGMA_MS:g} ms. V and "
    "its threshold (dashed) are those of the model without noise. The recorded voltage is the "
    "largest of each step, in the first trial. In the rates against the current, filled points are "
    "test segments, and hollow ones training.",
)


def _with_interval(row: Mapping[Any, Any], name: str) -> str:
    low, high = (row.get(f"{name}_{end}", np.nan) for end in ("low", "high"))
    interval = "" if pd.isna(low) or pd.isna(high) else f" ({_number(low)} to {_number(high)})"
    return _number(row[name]) + interval


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or pd.isna(value):
        return text_of(value)
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _all_scores(table: pd.DataFrame) -> go.Figure:
    """ETV of each cell beside the two that it is compared with."""
    looks = {"etv": ("model", ORANGE, "circle"), "reliability_etv": ("reliability", GREY, "circle-open"),
             "null_etv": ("null", BLUE, "line-ew-open")}  # fmt: skip
    figure = go.Figure()
    for name, (label, colour, symbol) in looks.items():
        if (column := f"test_{name}_15ms") in table:
            figure.add_scatter(
                x=table["cell"].astype(str), y=table[column], mode="markers", name=label,
                marker={"color": colour, "symbol": symbol, "size": 8},
            )  # fmt: skip
    return figure.update_yaxes(title_text="ETV, test").update_xaxes(type="category")


def _distributions(table: pd.DataFrame, names: Sequence[str], kind: str | None) -> go.Figure:
    """A point per cell and parameter, and quartiles, by type of the cell."""
    varied = [name for name in names if table[name].nunique() > 1]
    n_columns = min(len(varied), 4) or 1
    figure = make_subplots(-(-len(varied) // n_columns) or 1, n_columns, subplot_titles=varied)
    for i, name in enumerate(varied):
        figure.add_box(
            x=table[kind].fillna("–") if kind else None, y=table[name], text=table["cell"],
            boxpoints="all", jitter=0.4, pointpos=0, marker={"color": BLUE, "opacity": 0.6},
            line_color=GREY, name="", row=i // n_columns + 1, col=i % n_columns + 1,
        )  # fmt: skip
    figure.update_annotations(font_size=12)
    return figure.update_layout(height=240 * (-(-len(varied) // n_columns) or 1) + 60, showlegend=False)


def _cells(cells: Sequence[CellTraces]) -> go.Figure:
    """Traces of a segment at a time: current, trials, rates, V; below, rates and intervals."""
    rows = ["current (pA)", "trial", "rate (Hz)", "V (thresholds)"]
    if any(cell.voltage_mv is not None for cell in cells):
        rows.append("voltage (mV)")
    n = len(rows)
    wide: list[list[Any]] = [[{"colspan": 2}, None]] * n
    figure = make_subplots(
        n + 1, 2, specs=[*wide, [{}, {}]], vertical_spacing=0.06, row_heights=[1] * n + [1.6]
    )
    figure.update_xaxes(matches="x", selector=lambda axis: axis.anchor in [f"y{i}" for i in range(2, n + 1)])
    choices = {}
    for cell in cells:
        for k, title in enumerate(cell.titles):
            start = f"{cell.name}, " if len(cells) > 1 else ""
            scores = f"ETV {cell.etv_15ms[k]:.2f}, Γ {cell.gamma_4ms[k]:.2f}"
            choices[f"{start}{title}: {scores}"] = _segment(cell, k, n)
    places = [(1, 1), (2, 1), (2, 1), (3, 1), (3, 1), (4, 1), (4, 1), *[(5, 1)] * (n - 4)]
    _choose(figure, choices, [*places, (n + 1, 1), (n + 1, 1), (n + 1, 2), (n + 1, 2)])
    for i, name in enumerate(rows):
        figure.update_yaxes(title_text=name, row=i + 1, col=1)
    figure.update_yaxes(autorange="reversed", showticklabels=False, row=2, col=1)
    figure.update_xaxes(title_text="time (ms)", row=n, col=1)
    figure.update_xaxes(title_text="current (pA)", row=n + 1, col=1)
    figure.update_yaxes(title_text="rate (Hz)", row=n + 1, col=1)
    figure.update_xaxes(title_text="interval (ms)", row=n + 1, col=2)
    figure.update_yaxes(title_text="share", row=n + 1, col=2)
    return figure.update_layout(height=150 * n + 380, showlegend=False, barmode="overlay")


def _segment(cell: CellTraces, k: int, n_rows: int) -> list[Any]:
    def line(values: np.ndarray | None, colour: str, name: str, dx: float = 0, **look: Any) -> Any:
        y = None if values is None else values[k].astype(np.float32)
        step = dx or cell.dt_ms * cell.n_steps / (1 if y is None else len(y))
        return go.Scatter(y=y, x0=0, dx=step, name=name, line={"color": colour, "width": 1, **look})

    trains = [spikes[spikes[:, 0] == k] for spikes in (cell.recorded, cell.model)]
    n_recorded, every = int(cell.n_recorded[k]), cell.rate_steps * cell.dt_ms
    looks = ((GREY, "recorded"), (ORANGE, "model"))
    rates = np.asarray(cell.rates, np.float32)
    symbols = np.where(rates[:, 3] > 0, "circle", "circle-open").tolist()
    voltage = [line(cell.voltage_mv, GREY, "voltage")] if n_rows > 4 else []
    return [
        line(cell.current_pa, GREY, "current"),
        _ticks(trains[0][:, 2] * cell.dt_ms, trains[0][:, 1] + 1, *looks[0]),
        _ticks(trains[1][:, 2] * cell.dt_ms, trains[1][:, 1] + n_recorded + 2, *looks[1]),
        line(cell.recorded_hz, *looks[0], dx=every),
        line(cell.model_hz, *looks[1], dx=every),
        line(cell.membrane, ORANGE, "V"),
        line(cell.threshold, ORANGE, "threshold", dash="dot"),
        *voltage,
        *(
            go.Scatter(
                x=rates[:, 0], y=rates[:, i + 1], name=name, mode="markers",
                marker={"color": colour, "symbol": symbols, "size": 7},
            )
            for i, (colour, name) in enumerate(looks)
        ),
        *(
            go.Histogram(
                x=_intervals_ms(spikes, cell.dt_ms), histnorm="probability", bingroup=1,
                marker_color=colour, opacity=0.6, name=name,
            )
            for spikes, (colour, name) in zip((cell.recorded, cell.model), looks, strict=True)
        ),
    ]  # fmt: skip


def _intervals_ms(spikes: np.ndarray, dt_ms: float) -> np.ndarray:
    """Intervals between spikes [n, 3] of one trial of one segment."""
    ordered = spikes[np.lexsort(spikes.T[::-1])]
    same = (np.diff(ordered[:, :2], axis=0) == 0).all(1)
    return (np.diff(ordered[:, 2])[same] * dt_ms).astype(np.float32)


def _ticks(time_ms: np.ndarray, row: np.ndarray, colour: str, name: str) -> go.Scatter:
    """Spikes as vertical lines of one path, which browsers draw and zoom quickly."""
    x = np.repeat(np.asarray(time_ms, np.float32), 3)
    y = np.asarray(row, np.float32)[:, None] + np.array([-0.4, 0.4, np.nan], np.float32)
    return go.Scatter(x=x, y=y.ravel(), mode="lines", name=name, line={"color": colour, "width": 1})


def _choose(
    figure: go.Figure, choices: Mapping[str, list[Any]], places: Sequence[tuple[int, int]]
) -> None:
    """Draw the traces of the first choice, and a menu of all if there are several."""
    first = next(iter(choices.values()))
    for trace, (row, column) in zip(first, places, strict=True):
        figure.add_trace(trace, row, column)
    if len(choices) == 1:
        figure.update_layout(title=next(iter(choices)))
        return
    axes = [{"xaxis": trace.xaxis, "yaxis": trace.yaxis} for trace in figure.data]
    figure.frames = [
        go.Frame(name=name, data=[t.update(x) for t, x in zip(traces, axes, strict=True)])
        for name, traces in choices.items()
    ]
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    buttons = [{"label": x, "method": "animate", "args": [[x], at_once]} for x in choices]
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(updatemenus=[menu])


def pictures_section(folder: Path) -> Section | None:
    """The pictures in a folder, as `blockspike plot` drew them; None if there are none."""
    files = sorted(folder.glob("*.png"))
    pictures = {
        file.stem: f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        for file in files
    }
    return Section("Pictures", [f"From {folder}."], pictures=pictures) if files else None
