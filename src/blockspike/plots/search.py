"""Optuna's own pictures of a search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockspike.plots.style import save, use_whole_ticks

_FEWEST_TRIALS = 4  # finished, for importances
_MOST_NAMED = 12  # trials with an entry in a legend


def search_plots(study: Any, draw: Any) -> dict[str, Callable[[], Any]]:
    """Name → function that draws: history, epochs of each trial, importances of the parameters.

    Args:
        study: an `optuna.Study`.
        draw: `optuna.visualization` for plotly, or `optuna.visualization.matplotlib`.
    """
    from optuna.importance import PedAnovaImportanceEvaluator

    target = str(study.user_attrs.get("monitor", "value"))
    states = [trial.state.name for trial in study.trials]
    found = {
        "history": lambda: draw.plot_optimization_history(study, target_name=target),
        "epochs": lambda: draw.plot_intermediate_values(study),
    }
    if states.count("COMPLETE") >= _FEWEST_TRIALS:
        found["importances"] = lambda: draw.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target_name=target
        )
    return found if states else {}


def search(study: Any, folder: Path) -> list[Path]:
    """Write `search_<name>_<plot>.png` and .svg of a study into a folder; returns the PNGs."""
    from optuna.visualization import matplotlib

    paths = []
    for name, draw in search_plots(study, matplotlib).items():
        axis: Axes = draw()
        axis.set_title("", loc="left")
        axis.set_title(f"{study.study_name}: {name}", fontsize=10)
        if name != "importances":
            use_whole_ticks(axis.xaxis)
        if name == "epochs":
            axis.set(xlabel="epoch", ylabel=study.user_attrs.get("monitor", "value"))
            if (legend := axis.get_legend()) is not None and len(axis.lines) > _MOST_NAMED:
                legend.remove()
        figure = axis.get_figure()
        assert isinstance(figure, Figure)
        figure.set_size_inches(7, 3.5)
        paths.append(save(figure, folder / f"search_{study.study_name}_{name}"))
    return paths
