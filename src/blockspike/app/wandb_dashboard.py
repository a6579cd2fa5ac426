"""A Weights & Biases dashboard for a project, made from code (extra `wandb`).

    python -m blockspike.app.wandb_dashboard ENTITY/PROJECT

Needs `wandb login`; each call saves a new view and prints its address.
"""

import sys
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

# Configuration keys: runs that differ in one of them are never averaged.
_APART = ("choices.model", "model.arp_ms", "data_config", "network.n_hidden", "choices.population")
_RATES = [f"{part}/rate_layer[0-9]+_hz" for part in ("val", "train")]
_SECTIONS: dict[str, tuple[str, list[str]]] = {
    "Test accuracy": ("bars", ["test_accuracy", "val_accuracy"]),
    "Accuracy": ("lines", ["val/accuracy", "train/accuracy"]),
    "Loss": ("lines", ["val/loss", "train/loss"]),
    "Firing rates": ("patterns", _RATES),
    "Optimisation": ("lines", ["lr", "train/grad_norm"]),
    "Media": ("media", ["media/raster", "media/recording", "media/fits"]),
    "Fits of neurons": ("bars", ["test_etv_15ms_median", "test_gamma_4ms_median"]),
    "Time": ("lines", ["time/epoch_s", "time/samples_per_s"]),
}


def dashboard(entity: str, project: str) -> ws.Workspace:
    """Unsaved workspace with runs grouped by experiment, neuron, data set and network size.

    A line or bar is the mean over a group's runs, which differ in seed and other swept options.
    """
    sections = [
        ws.Section(name=name, panels=[_panel(kind, key) for key in keys], is_open=True)
        for name, (kind, keys) in _SECTIONS.items()
    ]
    group = [ws.Metric("Group"), *(ws.Config(key) for key in _APART)]
    return ws.Workspace(
        entity=entity, project=project, name="blockspike", sections=sections,
        auto_generate_panels=True,  # histograms, and anything else that is logged
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(groupby=group),
    )  # fmt: skip


def _panel(kind: str, key: str) -> Any:
    if kind == "bars":
        return wr.BarPlot(title=key, metrics=[key], groupby_aggfunc="mean")
    if kind == "media":
        return wr.MediaBrowser(title=key, media_keys=[key])
    of: Any = {"metric_regex": key} if kind == "patterns" else {"y": [key]}
    return wr.LinePlot(title=key, x="epoch", **of)


if __name__ == "__main__":
    dashboard(*sys.argv[1].split("/")).save()
