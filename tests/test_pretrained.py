"""Networks as files: the shipped ones, and `blockspike publish`."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import blockspike.app.pretrained
from blockspike.app.loaded_run import load_run
from blockspike.app.pretrained import about_pretrained, load_pretrained, pretrained_names
from blockspike.data.nmnist import NMNISTDataModule
from blockspike.data.shd import SHDDataModule
from blockspike.neurons.events import EventBatch
from tiers import mostly_slow

FOLDER = Path(blockspike.__file__).parent / "pretrained"
SMALL = ("data=nmnist_sample", "network.n_hidden=16", "data.n_steps=60", "data.dt_ms=6")


PART = ("trainer.max_epochs=1", "network.n_hidden=8", "trainer.limit_test_batches=1")


@pytest.fixture
def published(blockspike, copy_of_run, tmp_path) -> tuple[Path, Path]:
    """A run and its file."""
    choices = ("model=se_adlif", "trainer.max_epochs=1", "threads=1")
    run = copy_of_run(tmp_path, "train", *SMALL, *choices)
    blockspike("publish", str(run.relative_to(tmp_path)), "mine")
    return run, tmp_path / "outputs" / "published" / "mine.safetensors"


def test_a_run_is_published_with_its_card(published, tmp_path, monkeypatch):
    folder, path = published
    monkeypatch.chdir(tmp_path)
    network, data, *_ = load_run(folder)
    events, _ = next(iter(data.test_dataloader()))
    assert torch.equal(load_pretrained(path)(events).scores, network(events).scores)
    about, row = about_pretrained(path), json.loads((folder / "result.json").read_text())
    assert (about.n_inputs, about.n_classes, about.dt_ms) == (data.n_inputs, 10, 6.0)
    assert about.card["test_accuracy"] == row["test_accuracy"]
    card = path.with_suffix(".md").read_text()
    assert card.startswith("# mine\n\nSE-adLIF trained on N-MNIST sample (1080 recordings);")
    assert f"| test accuracy | {row['test_accuracy']:.2%} |" in card
    assert "`blockspike evaluate mine`" in card
    choices = "model=se_adlif trainer.max_epochs=1"
    assert f"\nblockspike train {' '.join(SMALL)} {choices}\n" in card


def test_a_name_of_another_run_is_refused(published, blockspike):
    folder, path = published
    blockspike("publish", str(folder), "mine")  # again, the same
    path.write_bytes(edited(path, lambda about, _: about["card"].update(seed=7)).read_bytes())
    failed = blockspike("publish", str(folder), "mine", check=False)
    assert failed.returncode == 2 and "name: expected one that is free, got mine" in failed.stderr
    other = edited(path, lambda about, _: about["card"].update(config_hash="00"))
    path.write_bytes(other.read_bytes())  # equal in all else: such as accuracy, of few recordings
    assert blockspike("publish", str(folder), "mine", check=False).returncode == 2


def test_scores_of_a_part_of_the_data_say_so(copy_of_run, blockspike, tmp_path):
    run = copy_of_run(tmp_path, "train", *SMALL, "threads=1", *PART)
    told = blockspike("publish", str(run), "part").stderr
    assert "its scores are of a part of the data (trainer.limit_test_batches=1 batch)" in told
    card = (tmp_path / "outputs" / "published" / "part.md").read_text()
    assert "| test accuracy (trainer.limit_test_batches=1 batch) | " in card


def test_a_file_is_evaluated_on_its_data(published, blockspike):
    folder, path = published
    row = json.loads((folder / "result.json").read_text())
    shown = blockspike("evaluate", str(path)).stdout
    accuracy = f"{row['test_accuracy']:.2%}"
    assert f"test accuracy {accuracy} of 80; its card says {accuracy}\n" in shown
    another = edited(path, lambda about, tensors: about["card"].update(data_sha256="00"))
    assert " on other data\n" in blockspike("evaluate", str(another)).stdout
    other = edited(path, lambda about, tensors: about.update(data_config="shd"))
    failed = blockspike("evaluate", str(other), check=False)
    assert failed.returncode == 2 and "shd.h5: expected prepared data" in failed.stderr
    other = edited(path, lambda about, tensors: about.update(data_config="synthetic_cells"))
    failed = blockspike("evaluate", str(other), check=False)
    assert failed.returncode == 2 and "expected a data configuration of events" in failed.stderr
    for unknown in ("theirs", "../experiment/demo"):
        other = edited(path, lambda about, _, name=unknown: about.update(data_config=name))
        failed = blockspike("evaluate", str(other), check=False)
        assert failed.returncode == 2
        assert f"expected a data configuration of events, got {unknown!r}" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "my/name"), "name: expected letters, digits and _, got 'my/name'"),
        (("nowhere", "mine"), "nowhere: no run here"),
    ],
)
def test_bad_names_and_missing_runs_are_not_published(blockspike, arguments, message):
    failed = blockspike("publish", *arguments, check=False)
    assert failed.returncode == 2 and message in failed.stderr


def test_unknown_names_are_refused():
    with pytest.raises(
        FileNotFoundError, match=r"^nobody: expected a \.safetensors file or one of"
    ):
        load_pretrained("nobody")
    with pytest.raises(FileNotFoundError, match="expected a .safetensors file"):
        load_pretrained("nowhere/mine.safetensors")


def edited(path: Path, change) -> Path:
    """The file with other tensors or metadata."""
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    about, tensors = json.loads(metadata["about"]), load_file(path)
    metadata = change(about, tensors) or {**metadata, "about": json.dumps(about)}
    other = path.with_name("other.safetensors")
    save_file(tensors, other, metadata=metadata)
    return other


def drop_weight(about, tensors):
    del tensors["readout.bias"]


def other_format(about, tensors):
    return {"format": "another"}


def evil_target(about, tensors):
    about["model"]["_target_"] = "os.system"


def unknown_argument(about, tensors):
    about["network"]["n_moons"] = 2


def interpolation(about, tensors):
    about["model"]["surrogate"] = "${oc.env:HOME}"


def less_about(about, tensors):
    del about["dt_ms"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_weight, "readout.bias"),
        (other_format, "expected a trained network"),
        (evil_target, "_target_ runs the code of os.system"),
        (unknown_argument, "n_moons"),
        (less_about, "dt_ms"),
        (interpolation, "expected a trained network"),
    ],
)
def test_bad_files_are_refused(published, change, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        load_pretrained(edited(published[1], change))


# ---- what is shipped


def test_a_network_of_each_kind_is_shipped():
    of_data = {"nmnist_sample", "hd_lauscher"}
    kinds = {"alif", "ef_adlif", "se_adlif"}
    assert set(pretrained_names()) == {f"{data}_{kind}" for data in of_data for kind in kinds}


@pytest.mark.parametrize("name", pretrained_names())
def test_shipped_files(name):
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 2e6
    about, card = about_pretrained(name), path.with_suffix(".md").read_text()
    assert f"| test accuracy | {about.card['test_accuracy']:.2%} |" in card
    assert re.search(rf"commit( \|)? {about.card['git_sha']} \|", card)  # made from a clean tree
    network = load_pretrained(name)
    assert not network.training
    spikes = (torch.rand(30, 2, about.n_inputs) < 0.1).float()
    assert network(EventBatch.from_dense(spikes)).scores.shape == (2, about.n_classes)


def accuracy(network, data) -> float:
    data.setup()
    with torch.no_grad():
        right = [
            network(x).mean_over_views(len(y)).argmax(1) == y for x, y in data.test_dataloader()
        ]
    return torch.cat(right).float().mean().item()


def options_of(about) -> dict:
    return {k: v for k, v in about.data.items() if k != "_target_"}


@pytest.mark.parametrize("name", [n for n in pretrained_names() if n.startswith("nmnist")])
def test_the_card_states_the_accuracy_on_the_shipped_sample(name, data_dir):
    about = about_pretrained(name)
    data = NMNISTDataModule(data_dir / "nmnist_sample.h5", **options_of(about))
    found = accuracy(load_pretrained(name), data)
    assert found == pytest.approx(about.card["test_accuracy"], abs=1.5 / 80)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [n for n in pretrained_names() if n.startswith("hd_lauscher")],
        lambda name: name == "hd_lauscher_alif",
    ),
)
def test_digits_of_the_shipped_sample_are_classified_correctly(name, data_dir):
    """They are of the same speech as the networks' test data, though perhaps not the same draw."""
    about = about_pretrained(name)
    data = SHDDataModule(data_dir / "hd_lauscher_sample.h5", **options_of(about))
    found = accuracy(load_pretrained(name), data)
    assert found == pytest.approx(about.card["test_accuracy"], abs=0.06)
