"""`blockspike evaluate`: a finished run on its test data, beside a linear model."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from blockspike.commands.activity import activity
from blockspike.commands.evaluate_neuron import evaluate_neuron
from blockspike.commands.run_once import use_threads
from blockspike.config.build import build_data, build_network
from blockspike.data.datamodule import EventDataModule
from blockspike.files import CONF, write_json, write_npz
from blockspike.networks.classifier import SpikingClassifier
from blockspike.pretrained import read_network, weights_dtype
from blockspike.runs.identity import content_of, is_fit
from blockspike.runs.run import Run
from blockspike.training.checkpoint_io import load_plain
from blockspike.training.linear_baseline import linear_baseline


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """A finished run or a trained network on its test data, or a fitted neuron on a recording.

    Of a classifier, print and write `evaluation.json`, and `activity.npz` for the figures.

    Returns:
        What `evaluation.json` holds: accuracies of the chosen model and of a linear model on
        spike counts, and the confusion matrix [true class, predicted class].

    Raises:
        FileNotFoundError: no finished run in the folder.
        ValueError: its best checkpoint is damaged, or not exactly one of run, pretrained, and
            neuron with recording, is given.
    """
    use_threads(cfg.threads)
    given = {k for k in ("run", "pretrained", "neuron", "recording") if cfg[k] is not None}
    if given == {"pretrained"}:
        return _evaluate_pretrained(cfg)
    if given == {"neuron", "recording"}:
        return evaluate_neuron(Path(cfg.neuron), Path(cfg.recording), cfg.stimulus)
    if given != {"run"}:
        raise ValueError(
            "run, pretrained, neuron, recording: expected run=FOLDER, or neuron=FILE with "
            f"recording=FILE, or pretrained=NAME, got {', '.join(sorted(given)) or 'none of them'}"
        )
    run = Run(Path(cfg.run))
    data, network = load_run(run)
    precision = run.config().trainer.get("precision", "32-true")
    predicted, labels = _predict(network, data, precision)
    confusion = np.zeros((data.n_classes, data.n_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    baseline = linear_baseline(*(data.spike_counts(split) for split in ("train", "val", "test")))
    scores = {
        "data_set": data.name,
        "n_test": len(labels),
        "test_accuracy": float((predicted == labels).mean()),
        "linear_model_test_accuracy": baseline,
        "confusion": confusion.tolist(),
    }
    write_json(run.folder / "evaluation.json", scores)
    events, labels = next(iter(data.test_dataloader()))
    with torch.no_grad(), _as_trained(precision):
        shown = activity(network(events), events, labels, data.dt_ms)
    write_npz(run.folder / "activity.npz", shown)
    print(
        f"{data.name}: test accuracy {scores['test_accuracy']:.2%} of {scores['n_test']} "
        f"(model chosen on validation); linear model on spike counts: {baseline:.2%}"
    )
    return scores


def _evaluate_pretrained(cfg: DictConfig) -> dict[str, Any]:
    """A trained network on the test data of its kind, as they are prepared here."""
    about, network = read_network(cfg.pretrained)
    files = CONF / "data" / f"{Path(about.data_config).name}.yaml"
    if not files.is_file():
        raise ValueError(f"{cfg.pretrained}: its data, {about.data_config}, are not known here")
    places = OmegaConf.masked_copy(cast(DictConfig, OmegaConf.load(files)), ["path", "raw"])
    if set(places) != {"path", "raw"}:
        raise ValueError(f"{cfg.pretrained}: its data, {about.data_config}, are not of events")
    own = {k: v for k, v in about.data.items() if k not in ("path", "raw", "download")}
    whole = OmegaConf.merge({"data_dir": cfg.data_dir, "data": own}, {"data": places})
    data = build_data(cast(DictConfig, whole), EventDataModule)
    data.prepare_data()
    data.setup()
    predicted, labels = _predict(network, data, about.card.get("precision", "32-true"))
    accuracy = float((predicted == labels).mean())
    same = "" if about.card.get("data_sha256") == data.sha256 else " of other data"
    print(
        f"{data.name}: test accuracy {accuracy:.2%} of {len(labels)}; "
        f"its card says {about.card['test_accuracy']:.2%}{same}"
    )
    return {"data_set": data.name, "n_test": len(labels), "test_accuracy": accuracy}


def load_run(run: Run) -> tuple[EventDataModule, SpikingClassifier]:
    """The data of a finished run, opened, and its network with the chosen weights.

    Raises:
        FileNotFoundError: no run, or no checkpoint, in the folder.
        ValueError: one of its files is damaged, or the data have changed.
    """
    cfg = run.config()
    OmegaConf.set_struct(cfg, True)
    try:
        content = content_of(cfg)
    except (KeyError, AttributeError) as error:  # no data, or nothing in them
        raise ValueError(f"{run.folder / 'config.yaml'}: damaged, lacks {error}") from error
    run.check_content(content)  # the file may have been edited, or a bit flipped
    if is_fit(cfg):
        raise ValueError(f"{run.folder}: holds fitted neurons, scored already; see fits.csv there")
    data = build_data(cfg, EventDataModule)
    data.prepare_data()
    data.setup()
    run.check_data(data.sha256)
    network = build_network(cfg, data)
    weights = load_plain(run.best_checkpoint)["state_dict"]
    own = {k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")}
    network.to(weights_dtype(own))
    network.load_state_dict(own)
    return data, network.eval()


def _as_trained(precision: str) -> torch.autocast:
    """The context in which a run of this `trainer.precision` computes."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


@torch.no_grad()
def _predict(
    network: SpikingClassifier, data: EventDataModule, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    with _as_trained(precision):
        pairs = [
            (network(x).mean_over_views(len(y)).argmax(1), y) for x, y in data.test_dataloader()
        ]
    predicted, labels = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    return predicted, labels
