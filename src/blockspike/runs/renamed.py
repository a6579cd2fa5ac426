"""Names of earlier versions: old overrides are refused, old tables converted."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

EXPERIMENTS = {
    "e3_nmnist": "paper_nmnist",
    "e3_nmnist_ours": "nmnist",
    "e4_shd": "paper_shd",
    "e4_shd_ours": "shd",
    "e5_surrogates": "paper_surrogates",
    "e5_surrogates_ours": "surrogates",
    "e6_detach": "paper_detach",
    "e6_detach_ours": "detach",
    "e7_recordings": "paper_recordings",
    "e7_recordings_ours": "recordings",
}
_FITS = ("paper_recordings", "recordings", "recovery")
_POPULATIONS = {"neurons": "alif", "physical": "alif", "published_neurons": "paper"}
_CLASSES = {  # old value of `fit.parameters` → class of the population
    "physical": "blockspike.fitting.population.PhysicalPopulation",
    "published": "blockspike.fitting.population.PaperPopulation",
}
_LAYER, _FORMER_LAYER = ".EulerAdLIFLayer", ".AdLIFLayer"  # of SE-adLIF and EF-adLIF
_FIT_KEYS = {"survival_every": "resample_every", "survivors": "elite_fraction", "root": "loss"}
OFF = {
    "trainer.precision": "32-true",
    "trainer.gradient_clip_algorithm": None,
    "trainer.accumulate_grad_batches": 1,
    "optimizer.fused": None,
    "model.batch_norm": False,
    "model.recurrent_dropout": 0.0,
    "model.recurrent_max_delay": 0,
    "network.init": "default",
    "network.recurrent_init": "default",
    "network.skip_steps": 0,
    "data.channel_time_jitter_ms": 0.0,
    "data.replaced": 0.0,
    "data.unchanged": 0.0,
    "data.electrode": None,
    "data.compensation": None,
    "data.train_warm_up_s": 0.0,
    "fit.voltage_weight": 0.0,
    "fit.prior_weight": 0.0,
    "data.noise": "membrane",  # of synthetic cells
    "data.neuron": "alif",  # of synthetic cells
}
"""Options that earlier versions lacked, with their values when they are off."""


def check_names(command: str, overrides: Iterable[str], has_own_files: bool = False) -> None:
    """Refuse an override of `train` or `fit` that uses an old name.

    If the user has configuration files, a name may be that of one of them.

    Raises:
        ValueError: names the override and says what to write instead.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if has_own_files and key in ("experiment", "model", "population"):
            continue
        for choice in value.split(","):
            if expected := _expected(command, key, choice):
                raise ValueError(f"{key}: expected {expected}, got {choice or 'no value'}")


def _expected(command: str, key: str, value: str) -> str | None:
    """New spelling of an override; None if it uses no old name."""
    new = EXPERIMENTS.get(value, value)
    if key == "experiment" and command == "train":
        if value == "fit_my_recording":
            return "`blockspike fit data.path=…`, which fits neurons to recordings"
        if new in _FITS:
            return f"`blockspike fit experiment={new}`, which fits neurons"
    if key == "experiment" and new != value:
        return new
    if key == "model" and value in _POPULATIONS:
        return f"`blockspike fit population={_POPULATIONS[value]}`"
    if command == "fit" and (key == "model" or key.startswith("model.")):
        return f"population{key.removeprefix('model')}"
    if key == "callbacks" and value.strip("[]") == "lr_monitor":
        return "other callbacks, since every run logs its learning rates"
    if key == "population" and value in _POPULATIONS:
        return _POPULATIONS[value]
    if key == "fit" and command == "train":
        return "`blockspike fit`, which fits neurons"
    if key == "fit" and value == "ours":
        return "multistart"
    if key.startswith("fit.") and key[4:] in _FIT_KEYS:
        return f"fit.{_FIT_KEYS[key[4:]]}"
    return None


def present_target(model: Mapping[str, Any]) -> Any:
    """Class of a model's layers by its present name; `model` is a node of a configuration."""
    target = model.get("_target_")
    is_former = "euler" in model and str(target).startswith("blockspike.networks.")
    if is_former and str(target).endswith(_FORMER_LAYER):
        return str(target).removesuffix(_FORMER_LAYER) + _LAYER
    return target


def former_target(target: str) -> str:
    """Class of a model's layers by the name that hashes of runs have had from the start."""
    is_renamed = target.startswith("blockspike.networks.") and target.endswith(_LAYER)
    return target.removesuffix(_LAYER) + _FORMER_LAYER if is_renamed else target


def with_new_names(table: pd.DataFrame) -> pd.DataFrame:
    """Copy a table of runs with the present names of experiments and columns."""
    table = table.copy()
    if "experiment" in table:
        table["experiment"] = [_experiment(name) for name in table["experiment"]]
    if "model.euler" in table and "model._target_" in table:
        is_adlif = ~pd.isna(table["model.euler"].to_numpy())
        targets = table["model._target_"][is_adlif]
        present = [present_target({"_target_": target, "euler": ""}) for target in targets]
        table.loc[is_adlif, "model._target_"] = present
    if "fit.parameters" not in table:
        return table
    is_fit = ~pd.isna(table["fit.parameters"].to_numpy())
    for name in [str(name) for name in table if str(name).startswith("model.")]:
        values = table[name].to_numpy()[is_fit]
        if not pd.isna(values).all():
            table.loc[is_fit, name.replace("model.", "population.", 1)] = values
            table.loc[is_fit, name] = None
    kinds = [_CLASSES[str(kind)] for kind in table["fit.parameters"][is_fit]]
    table.loc[is_fit, "population._target_"] = kinds
    return table.drop(columns="fit.parameters")


def _experiment(name: Any) -> Any:
    """Present name of an experiment; a value that is not text stays as it is."""
    if not isinstance(name, str):
        return name
    for old in sorted(EXPERIMENTS, key=len, reverse=True):
        if name == old:
            return EXPERIMENTS[old]
        if name.startswith(f"{old}_"):  # a custom recipe: e4_shd_wide → shd_wide
            return EXPERIMENTS[old].removeprefix("paper_") + name.removeprefix(old)
    return name
