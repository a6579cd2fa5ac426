"""`blockspike publish`: export a finished run's network as one file with a card."""

import shlex
from pathlib import Path
from typing import Any

from blockspike.app.loaded_run import load_run
from blockspike.app.pretrained import NetworkFile, about_pretrained, save_pretrained
from blockspike.files import write_text
from blockspike.networks.classifier import hidden_sizes
from blockspike.runs.identity import content_of
from blockspike.runs.run import Run
from blockspike.training.guard import warn

_CARD = """# {name}

{model} trained on {data_set}; {n_parameters:,} parameters.

| | |
|---|---|
| test accuracy{limits} | {test_accuracy:.2%} |
| {choice} |
| training accuracy in epoch {chosen_epoch} | {train_accuracy:.2%} |
| spikes per {part} recording | {spikes} |
| minutes of training | {minutes:.1f} (CPU threads: {n_threads}) |
| seed | {seed} |
| blockspike | {source} |
| data, SHA-256 of the prepared file's content | {data_sha256} |

To train it again with that version:

```
{command}
```

Use: `blockspike.load_pretrained("{name}.safetensors")`, with the path of the file next to this
card. A network that comes with blockspike is loaded by its name alone, and
`blockspike evaluate {name}` tests it again. Its input is events [T, B, {n_inputs}] in
steps of {dt_ms:g} ms; `blockspike.app.pretrained.about_pretrained("{name}.safetensors").data` says
how recordings are converted to it.
"""

_LIMITS = tuple(f"trainer.limit_{part}_batches" for part in ("train", "val", "test"))
_NEURONS = {
    "ALIFLayer": "ALIF",
    "AdLIFLayer": "adLIF",
    "CSiLIFLayer": "C-SiLIF",
    "GLIFLayer": "GLIF",
    "symplectic": "SE-adLIF",
    "forward": "EF-adLIF",
}
"""Name of the neurons by the class of their layers, or by Euler's method."""


def publish(folder: Path, name: str, output_dir: Path, trust: bool = False) -> Path:
    """Write `NAME.safetensors` and `NAME.md` into `output_dir/published`.

    Returns:
        Path of the `.safetensors` file.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the name has other characters than letters, digits and _, or is another run's,
            or the run is not finished, or its files are damaged.
    """
    if not name.replace("_", "").isalnum():
        raise ValueError(f"name: expected letters, digits and _, got {name!r}")
    run = Run(folder)
    network, data, *_ = load_run(folder, trust)
    row = run.finished()
    if "test_accuracy" not in row:
        raise ValueError(f"{run.folder}: expected a tested run, got a fold of cross-validation")
    # 1.0 is all batches, 1 is one.
    limits = [f"{k}={row[k]}" for k in _LIMITS if repr(row.get(k)) not in ("None", "1.0")]
    if limits:
        warn(f"{run.folder}: its scores are of a part of the data ({', '.join(limits)})")
    path = output_dir / "published" / f"{name}.safetensors"
    _check_is_free(path, row)
    content = content_of(run.config())
    card = _card(name, run, row, content, data.n_steps)
    about = NetworkFile(
        data.n_inputs, data.n_classes, data.dt_ms,
        content["model"], content["network"], content["data"], content["data_config"], card,
    )  # fmt: skip
    save_pretrained(path, network, about)
    part = f" ({', '.join(limits)})" if limits else ""
    text = _CARD.format(**card, limits=part, n_inputs=data.n_inputs, dt_ms=data.dt_ms)
    write_text(path.with_suffix(".md"), text)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, with its card {name}.md")
    return path


def _check_is_free(path: Path, row: dict[str, Any]) -> None:
    """Raise ValueError if the file holds another run's network."""
    if not path.is_file():
        return
    card = about_pretrained(path).card
    keys = ("config_hash", "seed", "data_sha256", "test_accuracy", "n_parameters", "chosen_epoch")
    if any(card.get(key) != row.get(key) for key in keys):
        raise ValueError(
            f"name: expected one that is free, got {path.stem}, which is another run's network "
            f"({path})"
        )


def _card(
    name: str, run: Run, row: dict[str, Any], content: dict[str, Any], n_steps: int
) -> dict[str, Any]:
    keys = (
        "data_set", "n_parameters", "test_accuracy", "train_accuracy",
        "chosen_epoch", "n_epochs", "n_threads", "seed", "git_sha", "data_sha256", "config_hash",
    )  # fmt: skip
    model = content["model"]
    kind = str(model.get("_target_", "ALIFLayer")).rpartition(".")[2]
    kind = _NEURONS.get(model.get("euler", kind), kind)
    steps_s = n_steps * content["data"]["dt_ms"] / 1000
    part = "test"
    choice, validation = f"epochs, on all training data | {row['n_epochs']}", {}
    if "val_accuracy" in row:
        validation = {"val_accuracy": row["val_accuracy"]}
        part = "validation"
        choice = (
            f"validation accuracy, which chose epoch {row['chosen_epoch']} of {row['n_epochs']} "
            f"| {row['val_accuracy']:.2%}"
        )
    network = content["network"]
    sizes = hidden_sizes(network["n_hidden"], network["n_layers"])
    spikes = steps_s * sum(n * row[f"rate_layer{i}_hz"] for i, n in enumerate(sizes, start=1))
    return {key: row[key] for key in keys} | {
        **validation,
        "name": name,
        "choice": choice,
        "part": part,
        "model": kind,
        "source": _source(row),
        "precision": row.get("trainer.precision", "32-true"),
        "minutes": row["train_s"] / 60,
        "spikes": round(spikes),
        "command": shlex.join(["blockspike", *run.arguments()]),
    }


def _source(row: dict[str, Any]) -> str:
    """Version that trained the network and, if it was a checkout, the commit."""
    commit = f", commit {row['git_sha']}" if row["git_sha"] else ""
    return f"{row['version.blockspike']}{commit}{' and changes' if row['git_dirty'] else ''}"
