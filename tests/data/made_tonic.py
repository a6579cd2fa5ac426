"""Archives in the layouts of data sets that tonic reads, with random recordings."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from https_server import Server, md5
from made_data import encode_events, make_nmnist, make_shd
from scipy.io import savemat

RNG = np.random.default_rng(5)


def camera_events(width: int, height: int, where: float | None = None, n: int = 60) -> tuple:
    """x, y, p and sorted t in µs; x is anywhere, or in the tenth of the width at `where`."""
    x, y, p = (RNG.integers(0, size, n) for size in (width, height, 2))
    if where is not None:
        x = np.minimum(int(where * width) + RNG.integers(0, width // 10, n), width - 1)
    return x, y, p, np.sort(RNG.integers(0, 400_000, n))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def dvs_gesture(users: tuple[int, ...], folder: str, **changes: Any) -> bytes:
    """Each user's 11 gestures, as [n, 4] of x, y, p and t in ms; `changes` replace columns."""
    members = {}
    for user in users:
        for gesture in range(11):
            x, y, p, t_us = camera_events(128, 128, gesture / 11, n=400)
            columns = {"x": x, "y": y, "p": p, "t_ms": t_us // 1000} | changes
            events = np.stack(np.broadcast_arrays(*columns.values()), axis=1)
            members[f"{folder}/user{user:02d}_led/{gesture}.npy"] = npy(events)
    return tarred(members)


def made_dvs_gesture(_: Path) -> dict[str, bytes]:
    return {
        "ibmGestureTrain.tar.gz": dvs_gesture((1, 2, 3), "ibmGestureTrain"),
        "ibmGestureTest.tar.gz": dvs_gesture((24,), "ibmGestureTest"),
    }


def made_ncaltech101(_: Path) -> dict[str, bytes]:
    """Archives in an archive; no division, recordings of different sizes, names as labels."""
    members = {}
    for k, name in enumerate(("BACKGROUND_Google", "accordion", "airplanes", "yin_yang")):
        for i in range(10):
            x, y, p, t_us = camera_events(100, 180 - i, k / 4, n=400)
            x[0], y[0] = 0, 0  # tonic lets each recording begin there
            members[f"Caltech101/{name}/image_{i + 1:04d}.bin"] = encode_events(x, y, p, t_us)
    inner = {"Caltech101.zip": zipped(members), "Caltech101_annotations.zip": zipped({})}
    return {"N-Caltech101-archive.zip": zipped(inner)}


def made_ntidigits18(folder: Path) -> dict[str, bytes]:
    """Single digits and sequences of them, in seconds, on 64 channels."""
    path = folder / "made.hdf5"
    with h5py.File(path, "w") as file:
        for part, n in (("train", 4), ("test", 2)):
            ids = [f"ac-{i}-{digit}" for digit in "o123456789z" for i in range(n)]
            ids += ["ac-a-12z", "ac-a-oo"]
            file[f"{part}_labels"] = np.array(ids, "S")
            for sample in ids:
                first = 5 * "o123456789z".index(sample[-1])
                file[f"{part}_addresses/{sample}"] = first + RNG.integers(0, 10, 200)
                file[f"{part}_timestamps/{sample}"] = np.sort(RNG.random(200))
    return {"n-tidigits.hdf5": path.read_bytes()}


def made_nmnist(folder: Path) -> dict[str, bytes]:
    root = make_nmnist(folder / "N-MNIST", 2, 1)
    return {
        f"{part}.zip": zipped({
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted((root / part.title()).rglob("*.bin"))
        })
        for part in ("train", "test")
    }  # fmt: skip


def made_heidelberg(folder: Path, name: str, parts: tuple[str, ...]) -> dict[str, bytes]:
    """SHD's 20 classes or SSC's 35."""
    made, n_classes = {}, 20 if name == "shd" else 35
    for seed, part in enumerate(parts):
        labels = (np.arange(70) % n_classes).astype(np.uint16)
        columns = {"labels": labels, "extra/keys": np.array([b"key"] * n_classes)}
        path = make_shd(folder / f"{name}_{part}.h5", 70, seed=seed, **columns)
        made[f"{path.name}.zip"] = zipped({path.name: path.read_bytes()})
    return made


def made_asl_dvs(_: Path) -> dict[str, bytes]:
    """A .mat for each recording, in archives in an archive."""
    inner = {}
    for archive, letters in (("Yin1.zip", "abcdefghijklm"), ("Yin2.zip", "nopqrstuvwxyz")):
        members = {}
        for letter in letters:
            for i in range(4):
                x, y, p, t_us = (column[:, None] for column in camera_events(240, 180))
                stream = io.BytesIO()
                savemat(stream, {"ts": t_us, "x": x, "y": y, "pol": p})
                members[f"{letter}/{letter}_{i:04d}.mat"] = stream.getvalue()
        inner[archive] = zipped(members)
    return {"ASLDVS.zip": zipped(inner)}


def made_dvs_lip(_: Path) -> dict[str, bytes]:
    """Structured arrays; it has to be downloaded by hand."""
    fields = np.dtype([("t", "<i4"), ("x", "i1"), ("y", "i1"), ("p", "i1")])
    members = {}
    for part, n in (("train", 3), ("test", 1)):
        for word in ("accused", "action", "years", "young"):
            for i in range(n):
                events = np.empty(60, fields)
                for name, column in zip("xypt", camera_events(128, 128), strict=True):
                    events[name] = column
                members[f"DVS-Lip/{part}/{word}/{i}.npy"] = npy(events)
    return {"DVS-Lip.zip": zipped(members)}


SETS: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "DVSGesture": made_dvs_gesture,
    "NCALTECH101": made_ncaltech101,
    "NTIDIGITS18": made_ntidigits18,
    "NMNIST": made_nmnist,
    "SHD": lambda folder: made_heidelberg(folder, "shd", ("train", "test")),
    "SSC": lambda folder: made_heidelberg(folder, "ssc", ("train", "valid", "test")),
    "ASLDVS": made_asl_dvs,
    "DVSLip": made_dvs_lip,
}
_CHECKSUMS = {"train": "train_md5", "valid": "valid_md5", "test": "test_md5", "": "file_md5"}


def publish(monkeypatch, dataset: str, archives: dict[str, bytes]) -> None:
    """Let these archives be those that tonic knows the checksums of."""
    for name, content in archives.items():
        part = next(part for part in _CHECKSUMS if part in name.lower())
        monkeypatch.setattr(f"tonic.datasets.{dataset}.{_CHECKSUMS[part]}", md5(content))


def serve(monkeypatch, server: Server, dataset: str, archives: dict[str, bytes]) -> None:
    """Publish these archives on a server of this machine."""
    import tonic.datasets

    publish(monkeypatch, dataset, archives)
    cls = getattr(tonic.datasets, dataset)
    server.files |= archives
    for name in archives:
        part = next(part for part in _CHECKSUMS if part in name.lower())
        for attribute, url in (
            (f"{part}_url", server.url(name)),
            ("url", server.url(name)),
            ("base_url", server.url("" if dataset in ("SHD", "SSC") else name)),
        ):
            if hasattr(cls, attribute):
                monkeypatch.setattr(cls, attribute, url)


def place(folder: Path, archives: dict[str, bytes]) -> Path:
    """Write the archives where a user would put them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in archives.items():
        (folder / name).write_bytes(content)
    return folder
