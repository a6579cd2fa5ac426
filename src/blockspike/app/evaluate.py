"""`blockspike evaluate` for runs and trained networks."""

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from blockspike.app.activity import activity_of
from blockspike.app.build import check_targets, open_data
from blockspike.app.loaded_run import load_run
from blockspike.app.pretrained import read_network
from blockspike.data.datamodule import EventDataModule, stratified_subset
from blockspike.files import CONF, write_json, write_npz
from blockspike.networks.classifier import SpikingClassifier
from blockspike.runs.run import Run
from blockspike.training.classification import scores_of
from blockspike.training.linear_baseline import linear_baseline

_BY_ROUNDING = 0.02  # difference of two accuracies of the same network


def evaluate(folder: Path, trust: bool = False) -> dict[str, Any]:
    """Test a finished run and compare it with a linear model on spike counts.

    Print the accuracy and write `evaluation.json`, and `activity.npz` for the pictures. If the test
    averages scores over several views of a recording, the accuracy without them is given, too. A
    fold of cross-validation is scored on the speaker whom it held out.

    Returns:
        The content of `evaluation.json`: accuracies of the chosen model and of the linear model,
        and the confusion matrix [true class, predicted class]; for a fold, accuracies alone.

    Raises:
        FileNotFoundError: the folder holds no run, or its data are missing.
        ValueError: the run is not finished, is not trusted (`load_run`), or a file is damaged.
    """
    run = Run(folder)
    network, data, config, _ = load_run(folder, trust)
    row = run.finished()
    part = "test" if "test_accuracy" in row else "val"
    with _as_trained(config.trainer.get("precision", "32-true")):
        predicted, labels = _predict(network, data, part, with_views=part == "test")
        accuracy = float((predicted == labels).mean())
        scores = {"data_set": row["data_set"], f"n_{part}": len(labels)}
        scores[f"{part}_accuracy"] = accuracy
        text = f"{part} accuracy {accuracy:.2%} of {len(labels)}"
        if getattr(data, "n_views", 1) > 1:
            predicted_other, _ = _predict(network, data, part, with_views=part != "test")
            other = float((predicted_other == labels).mean())
            name = "without" if part == "test" else "with"
            scores[f"{part}_accuracy_{name}_views"] = other
            own, others = "", f", {other:.2%} with {data.n_views} views of each"
            if part == "test":
                own, others = f" with {data.n_views} views of each", f", {other:.2%} without"
            text += own + others
        if part == "test":
            confusion = np.zeros((data.n_classes, data.n_classes), int)
            np.add.at(confusion, (labels, predicted), 1)
            scores["confusion"] = confusion.tolist()
            _compare(run, config, accuracy, len(labels), row["test_accuracy"])
            how = "model chosen on validation" if "val_accuracy" in row else "trained on everything"
            text += f" ({how})"
            if isinstance(data, EventDataModule):
                baseline = linear_baseline(*_spike_counts(data))
                scores["linear_model_test_accuracy"] = baseline
                text += f"; linear model on spike counts: {baseline:.2%}"
            if isinstance(network, SpikingClassifier):
                write_npz(run.folder / "activity.npz", activity_of(network, data))
    write_json(run.folder / "evaluation.json", scores)
    print(f"{row['data_set']}: {text}")
    return scores


def _compare(run: Run, config: DictConfig, accuracy: float, n_test: int, before: float) -> None:
    """Warn if the accuracy is not that of the run's own test, up to rounding."""
    is_whole = repr(config.trainer.get("limit_test_batches", 1.0)) == "1.0"  # 1 is one batch
    if is_whole and abs(accuracy - before) > max(_BY_ROUNDING, 1.5 / n_test):
        warnings.warn(
            f"{run.folder}: test accuracy {accuracy:.2%}, but {before:.2%} when the run ended: the "
            "code of a class, the prepared data or the device is not the same",
            stacklevel=2,
        )


def evaluate_pretrained(name: str, data_dir: Path, trust: bool = False) -> dict[str, Any]:
    """Test a trained network on its kind of test data, as prepared in `data_dir`.

    Args:
        name: as of `load_pretrained`.
        data_dir: folder of prepared data.
        trust: as of `load_pretrained`.

    Raises:
        FileNotFoundError: there is no such network, or no data.
        ValueError: the network is not trusted, or its data are of no known kind.
    """
    about, network = read_network(name, trust)
    file = CONF / "data" / f"{Path(about.data_config).name}.yaml"
    places = cast(DictConfig, OmegaConf.load(file) if file.is_file() else OmegaConf.create())
    if not {"path", "raw"} <= set(places):
        raise ValueError(
            f"{name}: expected a data configuration of events, got {about.data_config!r}"
        )
    own = {k: v for k, v in about.data.items() if k not in ("path", "raw", "download")}
    if not trust:
        check_targets(own, name)
    places = OmegaConf.masked_copy(places, ["path", "raw"])
    whole = OmegaConf.merge({"data_dir": str(data_dir), "data": own}, {"data": places})
    data = open_data(cast(DictConfig, whole), recordings=False)
    with _as_trained(about.card.get("precision", "32-true")):
        predicted, labels = _predict(network, data, "test", with_views=True)
    accuracy = float((predicted == labels).mean())
    same = "" if about.card.get("data_sha256") == data.sha256 else " on other data"
    print(
        f"{data.name}: test accuracy {accuracy:.2%} of {len(labels)}; "
        f"its card says {about.card['test_accuracy']:.2%}{same}"
    )
    return {"data_set": data.name, "n_test": len(labels), "test_accuracy": accuracy}


def _spike_counts(data: EventDataModule) -> list[tuple[np.ndarray, np.ndarray]]:
    """Counts and labels for training, validation and test of the linear model.

    Without a validation split, a tenth of the training data is one.
    """
    train, test = data.spike_counts("train"), data.spike_counts("test")
    if data.validates:
        return [train, data.spike_counts("val"), test]
    counts, labels = train
    held_out = stratified_subset(labels, 0.1, data.seed)
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    return [(counts[part], labels[part]) for part in (kept, held_out)] + [test]


def _as_trained(precision: str) -> torch.autocast:
    """Context for computing at a run's `trainer.precision`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


@torch.no_grad()
def _predict(network: Any, data: Any, part: str, with_views: bool) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and labels of a part of the data, "test" or "val"."""
    if isinstance(data, EventDataModule):
        loader = data.scored_dataloader(part, with_views)
    else:
        loader = getattr(data, f"{part}_dataloader")()
    pairs = [(scores_of(network(x), len(y)).argmax(1), y) for x, y in loader]
    predicted, labels = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    return predicted, labels
