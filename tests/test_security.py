"""Untrusted run folders, configurations and recordings are loaded, never executed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from blockspike.app.build import check_targets
from blockspike.app.schemas import register_schemas
from blockspike.data.recordings import load_recording
from blockspike.files import CONF

SMALL = (
    "data=nmnist_sample", "data.n_steps=20", "data.dt_ms=20", "network.n_hidden=8",
    "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
)  # fmt: skip


class Malicious:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path):
    """The file that a payload makes; it must not exist at the end."""
    path = tmp_path / "the_payload_ran"
    pickle.loads(pickle.dumps(Malicious(path)))
    assert path.exists()  # the payload works
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def finished(copy_of_run, tmp_path) -> Path:
    return copy_of_run(tmp_path, "train", *SMALL)


def refused(done) -> str:
    """The single line that a refused command prints."""
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    return line


# A run's folder


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_checkpoint_is_not_unpickled(blockspike, finished, marker, save):
    save({"state_dict": Malicious(marker)}, finished / "checkpoints" / "best.ckpt")
    line = refused(blockspike("evaluate", str(finished), check=False))
    assert "best.ckpt: not a readable checkpoint" in line
    (finished / "result.json").unlink()
    save({"epoch": 0, "state_dict": Malicious(marker)}, finished / "checkpoints" / "last.ckpt")
    done = blockspike("train", *SMALL, check=False)
    assert done.returncode == 2 and "last.ckpt: not a readable checkpoint" in done.stderr


PAYLOADS = {
    "tag": ('x: !!python/object/apply:pathlib.Path.touch ["{marker}"]', "not a run's config"),
    "target": (
        "data:\n  _target_: pathlib.Path.touch\n  self: {marker}",
        "data._target_ runs the code of pathlib.Path.touch; if you trust it",
    ),
    "nested": (
        "network:\n  init:\n  - _target_: os.system\n    command: touch {marker}",
        "_target_ runs the code of os.system; if you trust it",
    ),
    "interpolation": ("x: ${{oc.env:HOME}}", "expected keys and plain values"),
    "escaped": ('x: "\\x24{{oc.env:HOME}}"', "expected keys and plain values"),
    "in a key": ('"${{oc.env:HOME}}": 1', "expected keys and plain values"),
    "no keys": ("- 1", "expected keys and plain values"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_runs_configuration_is_not_executed(blockspike, finished, marker, payload):
    text, words = PAYLOADS[payload]
    path = finished / "config.yaml"
    config = OmegaConf.load(path)
    text = text.format(marker=marker)
    if payload in ("target", "nested"):
        config = OmegaConf.merge(config, OmegaConf.create(text))
        text = OmegaConf.to_yaml(config)
        (finished / "content.json").unlink()  # which has the hash of another configuration
    path.write_text(text)
    assert words in refused(blockspike("evaluate", str(finished), check=False))


def test_an_npz_of_a_run_is_not_unpickled(blockspike, finished, marker):
    blockspike("evaluate", str(finished))
    np.savez(finished / "activity.npz", spikes=np.array([Malicious(marker)], object))
    line = refused(blockspike("plot", "run", str(finished), check=False))
    assert "activity.npz: not a complete .npz" in line and "unpickled" in line


def test_a_recording_is_not_unpickled(tmp_path, marker):
    np.savez(tmp_path / "cell.npz", current_pa=np.array([Malicious(marker)], object), dt_ms=0.1)
    with pytest.raises(ValueError, match=r"cell\.npz.*unpickled"):
        load_recording(tmp_path / "cell.npz")


# `_target_`


def test_classes_of_conf_and_surrogates_are_known():
    for path in CONF.glob("*/*.yaml"):
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(config, dict)
        config.pop("hydra", None)
        check_targets(config, path.stem)
    check_targets(
        {"model": {"surrogate": {"_target_": "blockspike.neurons.surrogates.Boxcar"}}}, ""
    )
    with pytest.raises(ValueError, match=r"^here: x.y._target_ runs the code of a.B"):
        check_targets({"x": {"y": {"_target_": "a.B"}}}, "here")


def test_a_run_with_a_class_of_ones_own_asks_for_trust(blockspike, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from blockspike.networks import AdLIFLayer\nclass Mine(AdLIFLayer): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    blockspike("train", *SMALL, "model=adlif", "model._target_=mine.Mine")
    (result,) = (tmp_path / "outputs").rglob("result.json")
    line = refused(blockspike("evaluate", str(result.parent), check=False))
    assert "model._target_ runs the code of mine.Mine" in line
    assert "test accuracy" in blockspike("evaluate", str(result.parent), "--trust").stdout


def test_a_run_from_elsewhere_writes_nothing_outside_its_folder(blockspike, finished, tmp_path):
    path = finished / "config.yaml"
    config = OmegaConf.load(path)
    config.data.update({"path": str(tmp_path / "elsewhere/data.h5"), "raw": "sample"})
    OmegaConf.save(config, path)
    assert "elsewhere" in refused(blockspike("evaluate", str(finished), check=False))
    assert not (tmp_path / "elsewhere").exists()


# wandb


@pytest.mark.parametrize("logger", ["wandb", "many"])
def test_wandb_is_offline_unless_asked(monkeypatch, logger):
    register_schemas()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        overrides = [f"logger={logger}", *SMALL]
        cfg = compose("train", overrides)
        assert cfg.logger.wandb.mode == "offline"
        monkeypatch.setenv("WANDB_MODE", "online")
        assert cfg.logger.wandb.mode == "online"
        for other in ("csv", "tensorboard", "none"):
            assert "wandb" not in (compose("train", [f"logger={other}", *SMALL]).logger or {})
