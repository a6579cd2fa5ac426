"""Untrusted run folders, configurations and recordings are loaded, never executed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from blockspike.app.build import build_data, build_trainer
from blockspike.app.schemas import register_schemas
from blockspike.app.targets import checked_targets
from blockspike.data.datamodule import EventDataModule
from blockspike.data.recordings import load_recording
from blockspike.files import CONF
from blockspike.runs.run import Run

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
    line = refused(blockspike("evaluate", f"run={finished}", check=False))
    assert "best.ckpt: not a readable checkpoint" in line
    (finished / "result.json").unlink()
    save({"epoch": 0, "state_dict": Malicious(marker)}, finished / "checkpoints" / "last.ckpt")
    done = blockspike("train", *SMALL, check=False)
    assert done.returncode == 2 and "last.ckpt: not a readable checkpoint" in done.stderr


PAYLOADS = {
    "tag": ('x: !!python/object/apply:pathlib.Path.touch ["{marker}"]', "not a run's config"),
    "target": (
        "data:\n  _target_: pathlib.Path.touch\n  self: {marker}",
        "data._target_: expected a class of blockspike, pytorch_lightning, torch.optim, got ",
    ),
    "nested": (
        "trainer:\n  plugins:\n  - _target_: os.system\n    command: touch {marker}",
        "trainer.plugins.0._target_: expected a class of blockspike",
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
        text = OmegaConf.to_yaml(OmegaConf.merge(config, OmegaConf.create(text)))
    path.write_text(text)
    if payload == "target":
        with pytest.raises(ValueError, match=words):
            build_data(Run(finished).config(), EventDataModule)
    elif payload == "nested":
        with pytest.raises(ValueError, match=words):
            build_trainer(Run(finished).config(), [])
    else:
        line = refused(blockspike("evaluate", f"run={finished}", check=False))
        assert words in line and str(path) in line


def test_an_npz_of_a_run_is_not_unpickled(blockspike, finished, marker):
    blockspike("evaluate", f"run={finished}")
    np.savez(finished / "activity.npz", spikes=np.array([Malicious(marker)], object))
    line = refused(blockspike("figures", f"run={finished}", check=False))
    assert "activity.npz: not a complete .npz" in line and "unpickled" in line


def test_a_recording_is_not_unpickled(tmp_path, marker):
    np.savez(tmp_path / "cell.npz", current_pa=np.array([Malicious(marker)], object), dt_ms=0.1)
    with pytest.raises(ValueError, match=r"cell\.npz.*unpickled"):
        load_recording(tmp_path / "cell.npz")


# `_target_`

BAD_TARGETS = {
    "os.system": "expected .*, got",
    "builtins.eval": "expected .*, got",
    "torch.load": "expected .*, got",
    "torch.hub.load": "expected .*, got",
    "torch.optimist.Adam": "expected .*, got",
    "hydra.utils.get_method": "expected .*, got",
    "blockspike.app.cli.os.system": "expected a name that can be imported",
    "blockspike.app.cli.import_module": "expected .*, got",
    "blockspike.app.cli.main": "expected .*, got",
    "blockspike.runs.run.write_text": "expected .*, got",
    "blockspike.runs.run.Run": "expected .*, got",
    "blockspike.data.shd.SHDDataModule.load_from_checkpoint": "expected a name that can be imp",
    "blockspike.app.trainer.make_trainer": "expected .*, got",
    "pytorch_lightning.loggers.WandbLogger": "expected .*, got",
    "pytorch_lightning.Trainer.from_argparse_args": "expected a name that can be imported",
    "torch.optim.optimizer.torch.load": "expected a name that can be imported",
    "torch.optim.Nothing": "expected a name that can be imported",
    "": "expected package.module.Class",
    "Adam": "expected package.module.Class",
}


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_a_target_that_is_not_allowed_is_named(target):
    for node, key in (
        ({"_target_": target}, "optimizer._target_"),
        ({"lr": [{"x": {"_target_": target}}]}, r"optimizer\.lr\.0\.x\._target_"),
    ):
        with pytest.raises(ValueError, match=f"^{key}: .*{BAD_TARGETS[target]}"):
            checked_targets(node, "optimizer")


def test_all_names_are_checked_before_the_first_import(tmp_path, monkeypatch):
    (tmp_path / "trusted.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BLOCKSPIKE_ALLOW", "trusted")
    node = {"_target_": "trusted.X", "argument": {"_target_": "os.system"}}
    with pytest.raises(ValueError, match=r"argument\._target_: .* got os\.system"):
        checked_targets(node, "data")
    assert not (tmp_path / "imported").exists()


def test_arguments_without_a_name_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\._args_"):
        checked_targets({"_target_": "torch.optim.Adam", "_args_": [1]}, "optimizer")


def test_all_targets_in_conf_are_allowed():
    found = []
    for path in CONF.glob("*/*.yaml"):
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        found += [line for line in path.read_text().splitlines() if "_target_:" in line]
        assert isinstance(config, dict)
        config.pop("hydra", None)  # Hydra builds its own launcher; a run's configuration has none
        checked_targets(config, path.stem)
    assert len(found) > 10


def test_a_user_can_allow_packages(tmp_path, monkeypatch):
    (tmp_path / "their_lab.py").write_text(
        "import os\nfrom os import system\nclass Mine: pass\nOther = type('Mine', (), {})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"_target_": "their_lab.Mine"}
    with pytest.raises(ValueError, match=r"their_lab\.Mine.*set BLOCKSPIKE_ALLOW=their_lab$"):
        checked_targets(mine, "model")
    monkeypatch.setenv("BLOCKSPIKE_ALLOW", "their, other_pkg ,their_lab")
    assert checked_targets(mine, "model") == mine
    for target in (
        "their_lab.system", "their_lab.os.system", "their_lab_2.Mine",
        "their_lab.Other",  # an attribute that names another object
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"model\._target_"):
            checked_targets({"_target_": target}, "model")


def test_an_override_is_checked(blockspike, marker):
    for key in ("+optimizer.betas", "+trainer.plugins", "+callbacks.mine"):
        payload = f"{{_target_: os.system, command: 'touch {marker}'}}"
        line = refused(blockspike("train", *SMALL, f"{key}={payload}", check=False))
        assert f"{key[1:]}._target_: expected a class of " in line and "got os.system" in line


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
