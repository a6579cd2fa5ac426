"""Checkpoints: exact round trip, no pickle, errors, atomic writes."""

import pickle
from pathlib import Path

import pytest
import torch

from blockspike.training.checkpoint_io import PlainCheckpointIO, load_plain, save_plain

CONTENT = {
    "epoch": 3,
    "lr": 1e-3,
    "inf": float("inf"),
    "name": "θ",
    "none": None,
    "flag": True,
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(6.0).view(2, 3).T}},
    "betas": (0.9, 0.999),
    "groups": [{"params": [0, 1]}, {}],
    "empty": torch.zeros(0),
    "counts": torch.tensor([1, 2], dtype=torch.int64),
}


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_round_trip_is_exact(tmp_path):
    save_plain(CONTENT, tmp_path / "a.ckpt")
    assert_same(load_plain(tmp_path / "a.ckpt"), CONTENT)


def test_tensors_that_share_memory_stay_apart(tmp_path):
    shared = torch.arange(4.0)
    save_plain({"whole": shared, "part": shared[1:3]}, tmp_path / "a.ckpt")
    assert torch.equal(load_plain(tmp_path / "a.ckpt")["part"], shared[1:3])


def test_a_value_that_is_not_plain_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\.callbacks\[1\].*object"):
        save_plain({"callbacks": [1, object()]}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "truncated", "text", "empty"])
def test_other_files_are_refused_and_never_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.ckpt"
    save_plain(CONTENT, path)
    whole = path.read_bytes()
    if kind == "torch":
        torch.save({"x": Malicious()}, path)
    else:
        contents = {
            "pickle": pickle.dumps(Malicious()),
            "truncated": whole[: len(whole) // 2],
            "text": b"weights",
            "empty": b"",
        }
        path.write_bytes(contents[kind])
    with pytest.raises(ValueError, match=str(path)):
        load_plain(path)
    assert not (tmp_path / "pwned").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    io = PlainCheckpointIO()
    io.save_checkpoint({"epoch": 1}, path)

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("blockspike.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        io.save_checkpoint({"epoch": 2}, path)
    assert io.load_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"a\.ckpt"):
        load_plain(path)
