"""Training that starts from the weights of another network."""

from pathlib import Path

import pytest
import torch

import blockspike as bs
from blockspike.app.initial_weights import start_from

SMALL = (
    "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "model.arp_ms=0", "threads=1",
    "trainer.max_epochs=1", "network.n_hidden=8",
)  # fmt: skip


@pytest.fixture
def source(copy_of_run, tmp_path) -> Path:
    return copy_of_run(tmp_path, "train", *SMALL)


def test_frozen_layers_keep_the_weights_of_the_run(source, blockspike, tmp_path):
    frozen = "training.lr_factors={layers.*:0}"
    blockspike("train", *SMALL, f"init_from={source}", frozen, "experiment_name=tuned")
    (result,) = (tmp_path / "outputs" / "tuned").rglob("result.json")
    before, after = bs.load_run(source), bs.load_run(result.parent)
    weights = before.network.state_dict()
    for name, value in after.network.state_dict().items():
        assert torch.equal(value, weights[name]) == (not name.startswith("readout."))
    assert after.config.init_from == str(source)
    assert after.row["n_epochs"] == 1 and after.data.sha256 == before.data.sha256


def test_settings_that_do_not_hold_are_reported(source, blockspike):
    changed = ("model.tau_membrane_ms=40", "data.dt_ms=5", "experiment_name=tuned")
    told = blockspike("train", *SMALL, *changed, f"init_from={source}").stderr
    assert f"init_from: {source}, whose parameters are kept, has model.tau_membrane_ms=20.0" in told
    assert "(here 40.0), data.dt_ms=10 (here 5; time constants keep steps)" in told
    same = blockspike("train", *SMALL, "experiment_name=same", f"init_from={source}").stderr
    assert "init_from" not in same


def test_weights_that_would_mean_something_else_are_refused(blockspike, tmp_path):
    """Delays are stored as shares of the longest; couplings belong to a model's equations."""
    small = tuple(x for x in SMALL if "arp" not in x)
    se_adlif = (*small, "model=se_adlif", "model.max_delay=5", "model.batch_norm=true")
    blockspike("train", *se_adlif, "experiment_name=first")
    (source,) = (tmp_path / "outputs" / "first").glob("*/seed=*")
    for change, words in (
        ("model.max_delay=10", "model.max_delay=5 (here 10)"),
        ("model=ef_adlif", "model.euler=symplectic (here forward)"),
    ):
        args = (*se_adlif, change, f"init_from={source}", "experiment_name=second")
        done = blockspike("train", *args, check=False)
        assert done.returncode == 2 and words in done.stderr
    args = ("model.q=24", "experiment_name=third", "training.lr_factors={layers.*:0}")
    told = blockspike("train", *se_adlif, *args, f"init_from={source}").stderr
    assert f"{source}, whose parameters are kept, has model.q=120.0 (here 24.0)" in told
    (third,) = (tmp_path / "outputs" / "third").glob("*/seed=*")
    before, after = (bs.load_run(run).network.state_dict() for run in (source, third))
    frozen = [name for name in before if not name.startswith("readout.")]
    assert "layers.0.norm.variance" in frozen
    assert not [name for name in frozen if not torch.equal(before[name], after[name])]


@pytest.mark.slow
def test_settings_of_every_neuron_are_reported(blockspike, tmp_path):
    small = (*(x for x in SMALL if "arp" not in x), "model=adlif", "model.recurrent=false")
    blockspike("train", *small, "experiment_name=first")
    (source,) = (tmp_path / "outputs" / "first").glob("*/seed=*")
    changed = ("model.tau_membrane_steps=[6,7]", "experiment_name=second", f"init_from={source}")
    told = blockspike("train", *small, *changed).stderr
    assert "(here [6.0, 7.0])" in told
    weights = bs.load_run(next((tmp_path / "outputs" / "second").glob("*/seed=*"))).network
    projected = {name: x.clone() for name, x in weights.state_dict().items()}
    weights.project_()
    assert all(torch.equal(x, projected[name]) for name, x in weights.state_dict().items())


def test_hidden_layers_of_another_size_are_refused(source, blockspike):
    done = blockspike("train", *SMALL, "network.n_hidden=9", f"init_from={source}", check=False)
    assert done.returncode != 0
    assert "init_from: expected hidden layers as in" in done.stderr
    assert "layers.0.bias [9], there [8]" in done.stderr
    (source / "result.json").unlink()
    unfinished = blockspike("train", *SMALL, "seed=1", f"init_from={source}", check=False)
    assert f"init_from: expected a finished run in {source}, got none" in unfinished.stderr
    missing = blockspike("train", *SMALL, "seed=1", "init_from=nowhere", check=False)
    assert "nowhere: expected a .safetensors file or one of hd_lauscher" in missing.stderr


def test_a_readout_of_other_classes_stays_new():
    name = "nmnist_sample_se_adlif"
    trained, other = bs.load_pretrained(name), bs.load_pretrained(name)
    for parameter in other.parameters():
        parameter.data.zero_()
    weight = other.readout.get_parameter("weight")
    weight.data = weight.data[:, :3]  # of 10 classes
    assert start_from(other, name) == ["readout.weight"]
    assert not other.readout.get_parameter("weight").any()
    for key, value in trained.state_dict().items():
        if key != "readout.weight":
            assert torch.equal(value, other.state_dict()[key]), key
