from __future__ import annotations

import sys
import zipfile

import h5py
import numpy as np
import pytest
from https_server import Server, md5, serving
from made_data import make_nmnist, make_shd
from made_tonic import SETS, serve

from blockspike.data.download import RemoteFile, fetch, nmnist_files, shd_files, ssc_files
from blockspike.data.event_file import read_event_file
from blockspike.data.nmnist import NMNISTDataModule
from blockspike.data.shd import SHDDataModule, SSCDataModule
from blockspike.files import read_json

CONTENT = bytes(range(256)) * 1000


def remote(server: Server, checksum: str | None = None) -> RemoteFile:
    server.files["a.bin"] = CONTENT
    return RemoteFile(server.url("a.bin"), "a.zip", checksum or md5(CONTENT))


def test_a_file_is_fetched_once(server, tmp_path):
    file = remote(server)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    fetch(file, tmp_path)
    assert server.requests == [("a.bin", None)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_download_is_announced(server, tmp_path, capsys):
    file = remote(server)
    server.cut_after = 100_000
    with pytest.raises(ConnectionError):
        fetch(file, tmp_path)
    place = f"to {tmp_path / 'a.zip'}"
    first = capsys.readouterr().err.splitlines()[0]
    assert file.url in first and "(0.3 MB)" in first and place in first
    arrived = (tmp_path / "a.zip.part").stat().st_size
    server.cut_after = None
    fetch(file, tmp_path)
    first = capsys.readouterr().err.splitlines()[0]
    kept = f"{arrived / 1e6:.1f} MB already here"
    assert file.url in first and kept in first and place in first


def test_without_a_connection_no_folder_is_left(server, tmp_path):
    with pytest.raises(ConnectionError, match="404"):
        fetch(RemoteFile(server.url("absent"), "a.zip", md5(b"")), tmp_path / "raw" / "shd")
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum_keeps_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=r"a\.zip: expected the published MD5"):
        fetch(remote(server, md5(b"other")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_local_file_is_fetched_again(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"damaged")
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_an_interrupted_download_continues(server, tmp_path):
    file = remote(server)
    server.cut_after = 100_000
    with pytest.raises(ConnectionError, match="download failed"):
        fetch(file, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip.part"]
    server.cut_after = None
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    arrived = int(server.requests[1][1].removeprefix("bytes=").rstrip("-"))
    assert 0 < arrived <= 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("server", [False], indirect=True)
def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:777])
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_complete_partial_file_is_checked_and_used(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_corrupt_partial_file_is_deleted(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 777)
    with pytest.raises(ValueError, match="expected the published MD5"):
        fetch(remote(server), tmp_path)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_an_address_without_https_gets_no_request(tmp_path):
    with serving(scheme="http") as plain:
        with pytest.raises(ValueError, match=r"http://.*expected an address .* https"):
            fetch(remote(plain), tmp_path)
        assert not plain.requests and not list(tmp_path.iterdir())


def test_a_redirect_to_http_is_not_followed(server, tmp_path):
    with serving(scheme="http") as plain:
        file = remote(plain)
        server.redirects["start"] = file.url
        file = RemoteFile(server.url("start"), file.filename, file.md5)
        with pytest.raises(ValueError, match=r"https://.*: expected https, got another scheme"):
            fetch(file, tmp_path)
        assert not plain.requests and not list(tmp_path.iterdir())


def test_a_redirect_to_https_is_followed(server, tmp_path):
    file = remote(server)
    server.redirects["start"] = file.url
    fetched = fetch(RemoteFile(server.url("start"), "a.zip", file.md5), tmp_path)
    assert fetched.read_bytes() == CONTENT


def test_a_server_without_a_trusted_certificate_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(ConnectionError, match="certificate"):
        fetch(remote(server), tmp_path)
    assert not server.requests and not list(tmp_path.iterdir())


def test_a_missing_page_is_named(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"absent: download failed \(404"):
        fetch(RemoteFile(server.url("absent"), "a.zip", md5(b"")), tmp_path)


@pytest.mark.parametrize("files", [nmnist_files, shd_files, ssc_files])
def test_without_tonic_one_line_says_what_to_install(monkeypatch, files):
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.delitem(sys.modules, "tonic.datasets", raising=False)
    with pytest.raises(ValueError, match=r"tonic.*pip install 'blockspike\[data\]'") as caught:
        files()
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_tonic_knows_addresses_and_checksums():
    for file in (*nmnist_files(), *shd_files(), *ssc_files()):
        assert file.url.startswith("https://")
        assert file.filename.endswith(".zip")
        assert len(file.md5) == 32


def test_nmnist_from_the_address_to_the_prepared_file(server, tmp_path, monkeypatch):
    folder = make_nmnist(tmp_path / "made", 2, 1)
    for part in ("train", "test"):
        path = tmp_path / f"{part}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in (folder / part.title()).rglob("*.bin"):
                archive.write(file, file.relative_to(folder).as_posix())
        server.files[part] = path.read_bytes()
        known = "tonic.datasets.NMNIST."
        monkeypatch.setattr(known + f"{part}_url", server.url(part))
        monkeypatch.setattr(known + f"{part}_md5", md5(server.files[part]))
    module = NMNISTDataModule(tmp_path / "data" / "a.h5", download=True)
    file = read_event_file(module.prepare())
    assert file.name == "N-MNIST sample (30 recordings)"
    module.prepare()
    assert [name for name, _ in server.requests] == ["train", "test"]


def test_only_the_download_is_named_shd(server, tmp_path, monkeypatch):
    known = "tonic.datasets.SHD."
    monkeypatch.setattr(known + "base_url", server.url(""))
    for seed, part in enumerate(("train", "test")):
        h5 = make_shd(tmp_path / f"shd_{part}.h5", seed=seed)
        with h5py.File(h5, "r+") as file:
            file.attrs["name"] = "SHD"
        name = f"shd_{part}.h5.zip"
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(h5, h5.name)
        server.files[name] = (tmp_path / name).read_bytes()
        monkeypatch.setattr(known + f"{part}_md5", md5(server.files[name]))
        h5.unlink()
    fetched = SHDDataModule(tmp_path / "data" / "a.h5", download=True)
    assert read_event_file(fetched.prepare()).name == "SHD"
    monkeypatch.setattr(known + "train_md5", md5(b"other"))
    local = SHDDataModule(tmp_path / "b.h5", raw=tmp_path)
    assert read_event_file(local.prepare()).name == "SHD-layout data"


def test_ssc_from_the_address_to_batches(server, tmp_path, monkeypatch):
    known = "tonic.datasets.SSC."
    monkeypatch.setattr(known + "base_url", server.url(""))
    sizes = {"train": 70, "valid": 35, "test": 40}
    for seed, (part, n) in enumerate(sizes.items()):
        labels = (np.arange(n) % 35).astype(np.uint16)
        keys = np.array([b"key"] * 35)
        changes = {"labels": labels, "extra/speaker": None, "extra/keys": keys}
        h5 = make_shd(tmp_path / f"ssc_{part}.h5", n, seed=seed, **changes)
        name = f"ssc_{part}.h5.zip"
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(h5, h5.name)
        server.files[name] = (tmp_path / name).read_bytes()
        monkeypatch.setattr(known + f"{part}_md5", md5(server.files[name]))
    fetched = SSCDataModule(
        tmp_path / "data" / "a.h5", download=True, validation="own", n_steps=700
    )
    fetched.prepare()
    fetched.setup()
    assert fetched.name == "SSC"
    assert len(fetched.train_indices) == 70
    loaders = fetched.train_dataloader(), fetched.val_dataloader(), fetched.test_dataloader()
    found = [sorted(np.concatenate([labels for _, labels in loader])) for loader in loaders]
    assert [len(labels) for labels in found] == list(sizes.values())
    assert all(set(labels) == set(range(35)) for labels in found)
    validated = next(iter(fetched.val_dataloader()))[0]
    assert len(validated.unit) == len(fetched.val.unit)
    other = SHDDataModule(tmp_path / "data" / "a.h5")
    with pytest.raises(ValueError, match=r"expected \(700, 20\) units and classes, got SSC"):
        other.setup()


@pytest.mark.slow
def test_ssc_from_the_address_to_the_score(server, tmp_path, monkeypatch, blockspike):
    serve(monkeypatch, server, "SSC", SETS["SSC"](tmp_path))
    data = ("data=ssc", "data.path=data/a.h5", "data.raw=data/raw")
    done = blockspike("prepare", *data, "data.download=true")
    assert done.stdout == "SSC: 70 training, 70 validation and 70 test recordings in data/a.h5\n"
    small = ("data.channel_pooling=20", "data.n_steps=70", "data.dt_ms=20", "network.n_hidden=16")
    run = ("trainer.max_epochs=2", "threads=1", "hydra.run.dir=run")
    assert "test accuracy" in blockspike("train", *data, *small, *run).stdout
    assert read_json(tmp_path / "run/result.json")["chosen_epoch"] in (1, 2)
    assert blockspike("evaluate", "run").stdout.startswith("SSC: test accuracy")
    assert read_json(tmp_path / "run/evaluation.json")["n_test"] == 70


def test_ssc_without_its_validation_set_is_named(tmp_path):
    for part in ("train", "test"):
        make_shd(tmp_path / f"{part}.h5")
    with pytest.raises(FileNotFoundError, match=r"expected \*valid\.h5"):
        SSCDataModule(tmp_path / "a.h5", raw=tmp_path).prepare()
    shd = SHDDataModule(tmp_path / "b.h5", raw=tmp_path, validation="own")
    shd.prepare()
    with pytest.raises(ValueError, match="expected a validation set, for validation=own, got none"):
        shd.setup()
