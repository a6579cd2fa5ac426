"""Figures of the report's page, by plotly: they zoom, and name what the pointer is on."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from blockspike.figures.cell_traces import CellTraces
from blockspike.plots.means import means
from blockspike.plots.style import BLUE, GREY, ORANGE
from blockspike.plots.sweep import Roles, text_of


def learning_curves(metrics: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Validation loss and accuracy of runs by epoch; of one run, those of training too.

    Args:
        metrics: run → a row per epoch, as in `metrics.csv`.
    """
    names = [n for n in ("loss", "accuracy") if any(f"train/{n}" in t for t in metrics.values())]
    figure = make_subplots(1, max(1, len(names)), subplot_titles=names)
    for run, table in metrics.items():
        for column, name in enumerate(names, 1):
            for part in ("train", "val") if len(metrics) == 1 else ("val",):
                if f"{part}/{name}" not in table:
                    continue
                figure.add_scatter(
                    x=table["epoch"] + 1, y=table[f"{part}/{name}"], mode="lines",
                    name=part if len(metrics) == 1 else run, legendgroup=run,
                    showlegend=column == 1 and len(metrics) <= 20,
                    line={"color": {"train": GREY, "val": BLUE}[part]} if len(metrics) == 1 else {},
                    hovertemplate=f"{run}<br>epoch %{{x}}: %{{y:.4g}}<extra></extra>",
                    row=1, col=column,
                )  # fmt: skip
    figure.update_xaxes(title="epoch")
    return figure.update_layout(height=360)


def sweep(table: pd.DataFrame, chosen: Roles, metric: str) -> go.Figure:
    """Means and standard errors of a metric, see `blockspike.plots.sweep.sweep`."""
    found = means(table, chosen.all, metric)
    facets = found[chosen.facet].unique() if chosen.facet else [None]
    figure = make_subplots(
        1, len(facets), shared_yaxes=True,
        subplot_titles=[f"{chosen.facet} {text_of(x)}" for x in facets] if chosen.facet else None,
    )  # fmt: skip
    for column, facet in enumerate(facets, 1):
        own = found if facet is None else found[found[chosen.facet] == facet]
        by_colour = own.groupby(list(chosen.color), dropna=False) if chosen.color else [((), own)]
        for values, points in by_colour:
            label = ", ".join(map(text_of, values if isinstance(values, tuple) else (values,)))
            figure.add_scatter(
                x=points[chosen.x], y=points["mean"], name=label, legendgroup=label,
                error_y={"array": points["standard_error"], "type": "data"},
                customdata=points["n"], mode="lines+markers",
                hovertemplate=f"{label}<br>%{{x}}: %{{y:.4g}}, %{{customdata}} runs<extra></extra>",
                showlegend=column == 1 and bool(label), row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title=chosen.x)
    return figure.update_layout(height=380, yaxis_title=metric)


def confusion(counts: np.ndarray) -> go.Figure:
    """Share of each true class's samples that is taken for each class.

    Args:
        counts: numbers of test samples [true class, predicted class].
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = go.Figure(go.Heatmap(
        z=share, customdata=counts, colorscale="Blues", zmin=0, zmax=1,
        hovertemplate="true %{y}, predicted %{x}: %{customdata} samples<extra></extra>",
    ))  # fmt: skip
    figure.update_layout(
        xaxis_title="predicted class", yaxis_title="true class", height=480, width=560
    )
    return figure.update_yaxes(autorange="reversed")


def raster(activity: Mapping[str, np.ndarray]) -> go.Figure:
    """Spikes of the input and the layers, and the readout, of a few test samples.

    Args:
        activity: see `blockspike.plots.raster.raster`.
    """
    n_samples = sum(name.endswith("_label") for name in activity)
    n_layers = sum(name.startswith("n_units_layer") for name in activity)
    names = ["input", *(f"hidden {i}" for i in range(1, n_layers)), "readout V"]
    figure = make_subplots(n_layers + 1, 1, shared_xaxes=True, vertical_spacing=0.03)
    dt_ms, titles = float(activity["dt_ms"]), []
    for k in range(n_samples):
        label, predicted = (int(activity[f"sample{k}_{x}"]) for x in ("label", "predicted"))
        titles.append(f"class {label}, classified as {predicted}")
        look = {"visible": k == 0, "showlegend": False}
        for i in range(n_layers):
            step, unit = activity[f"sample{k}_layer{i}"]
            figure.add_scattergl(
                x=step * dt_ms, y=unit, mode="markers", marker={"size": 3, "color": BLUE},
                hovertemplate="neuron %{y}, %{x} ms<extra></extra>", row=i + 1, col=1, **look,
            )  # fmt: skip
        readout = activity[f"sample{k}_readout"]
        for c in range(readout.shape[1]):
            figure.add_scatter(
                x=np.arange(len(readout)) * dt_ms, y=readout[:, c], mode="lines",
                line={"color": ORANGE if c == label else "lightgrey", "width": 1.5},
                hovertemplate=f"class {c}: %{{y:.3g}}<extra></extra>", row=n_layers + 1, col=1,
                **look,
            )  # fmt: skip
    for row, name in enumerate(names, 1):
        figure.update_yaxes(title=name, row=row, col=1)
    figure.update_xaxes(title="time (ms)", row=n_layers + 1, col=1)
    _choose(figure, titles)
    return figure.update_layout(height=160 + 170 * (n_layers + 1))


def cell(traces: CellTraces) -> go.Figure:
    """Current, spikes, rates, membrane and voltage of a fitted cell; one test segment at a time."""
    voltage = traces.voltage_mv is not None
    names = ["current (pA)", "trial", "rate (Hz)", "V, θ", *(["voltage (mV)"] if voltage else [])]
    figure = make_subplots(len(names), 1, shared_xaxes=True, vertical_spacing=0.03)
    length_s = traces.n_steps * traces.dt_ms / 1000
    for k in range(len(traces.titles)):

        def line(row: int, series: np.ndarray, name: str, colour: str, k: int = k) -> None:
            values = series[k].astype(float)
            figure.add_scatter(
                x=np.arange(len(values)) * (length_s / len(values)), y=values, name=name,
                mode="lines", line={"color": colour, "width": 1}, visible=k == 0,
                legendgroup=name, showlegend=name in ("recorded", "model") and row == 3,
                hovertemplate=f"{name} %{{y:.4g}}, %{{x:.4f}} s<extra></extra>", row=row, col=1,
            )  # fmt: skip

        line(1, traces.current_pa, "current", GREY)
        n_recorded = int(traces.n_recorded[k])
        for spikes, first, name, colour in (
            (traces.recorded, 1, "recorded", GREY),
            (traces.model, n_recorded + 2, "model", ORANGE),
        ):
            own = spikes[spikes[:, 0] == k]
            figure.add_scattergl(
                x=own[:, 2] * traces.dt_ms / 1000, y=own[:, 1] + first, mode="markers",
                marker={"symbol": "line-ns-open", "size": 7, "color": colour}, visible=k == 0,
                hovertemplate=f"{name}, %{{x:.4f}} s<extra></extra>", showlegend=False, row=2,
                col=1,
            )  # fmt: skip
        line(3, traces.recorded_hz, "recorded", GREY)
        line(3, traces.model_hz, "model", ORANGE)
        line(4, traces.membrane, "V", BLUE)
        line(4, traces.threshold, "θ", "lightgrey")
        if traces.voltage_mv is not None:
            line(5, traces.voltage_mv, "recorded", GREY)
    for row, name in enumerate(names, 1):
        figure.update_yaxes(title=name, row=row, col=1)
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    figure.update_xaxes(title="time (s)", row=len(names), col=1)
    scores = zip(traces.titles, traces.etv_15ms, traces.gamma_4ms, strict=True)
    _choose(figure, [f"{title}: ETV {etv:.3f}, Γ {gamma:.3f}" for title, etv, gamma in scores])
    return figure.update_layout(height=150 * len(names) + 80)


def rates(traces: CellTraces) -> go.Figure:
    """Rate against current (f-I), and intervals between spikes, of the recording and the model."""
    figure = make_subplots(
        1, 2, subplot_titles=["rate during a step" if traces.are_steps else "rate of a segment",
                              "intervals between spikes"],
    )  # fmt: skip
    current, recorded, model, is_test = np.asarray(traces.rates, float).T
    shown = (("recorded", recorded, GREY, traces.recorded), ("model", model, ORANGE, traces.model))
    for name, hz, colour, spikes in shown:
        for part, own, symbol in (("test", is_test > 0, "circle"),
                                  ("training", is_test == 0, "circle-open")):  # fmt: skip
            figure.add_scatter(
                x=current[own], y=hz[own], mode="markers", name=f"{name}, {part}",
                marker={"color": colour, "symbol": symbol}, row=1, col=1,
            )  # fmt: skip
        figure.add_histogram(
            x=_intervals_ms(spikes, traces.dt_ms), histnorm="probability", opacity=0.6,
            marker_color=colour, showlegend=False, name=name, row=1, col=2,
        )  # fmt: skip
    figure.update_xaxes(title="current (pA)", row=1, col=1)
    figure.update_yaxes(title="rate (Hz)", row=1, col=1)
    figure.update_xaxes(title="interval (ms)", row=1, col=2)
    return figure.update_layout(height=360, barmode="overlay")


def distributions(table: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """A point per cell for each column, with its quartiles.

    Args:
        table: a row per cell, as in `fits.csv`.
        names: columns of numbers.
    """
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = make_subplots(n_rows, n_columns, subplot_titles=list(names))
    for i, name in enumerate(names):
        figure.add_box(
            y=table[name], text=table["cell"], boxpoints="all", jitter=0.5, pointpos=0, name="",
            marker={"color": BLUE, "size": 4}, fillcolor="rgba(0,0,0,0)", showlegend=False,
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
            row=i // n_columns + 1, col=i % n_columns + 1,
        )  # fmt: skip
    return figure.update_layout(height=260 * n_rows)


def _choose(figure: go.Figure, titles: Sequence[str]) -> None:
    """Add a menu that shows one of several equal groups of traces."""
    if len(titles) == 1:
        figure.update_layout(title=titles[0])
        return
    each = len(figure.data) // len(titles)
    buttons = [
        {"label": title, "method": "update",
         "args": [{"visible": [i // each == k for i in range(len(figure.data))]}]}
        for k, title in enumerate(titles)
    ]  # fmt: skip
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.08}]
    )


def _intervals_ms(spikes: np.ndarray, dt_ms: float) -> np.ndarray:
    """Intervals between spikes [n, 3] of one trial of one segment."""
    ordered = spikes[np.lexsort(spikes.T[::-1])]
    same = (np.diff(ordered[:, :2], axis=0) == 0).all(1)
    return np.diff(ordered[:, 2])[same] * dt_ms
