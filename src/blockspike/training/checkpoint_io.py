"""Checkpoints as plain tensors and JSON: nothing that is read is unpickled or evaluated.

A checkpoint is one safetensors file. Its tensors are numbered; the nested structure around them
(dicts, lists, tuples, numbers, strings) is JSON in the file's metadata, and so is the SHA-256 of
both, since safetensors itself does not notice a flipped bit.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from blockspike.files import whole_file

_FORMAT = "blockspike-checkpoint-2"


class PlainCheckpointIO(CheckpointIO):
    """Reads and writes Lightning's checkpoints in this format; every write is atomic."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`; the file appears only when it is complete on disk.

        An existing `last.ckpt` is kept as `previous.ckpt`.
        """
        path = Path(path)
        if path.name == "last.ckpt" and path.is_file():
            with whole_file(path.with_name("previous.ckpt")) as copy:
                shutil.copyfile(path, copy)
        save_plain(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors stay on the CPU until Lightning moves them."""
        return load_plain(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file if it is there."""
        Path(path).unlink(missing_ok=True)


def save_plain(content: Any, path: Path) -> None:
    """Write nested plain values and tensors to `path`, atomically.

    Raises:
        TypeError: a value is neither plain nor a tensor; names its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_encode(content, tensors, "checkpoint"))
    about = {"format": _FORMAT, "structure": structure, "sha256": _digest(structure, tensors)}
    with whole_file(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=about)
        except SafetensorError as error:  # a full disk
            raise OSError(f"{path}: cannot be written ({error})") from error


def load_plain(path: Path) -> Any:
    """Load what `save_plain` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint of this format, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"expected a checkpoint of format {_FORMAT}, got another")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if _digest(metadata["structure"], tensors) != metadata["sha256"]:
            raise ValueError("damaged checkpoint, its checksum does not match")
        return _decode(json.loads(metadata["structure"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error})") from error


def _digest(structure: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(structure.encode())
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {list(tensors[key].shape)}".encode())
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encode(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        pairs = [[k, _encode(v, tensors, f"{where}.{k}")] for k, v in value.items()]
        if all(isinstance(k, bool | int | float | str) for k, _ in pairs):
            return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_encode(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise TypeError(f"{where}: expected plain values and tensors, got {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
