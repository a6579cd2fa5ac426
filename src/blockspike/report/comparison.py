"""Comparison of published numbers with ours from a table of runs."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from blockspike.figures.panels import command_of, mean_over_seeds, names_of, tidy
from blockspike.figures.paper_numbers import paper_numbers
from blockspike.figures.surrogates import spikes_of

_ACCURACY = ("test_accuracy", "accuracy", "test accuracy (%)")
_EPOCH = ("epoch_duration", "epoch_s", "seconds per epoch (published: GPU, paper's recipe)")
# panel, title, published data set, experiment in paper_numbers.csv, configuration file, options
# varied besides method and refractory period, quantity
_PANELS = (
    ("nmnist", "Figure 4, N-MNIST", "N-MNIST", "nmnist", "paper_nmnist", (), _ACCURACY),
    ("nmnist", "Figure 4, N-MNIST", "N-MNIST", "nmnist", "paper_nmnist", (), _EPOCH),
    ("shd", "Figure 4, SHD", "SHD", "shd", "paper_shd", (), _ACCURACY),
    ("shd", "Figure 4, SHD", "SHD", "shd", "paper_shd", (), _EPOCH),
    (
        "surrogates", "Surrogate gradients", "SHD", "shd_surrogates", "paper_surrogates",
        ("surrogate",), _ACCURACY,
    ),
    (
        "detach", "Attached and detached spikes", "SHD", "shd_detach", "paper_detach",
        ("surrogate", "spikes"), _ACCURACY,
    ),
)  # fmt: skip
# Fused has the spikes and gradients of standard, so it is compared with the published standard.
_COMPARED_WITH = {"fused": "standard", "standard": "standard", "blocks": "blocks"}
_NOTHING = "–"


@dataclass(frozen=True)
class Comparison:
    """Published and our values of one quantity in one experiment.

    Attributes:
        title: name of the experiment.
        quantity: name and unit of the quantity.
        published_data_set: data set of the published values.
        rows: column → text: `method`, `recipe`, `setting`, `arp_ms`, `published`, `data_set` (of
            our runs), `ours` (mean ± standard error over seeds) and `n_seeds`; empty without runs.
        command: the command that makes the runs.
    """

    title: str
    quantity: str
    published_data_set: str
    rows: list[dict[str, str]]
    command: str


def comparisons(table: pd.DataFrame | None) -> list[Comparison]:
    """Compare published values with our means over seeds, for every published experiment.

    Args:
        table: a row per run, as `blockspike collect` writes; None = no table.

    Raises:
        ValueError: columns are missing, or two runs of a point have the same seed.
    """
    runs = _runs(table)
    return [_comparison(runs, *panel) for panel in _PANELS]


def _runs(table: pd.DataFrame | None) -> pd.DataFrame:
    """The runs of these experiments; empty without a table, which a report allows."""
    if table is None or "experiment" not in table:
        return pd.DataFrame({"panel": []})
    runs = tidy(table)
    return runs.assign(spikes=[spikes_of(detached) for detached in runs["detached"]])


def _comparison(
    runs: pd.DataFrame,
    panel: str,
    title: str,
    data_set: str,
    experiment: str,
    file: str,
    varied: tuple[str, ...],
    quantity: tuple[str, str, str],
) -> Comparison:
    key, column, label = quantity
    own = pd.DataFrame(runs[runs["panel"] == panel])
    rows = []
    if len(own):
        points = _beside(own, paper_numbers(experiment=experiment, quantity=key), varied, column)
        rows = [_row(point, varied) for point in points.to_dict("records")]
    return Comparison(title, label, data_set, rows, command_of(file))


def _beside(
    runs: pd.DataFrame, numbers: pd.DataFrame, varied: tuple[str, ...], column: str
) -> pd.DataFrame:
    """Join our points with the paper's of the same method and setting, one row each."""
    own = mean_over_seeds(runs, ["data_set", "recipe", "method", *varied, "arp_ms"], column)
    own["compared"] = own["method"].map(_COMPARED_WITH)
    arp_ms = numbers["arp_ms"].fillna(numbers["arp_steps"] * numbers["dt_ms"])
    published = numbers.assign(compared=numbers["method"], arp_ms=arp_ms.astype(float))
    keys = ["compared", *varied, "arp_ms"]
    published = pd.DataFrame(published[[*keys, "value"]])
    points = own.assign(arp_ms=own["arp_ms"].astype(float)).merge(published, on=keys, how="outer")
    return points.sort_values(["data_set", "recipe", "method", *keys], ignore_index=True)


def _row(point: dict[Any, Any], varied: tuple[str, ...]) -> dict[str, str]:
    known = not pd.isna(point["value"])
    other = f" ({point['compared']})" if point["method"] == "fused" else ""
    row = {
        "setting": ", ".join(str(point[name]).replace("_", " ") for name in varied),
        "arp_ms": f"{point['arp_ms']:g}",
        "published": f"{point['value']:.1f}{other}" if known else _NOTHING,
    }
    if pd.isna(point["mean"]):
        method, _ = names_of(point["compared"], "paper")
        nothing = dict.fromkeys(("recipe", "data_set", "ours"), _NOTHING)
        return {"method": method, **row, **nothing, "n_seeds": "0"}
    method, recipe = names_of(point["method"], point["recipe"])
    error = "" if pd.isna(point["error"]) else f" ± {point['error']:.1f}"
    own = {"data_set": str(point["data_set"]), "ours": f"{point['mean']:.1f}{error}"}
    return {"method": method, "recipe": recipe, **row, **own, "n_seeds": f"{point['n_seeds']:.0f}"}
