from __future__ import annotations

import builtins
import io
import json
import logging
import re
import socket
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import h5py
import numpy as np
import pytest

from blockspike.data import allen
from blockspike.data.allen import (
    AllenRecordings,
    Downloaded,
    download_cells,
    prepare_allen,
    select_cells,
)
from blockspike.data.recordings import load_recording

pytest.importorskip("allensdk")
# The made cells store other spikes than those of their voltage.
pytestmark = pytest.mark.filterwarnings("ignore:.*not high at the stored spikes")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from allensdk.core.cell_types_cache import CellTypesCache

FITTING = (101, 102, 103)
SPIKES_S = (0.002, 0.005)


def cell_row(specimen: int, **changed: object) -> dict[str, object]:
    """A row of ApiCellTypesSpecimenDetail, as the API sends it."""
    row: dict[str, object] = {
        "specimen__id": specimen,
        "specimen__name": f"Rorb-IRES2-Cre-D;Ai14-{specimen}.05.01.01",
        "specimen__hemisphere": "left",
        "structure__layer": "4",
        "structure_parent__id": 385,
        "structure_parent__acronym": "VISp",
        "cell_reporter_status": "positive",
        "csl__x": 8881.0,
        "csl__y": 953.8,
        "csl__z": 7768.2,
        "csl__normalized_depth": 0.478,
        "donor__species": "Mus musculus",
        "donor__disease_state": "",
        "donor__id": 484742372,
        "line_name": "Rorb-IRES2-Cre",
        "tag__dendrite_type": "spiny",
        "tag__apical": "NA",
        "nr__reconstruction_type": None,
    }
    return row | changed


def sweep_rows(specimen: int, n_noise_2: int) -> list[dict[str, object]]:
    """Rows of EphysSweep, last sweep first: the API does not sort them."""
    names = ["Test", "Long Square", "Noise 1", *n_noise_2 * ["Noise 2"]]
    return [
        {
            "id": 396429050 + number,
            "specimen_id": specimen,
            "sweep_number": number,
            "stimulus_name": name,
            "stimulus_description": "C1NSSEED_2150112[0]",
            "stimulus_units": "Amps",
            "stimulus_interval": None,
            "stimulus_start_time": 1.02,
            "stimulus_absolute_amplitude": 110.000002162547,
            "num_spikes": None,
            "leak_pa": -3.0070378780365,
            "peak_deflection": None,
        }
        for number, name in reversed(list(enumerate(names)))
    ]


def nwb_file(as_bytes: bool = True, stimuli: tuple[str, ...] = ("Noise 1", "Noise 2")) -> bytes:
    """An NWB 1 file as the Allen Institute's pipeline 1.1 writes it, but short."""

    def text(value: str) -> str | np.bytes_:
        return np.bytes_(value.encode()) if as_bytes else value

    whole = io.BytesIO()
    with h5py.File(whole, "w") as file:
        file["nwb_version"] = text("NWB-1.0.5")
        pairs = [["name", "allen pipeline"], ["version", "1.1.0"]]
        file["general/generated_by"] = np.array(pairs, "S" if as_bytes else h5py.string_dtype())
        for number, name in enumerate(name for name in stimuli for _ in range(4)):
            sweep = file.create_group(f"epochs/Sweep_{number}")
            n_samples = 2000 if name == "Noise 1" else 3000
            # 50 pA and −70 mV
            add_series(sweep, "stimulus", np.full(n_samples, 50), 1e-12, text("A"))
            add_series(sweep, "response", np.full(n_samples, -70), 1e-3, text("V"))
            file[f"acquisition/timeseries/Sweep_{number}/aibs_stimulus_name"] = text(name)
            file[f"analysis/spike_times/Sweep_{number}"] = np.array(SPIKES_S)
    return whole.getvalue()


def add_series(
    sweep: h5py.Group, side: str, values: np.ndarray, conversion: float, unit: str | np.bytes_
) -> None:
    series = sweep.create_group(f"{side}/timeseries")
    data = series.create_dataset("data", data=values.astype(np.float32))
    data.attrs["conversion"], data.attrs["unit"] = conversion, unit
    series.create_dataset("starting_time", data=0.0).attrs["rate"] = 200_000.0


class Server(ThreadingHTTPServer):
    """The Allen Institute's API: rows of its tables, and a recording for each of `FITTING`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cells: object = [cell_row(specimen) for specimen in reversed(FITTING)]
        self.sweeps: dict[int, object] = {s: sweep_rows(s, 4) for s in FITTING}
        self.files = {s: nwb_file(as_bytes=s != FITTING[1]) for s in FITTING}
        self.broken: set[str] = set()  # answered by status 500
        self.cut: set[str] = set()  # cut off in the middle
        self.requests: list[str] = []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str) -> tuple[str, bytes | None]:
        """Name of a request and its answer, None for "no such"."""
        if file := re.match(r"/api/v2/well_known_file_download/(\d+)", query):
            return f"file {file[1]}", self.files.get(int(file[1]))
        found = re.search(r"model::(\w+)(?:,rma::criteria,\[(?:specimen_)?id\$eq(\d+)\])?", query)
        assert found, query
        specimen = int(found[2] or 0)
        if found[1] == "ApiCellTypesSpecimenDetail":
            return "cells", envelope(self.cells)
        if found[1] == "EphysSweep":
            return f"sweeps {specimen}", envelope(self.sweeps[specimen])
        assert "NWBDownload" in query
        link = f"/api/v2/well_known_file_download/{specimen}"
        files = [{"well_known_files": [{"download_link": link}]}] if specimen in self.files else []
        return f"link {specimen}", envelope([{"ephys_result": f} for f in files])


def envelope(msg: object) -> bytes:
    return json.dumps({"success": isinstance(msg, list), "id": 0, "msg": msg}).encode()


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        name, content = self.server.answer(unquote(self.path))
        self.server.requests.append(name)
        if content is None or name in self.server.broken:
            self.send_error(404 if content is None else 500)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.cut else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names_in(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def expected_names(specimens=FITTING) -> list[str]:
    of_cell = [f"specimen_{s}/{n}" for s in FITTING for n in ["ephys_sweeps.json"]]
    nwb = [f"specimen_{s}/ephys.nwb" for s in specimens]
    return sorted(["cells.json", "manifest.json", *of_cell, *nwb])


def test_everything_arrives_once(server, tmp_path, capfd, caplog):
    done = prepare_allen(tmp_path, base_uri=server.uri)
    assert done.failed == {}
    assert done.paths == [tmp_path / f"specimen_{s}" / "ephys.nwb" for s in FITTING]
    assert names_in(tmp_path) == expected_names()
    for specimen, path in zip(FITTING, done.paths, strict=True):
        assert path.read_bytes() == server.files[specimen]
        recording = load_recording(path, stimuli=("Noise 2",))
        assert recording.current_pa.shape == (1, 3000)
        assert len(recording.spike_times_s) == 4
    requests = [f"{what} {s}" for s in FITTING for what in ("sweeps", "link", "file")]
    assert sorted(server.requests) == sorted(["cells", *requests])
    out, err = capfd.readouterr()
    assert out == "" and caplog.records == []
    announced = f"Downloading 3 recordings from {server.uri} to {tmp_path}, except those"
    (first,) = [line for line in err.splitlines() if line.startswith(announced)]
    progress = [line.split(":")[0] for line in err.splitlines() if line != first]
    assert set(progress) == {"Selecting cells", "Downloading cells"}

    server.requests.clear()
    assert prepare_allen(tmp_path, base_uri=server.uri) == done
    assert server.requests == []


def test_allensdk_can_use_the_folder(server, tmp_path):
    prepare_allen(tmp_path, base_uri=server.uri)
    server.requests.clear()
    cache = CellTypesCache(manifest_file=str(tmp_path / "manifest.json"), base_uri=server.uri)
    assert {cell["id"] for cell in cache.get_cells()} == set(FITTING)
    assert len(cache.get_ephys_sweeps(101)) == 7
    assert sorted(cache.get_ephys_data(101).get_sweep_numbers()) == list(range(8))
    assert server.requests == []


def test_a_folder_of_allensdk_is_continued(server, tmp_path):
    cache = CellTypesCache(manifest_file=str(tmp_path / "manifest.json"), base_uri=server.uri)
    cache.get_cells()
    cache.get_ephys_sweeps(101)
    cache.get_ephys_data(101)
    server.requests.clear()
    assert prepare_allen(tmp_path, n_cells=1, base_uri=server.uri).failed == {}
    assert server.requests == []


def test_cells_of_the_paper_are_selected(server, tmp_path):
    others = {
        104: {"donor__species": "Homo Sapiens", "donor__disease_state": "no disease"},
        105: {"structure__layer": "2/3"},
        106: {"donor__disease_state": "epilepsy"},
        107: {"donor__disease_state": "no disease"},
        108: {"donor__disease_state": None, "donor__species": "mus musculus"},
        109: {"donor__species": None},
        110: {"structure__layer": None},
        111: {},
    }
    server.cells = [cell_row(s, **changed) for s, changed in others.items()] + server.cells
    server.sweeps |= {107: sweep_rows(107, 5), 108: sweep_rows(108, 4), 111: sweep_rows(111, 3)}
    assert select_cells(tmp_path, base_uri=server.uri) == ([*FITTING, 107, 108], {})
    asked = {r for r in server.requests if r.startswith("sweeps")}
    assert asked == {f"sweeps {s}" for s in (*FITTING, 107, 108, 111)}


def test_selecting_the_first_cells_requests_no_others(server, tmp_path):
    done = prepare_allen(tmp_path, n_cells=2, base_uri=server.uri)
    assert [p.parent.name for p in done.paths] == ["specimen_101", "specimen_102"]
    assert not any("103" in request for request in server.requests)
    assert len(prepare_allen(tmp_path, n_cells=9, base_uri=server.uri).paths) == 3


@pytest.mark.parametrize("n_cells", [0, -1])
def test_fewer_than_one_cell_is_refused(tmp_path, n_cells):
    with pytest.raises(ValueError, match=f"n_cells: expected at least 1, got {n_cells}"):
        select_cells(tmp_path, n_cells)


@pytest.mark.parametrize("left", ["ephys.part.nwb", "ephys.nwb"])
def test_a_killed_download_starts_again(server, tmp_path, left):
    folder = tmp_path / "specimen_102"
    folder.mkdir()
    (folder / left).write_bytes(server.files[102][:5000])
    done = prepare_allen(tmp_path, base_uri=server.uri)
    assert (len(done.paths), done.failed) == (3, {})
    assert (folder / "ephys.nwb").read_bytes() == server.files[102]
    assert names_in(tmp_path) == expected_names()


def test_a_damaged_file_is_deleted_even_if_the_download_fails(server, tmp_path):
    damaged = tmp_path / "specimen_102" / "ephys.nwb"
    damaged.parent.mkdir()
    damaged.write_bytes(server.files[102][:5000])
    server.broken.add("file 102")
    assert prepare_allen(tmp_path, base_uri=server.uri).failed.keys() == {102}
    assert not damaged.exists()


@pytest.mark.parametrize(
    "damaged", ["", '[{"specimen__id": 101', '"timed out"', "[{}]", "[]", "42"]
)
@pytest.mark.parametrize("left", ["", ".part"])
def test_damaged_rows_are_requested_again(server, tmp_path, damaged, left):
    (tmp_path / "specimen_101").mkdir()
    for path in (f"cells{left}.json", f"specimen_101/ephys_sweeps{left}.json"):
        (tmp_path / path).write_text(damaged)
    assert select_cells(tmp_path, base_uri=server.uri) == ([*FITTING], {})
    assert {"cells", "sweeps 101"} <= set(server.requests)
    assert not any(".part" in name for name in names_in(tmp_path))


def fail_500(server):
    server.broken.add("file 102")


def fail_link(server):
    server.broken.add("link 102")


def lose_file(server):
    del server.files[102]


def cut_transfer(server):
    server.cut.add("file 102")


def truncate_file(server):
    server.files[102] = server.files[102][:-1000]


def leave_out_noise_1(server):
    server.files[102] = nwb_file(stimuli=("Noise 2",))


def send_a_page(server):
    server.files[102] = b"<html>Please log in</html>"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (fail_500, "the server refused .*500"),
        (fail_link, "the server refused .*500"),
        (lose_file, "Specimen 102 has no ephys data"),
        (cut_transfer, "download failed .*IncompleteRead"),
        (truncate_file, "not a complete NWB file"),
        (leave_out_noise_1, "expected a stimulus of "),
        (send_a_page, "not a complete NWB file"),
    ],
)
def test_a_cell_that_fails_does_not_stop_the_others(server, tmp_path, harm, reason):
    good = server.files[102]
    harm(server)
    done = prepare_allen(tmp_path, base_uri=server.uri)
    assert [p.parent.name for p in done.paths] == ["specimen_101", "specimen_103"]
    assert done.failed.keys() == {102}
    message = done.failed[102]
    assert message.startswith(str(tmp_path / "specimen_102" / "ephys.nwb"))
    assert re.search(reason, message)
    assert "\n" not in message and ".part" not in message
    assert names_in(tmp_path) == expected_names((101, 103))

    server.requests.clear()
    server.broken, server.cut, server.files[102] = set(), set(), good
    done = prepare_allen(tmp_path, base_uri=server.uri)
    assert (len(done.paths), done.failed) == (3, {})
    assert server.requests == ["link 102", "file 102"]


def test_failed_sweeps_of_a_cell_do_not_stop_the_others(server, tmp_path):
    server.broken.add("sweeps 101")
    server.sweeps[102] = "query timed out"
    done = prepare_allen(tmp_path, base_uri=server.uri)
    assert [p.parent.name for p in done.paths] == ["specimen_103"]
    assert done.failed.keys() == {101, 102}
    assert all("ephys_sweeps.json" in reason for reason in done.failed.values())
    server.broken, server.sweeps[102] = set(), sweep_rows(102, 4)
    assert len(prepare_allen(tmp_path, base_uri=server.uri).paths) == 3


def test_a_failed_query_is_not_taken_for_a_list_of_cells(server, tmp_path):
    server.cells = "query timed out"
    with pytest.raises((OSError, ValueError), match=r"cells\.json: .*") as caught:
        select_cells(tmp_path, base_uri=server.uri)
    assert "query timed out" in str(caught.value)
    assert names_in(tmp_path) == ["manifest.json"]


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as once:
        return f"http://127.0.0.1:{once.getsockname()[1]}"


def test_nothing_is_downloaded_unless_allowed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(allen, "prepare_allen", lambda *a: asked.append(a) or Downloaded([], {}))
    refused = AllenRecordings(tmp_path / "allen")
    refused.prepare()
    with pytest.raises(FileNotFoundError, match="data=allen data.download=true` downloads them"):
        refused.setup()
    assert not asked and not list(tmp_path.iterdir())
    AllenRecordings(tmp_path / "allen", download=True).prepare()
    assert asked == [(tmp_path / "allen", None)]


def test_no_network_is_one_error(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"cells\.json: no connection to the server") as first:
        prepare_allen(tmp_path, base_uri=closed_port())
    assert "\n" not in str(first.value)
    select_cells(tmp_path, base_uri=server.uri)
    with pytest.raises(ConnectionError, match=r"specimen_103/ephys\.nwb: no connection"):
        prepare_allen(tmp_path, base_uri=closed_port())
    lone = prepare_allen(tmp_path, n_cells=1, base_uri=closed_port())
    assert lone.paths == [] and lone.failed.keys() == {101}


def test_a_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(allen, "_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no connection to the server .*timed out"):
            select_cells(tmp_path, base_uri=uri)


def test_complete_cells_need_no_network(server, tmp_path):
    done = prepare_allen(tmp_path, base_uri=server.uri)
    assert prepare_allen(tmp_path, base_uri=closed_port()) == done


def test_lost_connections_count_only_in_a_row(server, tmp_path, monkeypatch):
    lost_at = {1, 2, 4, 5}

    def check(path):
        specimen = int(path.parent.name.removeprefix("specimen_"))
        if specimen in lost_at:
            raise ConnectionError("lost")

    monkeypatch.setattr(allen, "_check_recording", check)
    server.files = dict.fromkeys(range(1, 7), nwb_file())
    done = download_cells(tmp_path, range(1, 7), base_uri=server.uri)
    assert done.failed == dict.fromkeys(sorted(lost_at), "lost")
    assert [p.parent.name for p in done.paths] == ["specimen_3", "specimen_6"]


def test_a_full_disk_stops_the_download(server, tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    real_open = open

    def open_full(file, *args, **options):
        if str(file).endswith("ephys.part.nwb"):
            return FullDisk(file, "w")
        return real_open(file, *args, **options)

    monkeypatch.setattr(builtins, "open", open_full)
    with pytest.raises(OSError, match=r"No space left on device: .*specimen_101/ephys\.nwb"):
        prepare_allen(tmp_path, base_uri=server.uri)
    assert not any(request == "file 102" for request in server.requests)
    assert names_in(tmp_path) == expected_names(())


def test_a_missing_allensdk_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(allen, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'blockspike\[allen\]'.*Python 3\.11"):
        prepare_allen(tmp_path)


@pytest.mark.parametrize("content", ["", '{"manifest": [{"type": "manifest_version"', "[]"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: AllenSDK cannot use it"):
        select_cells(tmp_path)


def test_settings_of_the_process_are_restored(server, tmp_path):
    log = logging.getLogger("allensdk.api.api.retrieve_file_over_http")
    before = None, False, list(warnings.filters)
    server.broken.add("file 101")
    prepare_allen(tmp_path, base_uri=server.uri)
    assert (socket.getdefaulttimeout(), log.disabled, list(warnings.filters)) == before
