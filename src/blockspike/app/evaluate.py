"""`blockspike evaluate` for runs and trained networks."""

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from blockspike.app.activity import activity
from blockspike.app.build import check_targets, open_data
from blockspike.app.loaded_run import load_run
from blockspike.app.pretrained import read_network
from blockspike.data.datamodule import EventDataModule, stratified_subset
from blockspike.files import CONF, write_json, write_npz
from blockspike.networks.classifier import SpikingClassifier
from blockspike.runs.run import Run
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
    network, data, *_ = load_run(folder, trust)
    row = run.finished()
    precision = run.config().trainer.get("precision", "32-true")
    if "test_accuracy" not in row:
        return _evaluate_fold(run, network, data, precision)
    predicted, labels = _predict(network, data, precision)
    confusion = np.zeros((data.n_classes, data.n_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    baseline = linear_baseline(*_spike_counts(data))
    scores = {
        "data_set": data.name,
        "n_test": len(labels),
        "test_accuracy": _accuracy(predicted, labels),
        "linear_model_test_accuracy": baseline,
        "confusion": confusion.tolist(),
    }
    views = ""
    if data.n_views > 1:
        one = _accuracy(*_predict(network, data, precision, with_views=False))
        scores["test_accuracy_without_views"] = one
        views = f" with {data.n_views} views of each, {one:.2%} without"
    write_json(run.folder / "evaluation.json", scores)
    _compare(run, scores["test_accuracy"], len(labels))
    events, labels = next(iter(data.test_dataloader()))
    with torch.no_grad(), _as_trained(precision):
        shown = activity(network(events), events, labels, data.dt_ms)
    write_npz(run.folder / "activity.npz", shown)
    print(
        f"{data.name}: test accuracy {scores['test_accuracy']:.2%} of {scores['n_test']}{views} "
        f"({'model chosen on validation' if data.validates else 'trained on everything'}); "
        f"linear model on spike counts: {baseline:.2%}"
    )
    return scores


def _compare(run: Run, accuracy: float, n_test: int) -> None:
    """Warn if the accuracy is not that of the run's own test, up to rounding."""
    before = (run.result() or {})["test_accuracy"]
    limit = run.config().trainer.get("limit_test_batches")
    is_whole = limit is None or (limit == 1 and isinstance(limit, float))
    if is_whole and abs(accuracy - before) > max(_BY_ROUNDING, 1.5 / n_test):
        warnings.warn(
            f"{run.folder}: test accuracy {accuracy:.2%}, but {before:.2%} when the run ended: the "
            "code of a class, the prepared data or the device is not the same",
            stacklevel=2,
        )


def _evaluate_fold(
    run: Run, network: SpikingClassifier, data: EventDataModule, precision: str
) -> dict[str, Any]:
    """Score a fold on what it held out, as validation does and with the views of the test."""
    predicted, labels = _predict(network, data, precision, "val", with_views=False)
    scores: dict[str, Any] = {"data_set": data.name, "n_val": len(labels)}
    scores["val_accuracy"] = _accuracy(predicted, labels)
    views = ""
    if data.n_views > 1:
        several = _accuracy(*_predict(network, data, precision, "val"))
        scores["val_accuracy_with_views"] = several
        views = f", {several:.2%} with {data.n_views} views of each"
    write_json(run.folder / "evaluation.json", scores)
    print(
        f"{data.name}: accuracy on what the fold held out {scores['val_accuracy']:.2%} of "
        f"{len(labels)}{views} (epoch chosen on the same)"
    )
    return scores


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float((predicted == labels).mean())


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
    predicted, labels = _predict(network, data, about.card.get("precision", "32-true"))
    accuracy = _accuracy(predicted, labels)
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
def _predict(
    network: SpikingClassifier,
    data: EventDataModule,
    precision: str,
    split: str = "test",
    with_views: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    loader = data.scored_dataloader(split, with_views)
    with _as_trained(precision):
        pairs = [(network(x).mean_over_views(len(y)).argmax(1), y) for x, y in loader]
    predicted, labels = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    return predicted, labels
