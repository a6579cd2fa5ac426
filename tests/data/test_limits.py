"""Untrusted files write nothing outside their folder, and small ones stay small in memory."""

import gzip
import io
import lzma
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5s
from made_data import make_nmnist, make_shd

from blockspike.data import limits
from blockspike.data.event_file import read_event_file
from blockspike.data.hdf5 import open_hdf5
from blockspike.data.limits import read_npz
from blockspike.data.nmnist import prepare_nmnist
from blockspike.data.recordings import load_recording
from blockspike.data.shd_file import open_h5


def recordings(folder: Path) -> dict[str, bytes]:
    """Name in an archive → content, of the smallest possible N-MNIST."""
    root = make_nmnist(folder / "made", 1, 1, n_events=5)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.bin"))}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_writes_nothing_but_the_prepared_file(tmp_path, pack):
    members, outside = recordings(tmp_path), tmp_path / "outside"
    content = next(iter(members.values()))
    for name in ("../../outside", "../outside", str(outside)):
        members[f"{name}/Train/0/a.bin"] = content
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    path = pack(tmp_path / "a.archive", members)
    prepare_nmnist(path, folder / "a.h5")
    assert [p.name for p in folder.iterdir()] == ["a.h5"]
    assert not outside.exists() and not (tmp_path / "in" / "outside").exists()


def test_links_in_an_archive_are_skipped(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(5))
    links = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = tarfile.TarInfo(f"Train/0/{kind.decode()}.bin")
        link.type, link.linkname = kind, str(tmp_path / "secret")
        links.append(link)
    members = recordings(tmp_path)
    prepare_nmnist(tarred(tmp_path / "a.tar.gz", members, *links), tmp_path / "a.h5")
    assert len(read_event_file(tmp_path / "a.h5").train) == 10


ZEROS = bytes(80 << 20)
SHORT = "expected at most .* more bytes, 67108864 in all"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_of_recordings_is_refused(tmp_path, pack):
    path = pack(tmp_path / "a.archive", recordings(tmp_path) | {"Train/0/b.bin": ZEROS})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=SHORT):
        prepare_nmnist(path, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_a_sparse_tar_that_declares_more_than_it_holds_is_refused(tmp_path):
    header = tarfile.TarInfo("Train/0/b.bin")
    header.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40)}
    header.pax_headers |= {"GNU.sparse.map": "0,0", "GNU.sparse.name": header.name}
    path = tarred(tmp_path / "a.tar.gz", recordings(tmp_path), header)
    with pytest.raises(ValueError, match=f"expected at most .*, got {1 << 40}"):
        prepare_nmnist(path, tmp_path / "a.h5")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    members = recordings(tmp_path)
    monkeypatch.setattr("blockspike.data.nmnist_raw._MOST_MEMBERS", len(members) - 1)
    for pack in (zipped, tarred):
        with pytest.raises(ValueError, match="expected at most 19 recordings"):
            prepare_nmnist(pack(tmp_path / "a.archive", members), tmp_path / "a.h5")


def test_a_zip_with_a_false_size_is_damaged(tmp_path):
    path = zipped(tmp_path / "a.zip", recordings(tmp_path) | {"Train/0/b.bin": ZEROS})
    content = path.read_bytes()
    assert content.count(len(ZEROS).to_bytes(4, "little")) == 2
    path.write_bytes(content.replace(len(ZEROS).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"Train/0/b\.bin: cannot be read"):
        prepare_nmnist(path, tmp_path / "a.h5")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_that_needs_much_memory_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, content in recordings(tmp_path).items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="is not stored or deflated"):
        prepare_nmnist(tmp_path / "a.zip", tmp_path / "a.h5")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", recordings(tmp_path))
    content, entry = path.read_bytes(), b"PK\1\2\x14\3\x14\0"
    assert entry + b"\0" in content
    path.write_bytes(content.replace(entry + b"\0", entry + b"\1"))
    with pytest.raises(ValueError, match="is encrypted"):
        prepare_nmnist(path, tmp_path / "a.h5")


def test_an_xz_that_needs_much_memory_is_refused(tmp_path, monkeypatch):
    make_shd(tmp_path / "a.h5", 3)
    packed = tmp_path / "a.h5.xz"
    packed.write_bytes(lzma.compress((tmp_path / "a.h5").read_bytes(), preset=6))
    assert len(open_h5(packed)) == 3
    monkeypatch.setattr(limits, "_XZ_MEMORY_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="Memory usage limit exceeded"):
        open_h5(packed)


def test_an_xz_of_several_streams_is_read_whole(tmp_path):
    make_shd(tmp_path / "a.h5", 3)
    content, packed = (tmp_path / "a.h5").read_bytes(), tmp_path / "b.h5.xz"
    packed.write_bytes(lzma.compress(content[:1000]) + lzma.compress(content[1000:]) + bytes(8))
    assert len(open_h5(packed)) == 3
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete file"):
        open_h5(packed)


@pytest.mark.parametrize("suffix", ["gz", "xz", "zip"])
def test_a_bomb_of_shd_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.h5.{suffix}"
    if suffix == "zip":
        zipped(path, {"a.h5": ZEROS})
    else:
        path.write_bytes({"gz": gzip, "xz": lzma}[suffix].compress(ZEROS))
    with pytest.raises(ValueError, match=SHORT):
        open_h5(path)


def declared(file: h5py.File, key: str, n: int, **options) -> None:
    """Create a dataset of zeros that takes almost no space in the file."""
    file.create_dataset(key, (n,), chunks=(1 << 20,), compression="gzip", **options)


LARGE = 1 << 34


def test_an_shd_file_that_declares_a_huge_array_is_refused(tmp_path):
    path = make_shd(tmp_path / "a.h5", 3, labels=None)
    with h5py.File(path, "r+") as file:
        declared(file, "labels", LARGE, dtype="u2")
    with pytest.raises(ValueError, match=f"labels: expected at most .*, got {2 * LARGE}"):
        open_h5(path)


def test_one_array_in_many_places_is_refused(tmp_path, monkeypatch):
    """900 equal references take 16 bytes each and stand for 4000."""
    monkeypatch.setattr(limits, "SMALL_BYTES", 1 << 20)
    path = make_shd(tmp_path / "a.h5", 900)
    with h5py.File(path, "r+") as file:
        dataset = file["spikes/times"]
        assert isinstance(dataset, h5py.Dataset)
        dataset[0] = np.zeros(2000, np.float16)
        offset = dataset.id.get_offset()
    content = bytearray(path.read_bytes())
    for i in range(1, 900):
        content[offset + 16 * i : offset + 16 * (i + 1)] = content[offset : offset + 16]
    path.write_bytes(content)
    assert (
        50 * len(content) > 900 * 4000
    )  # within this limit, so that only the other one refuses it
    monkeypatch.setattr(limits, "LARGEST_RATIO", 1)
    with pytest.raises(ValueError, match="/spikes/times: expected at most .* bytes"):
        open_h5(path)


def test_too_many_absent_chunks_are_refused(tmp_path):
    """To look for each of them would take seconds."""
    path = make_shd(tmp_path / "a.h5", 3, labels=None)
    with h5py.File(path, "r+") as file:
        file.create_dataset("labels", (1 << 24,), "u2", chunks=(64,))
    with pytest.raises(ValueError, match="labels: has more chunks than the file has room for"):
        open_h5(path)


def test_a_heap_without_an_end_is_refused(tmp_path):
    """HDF5 2.0 would loop in it for ever."""
    path = make_shd(tmp_path / "a.h5", 3)
    content = bytearray(path.read_bytes())
    start = content.find(b"GCOL")
    at = start + 16
    while content[at]:  # objects up to the free space, which is object 0
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged heap at byte {at}"):
        open_h5(path)


@pytest.mark.parametrize("size", [2**64 - 16, 2**64 - 1])
def test_a_heap_whose_sizes_wrap_around_is_refused(tmp_path, size):
    """HDF5 adds the object's header in 64 bits; so it would never leave the object."""
    path = make_shd(tmp_path / "a.h5", 3)
    content = bytearray(path.read_bytes())
    at = content.find(b"GCOL") + 16
    content[at + 8 : at + 16] = size.to_bytes(8, "little")
    if size % 16:  # it continues 16 bytes later, with what is now free space of no size
        content[at + 16 : at + 32] = bytes(16)
        at += 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged heap at byte {at}"):
        open_h5(path)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_text_longer_than_the_file_is_refused(tmp_path, version):
    """HDF5 would allocate and clear 4 GB before it looks for the text."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=version) as file:
        file.attrs["name"] = "a text of 23 characters"
    content = path.read_bytes()
    assert open_hdf5(path).attrs["name"] == "a text of 23 characters"
    length = (23).to_bytes(4, "little")  # first in the attribute, then in the heap
    path.write_bytes(content.replace(length, b"\1\0\0\xfe", 1))
    with pytest.raises(ValueError, match="expected texts in the file, got 4261412865 bytes"):
        open_hdf5(path)


@pytest.mark.parametrize("reserved", [27, 28, 31])
def test_a_text_longer_than_the_file_is_found_whatever_reserved_bytes_hold(tmp_path, reserved):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["name"] = "a text of 23 characters"
    content = bytearray(path.read_bytes())
    length = content.find((23).to_bytes(4, "little"))
    content[length : length + 4] = b"\1\0\0\xfe"
    content[length - 32 + reserved] = 0x65
    with h5py.File(io.BytesIO(content), "r") as file:
        assert file.attrs.get_id("name").shape == ()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected texts in the file, got 4261412865 bytes"):
        open_hdf5(path)


@pytest.mark.parametrize("most", [3, None])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_each_of_several_texts_is_looked_at(tmp_path, version, most):
    path, texts = tmp_path / "a.h5", ["one text", "a text of 23 characters", "another"]
    space = h5s.create_simple((3,), (most or h5s.UNLIMITED,))
    with h5py.File(path, "w", libver=version) as file:
        kind = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
        attribute = h5py.h5a.create(file.id, b"names", kind, space)
        attribute.write(np.array(texts, object))
    content = path.read_bytes()
    assert list(open_hdf5(path).attrs["names"]) == texts  # pyright: ignore
    length = (23).to_bytes(4, "little")  # first in the attribute, then in the heap
    path.write_bytes(content.replace(length, b"\1\0\0\xfe", 1))
    with pytest.raises(ValueError, match="expected texts in the file, got 4261412865 bytes"):
        open_hdf5(path)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_an_attribute_without_a_value_is_no_text(tmp_path, version):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=version) as file:
        file.attrs["name"] = h5py.Empty(h5py.string_dtype())
        file.attrs["other"] = "a text of 23 characters"
    with open_hdf5(path) as file:
        assert isinstance(file.attrs["name"], h5py.Empty)


def test_a_file_full_of_claims_of_many_texts_takes_time_in_proportion():
    begin = b"\x19\1\1\0\x10\0\0\0\x10" + bytes(11)
    many = begin + b"\2\1\0\1" + b"\0\0\0\0\0\0\0\1"  # 2**56 of them, in 32 bytes
    began_s = time.process_time()
    with pytest.raises(OSError, match="signature not found"):
        open_hdf5(io.BytesIO(many * 60_000))
    assert time.process_time() - began_s < 10


def test_a_text_longer_than_the_file_is_found_within_what_looks_like_another():
    begin, scalar = b"\x19\1\1\0\x10\0\0\0\x10", b"\0\0\0\0\1\0\0\0\0\0\0\0"
    short = b"\2\0\0\0" + b"\1\0\0\0"  # a dataspace of version 2, then a length
    text = begin + b"\0\0" + begin + short + b"\0\0\0" + scalar + b"\1\0\0\xfe" + bytes(12)
    with pytest.raises(ValueError, match="byte 11: expected texts in the file, got 4261412865 by"):
        open_hdf5(io.BytesIO(text))


def test_a_zip_member_larger_than_the_archive_is_refused(tmp_path):
    """zipfile would allocate as much as the directory declares."""
    path = zipped(tmp_path / "a.npz", {"x.npy": b"x"})
    with zipfile.ZipFile(path, "a") as archive:
        member = archive.infolist()[0]
        member.compress_size = member.file_size = 1 << 25
        archive._didModify = True  # rewrites the directory  # pyright: ignore
    with pytest.raises(ValueError, match="is not within the file"):
        read_npz(path)


def test_a_chunk_larger_than_its_dataset_is_refused(tmp_path):
    path = make_shd(tmp_path / "a.h5", 3, labels=None)
    with h5py.File(path, "r+") as file:
        file.create_dataset("labels", (3,), "u2", chunks=(1 << 30,), maxshape=(None,))
    with pytest.raises(ValueError, match="labels: expected .*, got chunks of 2147483648"):
        open_h5(path)


def foreign(path: Path, kind: str) -> None:
    """Let ``labels`` of an SHD file refer to another file."""
    secret = path.with_name("secret")
    with h5py.File(path, "r+") as file:
        del file["labels"]
        if kind == "raw":
            secret.write_bytes(bytes(6))
            file.create_dataset("labels", (3,), "u2", external=[(str(secret), 0, 6)])
            return
        make_shd(secret, 3)
        if kind == "link":
            file["labels"] = h5py.ExternalLink(str(secret), "labels")
        else:
            layout = h5py.VirtualLayout((3,), "u2")
            layout[:] = h5py.VirtualSource(str(secret), "labels", (3,))
            file.create_virtual_dataset("labels", layout)


@pytest.mark.parametrize("kind", ["raw", "link", "virtual"])
def test_hdf5_does_not_reach_into_another_file(tmp_path, kind):
    path = make_shd(tmp_path / "a.h5", 3)
    foreign(path, kind)
    words = "parts of other datasets" if kind == "virtual" else "data in another"
    with pytest.raises(ValueError, match=f"labels: expected .*, got {words}"):
        open_h5(path)


def test_nwb_with_a_huge_array_or_an_external_link_is_refused(tmp_path):
    path = tmp_path / "a.nwb"
    for version, data in (("2.6.0", "x"), ("1.0", "epochs/Sweep_1/stimulus/timeseries/data")):
        with h5py.File(path, "w") as file:
            file.attrs["nwb_version"] = version
            declared(file, data, LARGE, dtype="f4")
            file[data].attrs["unit"] = "A"
            file["epochs/Sweep_1/stimulus/timeseries/starting_time"] = 0.0
            file["epochs/Sweep_1/stimulus/timeseries/starting_time"].attrs["rate"] = 1e4
        with pytest.raises(ValueError, match=f"{data}: expected at most .*, got {4 * LARGE}"):
            load_recording(path)
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
        file["there"] = h5py.ExternalLink("other.nwb", "x")
    with pytest.raises(ValueError, match="/there is a link to another file"):
        load_recording(path)


def test_a_prepared_file_of_references_is_not_mapped(tmp_path, data_dir):
    path = tmp_path / "a.h5"
    shutil.copy(data_dir / "nmnist_sample.h5", path)
    with h5py.File(path, "r+") as file:
        del file["train/time"]
        time = file.create_dataset("train/time", (10,), h5py.vlen_dtype(np.float32))
        time[0] = [1.0]
    with pytest.raises(ValueError, match="train: time: expected numbers, got object"):
        read_event_file(path)


def test_an_npz_that_declares_a_huge_array_is_refused(tmp_path):
    path = zipped(tmp_path / "zeros.npz", {"x.npy": ZEROS})
    with pytest.raises(ValueError, match=SHORT):
        read_npz(path)
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(ValueError, match="expected an array of .*, got 80 bytes"):
        read_npz(zipped(path, {"x.npy": stream.getvalue() + bytes(80)}))
    stream = io.BytesIO(b"\x93NUMPY\x02\x00" + (1 << 20).to_bytes(4, "little") + b" " * (1 << 20))
    with pytest.raises(ValueError, match="header has more than 10000 bytes"):
        read_npz(zipped(path, {"x.npy": stream.getvalue()}))
