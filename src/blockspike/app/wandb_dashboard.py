"""A Weights & Biases dashboard for a project, made from code (extra `wandb`).

    python -m blockspike.app.wandb_dashboard ENTITY/PROJECT

Needs `wandb login`; each call saves a new view and prints its address.
"""

import argparse
from typing import Any

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ImportError as error:
    raise SystemExit(f"{error}; install it with pip install 'blockspike[wandb]'") from error

# Configuration keys: runs that differ in one of them are never averaged.
_APART = ("choices.model", "model.arp_ms", "data_config", "network.n_hidden", "choices.population")


def dashboard(entity: str, project: str) -> ws.Workspace:
    """Unsaved workspace with runs grouped by experiment, neuron, data set and network size.

    A line or bar is the mean over a group's runs, which differ in seed and other swept options.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name="blockspike",
        sections=[
            _test(),
            _curves("Accuracy", "val/accuracy", "train/accuracy"),
            _curves("Loss", "val/loss", "train/loss"),
            _rates(),
            _curves("Optimisation", "lr", "train/grad_norm"),
            _media(),
            _fits(),
            _curves("Time", "time/epoch_s", "time/samples_per_s"),
        ],
        auto_generate_panels=True,  # histograms, and anything else that is logged
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group"), *(ws.Config(key) for key in _APART)]
        ),
    )


def _test() -> ws.Section:
    bars: list[Any] = [
        _bar("test_accuracy", "test accuracy of each group"),
        _bar("val_accuracy", "validation accuracy of each group"),
    ]
    return ws.Section(name="Test accuracy", panels=bars, is_open=True)


def _rates() -> ws.Section:
    curves: list[Any] = [
        wr.LinePlot(
            title=f"firing rate of each hidden layer (Hz), {split}", x="epoch",
            metric_regex=f"{split}/rate_layer[0-9]+_hz",
        )
        for split in ("val", "train")
    ]  # fmt: skip
    return ws.Section(name="Firing rates", panels=curves, is_open=True)


def _media() -> ws.Section:
    panels: list[Any] = [
        wr.MediaBrowser(title="test recordings", media_keys=["media/raster"]),
        wr.MediaBrowser(title="fits", media_keys=["media/recording", "media/fits"]),
    ]
    return ws.Section(name="Media", panels=panels, is_open=True)


def _fits() -> ws.Section:
    bars: list[Any] = [
        _bar("test_etv_15ms_median", "median normalised ETV on test (σ 15 ms)"),
        _bar("test_gamma_4ms_median", "median Γ on test (± 4 ms)"),
    ]
    return ws.Section(name="Fits of neurons", panels=bars, is_open=True)


def _curves(name: str, *metrics: str) -> ws.Section:
    """Line plots of the metrics against the epoch."""
    curves: list[Any] = [wr.LinePlot(title=metric, x="epoch", y=[metric]) for metric in metrics]
    return ws.Section(name=name, panels=curves, is_open=True)


def _bar(metric: str, title: str) -> wr.BarPlot:
    """Bars of means over the runset's groups."""
    return wr.BarPlot(title=title, metrics=[metric], groupby_aggfunc="mean")


def main() -> None:
    """Save the dashboard as a new view of the project."""
    parser = argparse.ArgumentParser(description="Save blockspike's dashboard as a new view.")
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    given = parser.parse_args().project
    entity, _, project = given.partition("/")
    if not entity or not project or "/" in project:
        parser.error(f"expected ENTITY/PROJECT, got {given!r}")
    dashboard(entity, project).save()


if __name__ == "__main__":
    main()
