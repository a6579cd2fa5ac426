"""The tutorials run, their prose is true, and they are committed with the outputs of a run."""

import json
import re
import sys
import tempfile
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
_ANNOUNCED = re.compile("blockspike: compiling kernels").match
_RATIO = r"(.+): (blocks|fused) ([\d,.]+) times as fast"


def committed(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def code_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def files() -> set[Path]:
    """Files that git could see, except those in folders for outputs."""
    folders = ("data", "notebooks", "docs", "conf", "src")
    found = [p for name in folders for p in (ROOT / name).rglob("*")]
    return {p for p in found if "__pycache__" not in p.parts} | set(ROOT.iterdir())


@pytest.fixture(scope="module")
def this_interpreter(tmp_path_factory):
    """A kernel `python3` that is the interpreter of the tests, with settings of no user."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "tests", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(folder / name))
        patch.delenv("PYTHONWARNINGS", raising=False)
        yield


@cache
def execute(name: str) -> dict[str, NotebookNode]:
    """The code cells after a run in a folder deep inside the repository, which is not changed."""
    notebook = committed(name)
    for cell in code_cells(notebook).values():
        cell.outputs = []
    notebook.cells.append(new_code_cell("import sys\nprint(sys.executable)", id="interpreter"))
    before = files()
    folder = ROOT / "docs" / "images"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert files() == before
    for cell in code_cells(notebook).values():  # a cold cache of kernels is no complaint
        cell.outputs = [o for o in cell.outputs if not _ANNOUNCED(o.get("text", ""))]
    return code_cells(notebook)


@pytest.fixture
def simulate(this_interpreter) -> dict[str, NotebookNode]:
    return execute("simulate")


@pytest.fixture
def train(this_interpreter) -> dict[str, NotebookNode]:
    return execute("train")


@pytest.fixture
def fit(this_interpreter) -> dict[str, NotebookNode]:
    return execute("fit")


def printed(cell: NotebookNode, stream: str = "stdout") -> str:
    return "".join(o.text for o in cell.outputs if o.get("name") == stream)


def kinds(cell: NotebookNode) -> set[str]:
    """Streams and kinds of data that the cell gave out."""
    return {kind for o in cell.outputs for kind in o.get("data", {o.get("name"): None})}


@pytest.mark.usefixtures("this_interpreter")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_with_this_interpreter_and_without_complaints(name):
    executed = execute(name)
    assert printed(executed["interpreter"]).strip() == sys.executable
    for cell_id, cell in executed.items():
        assert cell.outputs, cell_id
        assert not printed(cell, "stderr"), cell_id


def test_the_methods_agree_as_the_prose_says(simulate):
    lines = printed(simulate["equality"]).splitlines()
    header, *rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    table = pd.DataFrame(rows, columns=header)
    assert table["arp (steps)"].tolist() == ["0", "5", "20", "50"]
    assert (table["spikes"].astype(int) > 100).all()
    assert set(table["same spikes"]) == set(table["fused gradients equal"]) == {"True"}
    assert set(table["blocks gradients equal"]) == {"False"}
    assert float(table["cosine, blocks"].iloc[0]) > float(table["cosine, blocks"].iloc[-1]) + 0.5


def test_the_order_of_the_methods_in_time(simulate):
    found = re.findall(_RATIO, printed(simulate["timing"]))
    ratios = {(size[:3], method): float(x.replace(",", "")) for size, method, x in found}
    assert ratios["a l", "fused"] > 4 and ratios["one", "fused"] > 100
    assert ratios["a l", "blocks"] > 2 and ratios["one", "blocks"] > 50


def test_the_network_learns(train):
    """10 classes; the linear model reaches 85 %, and a standard error is 3 %."""
    validation, test = map(float, re.findall(r"accuracy ([\d.]+)%", printed(train["test"])))
    assert validation > 80 and test > 78


def test_the_fit_predicts_the_cell(fit):
    (etv,) = re.findall(r"normalised ETV on the test current: ([\d.]+)", printed(fit["parameters"]))
    assert float(etv) > 0.8
    assert tempfile.gettempdir() not in printed(fit["fitting"])


@pytest.mark.usefixtures("this_interpreter")
@pytest.mark.parametrize(
    ("name", "same", "n_pictures"),
    [("simulate", ["equality"], 2), ("train", ["data"], 2), ("fit", ["cell"], 1)],
)
def test_it_is_committed_with_the_outputs_of_its_sources(name, same, n_pictures):
    executed, cells = execute(name), code_cells(committed(name))
    assert [cell.execution_count for cell in cells.values()] == [*range(1, len(cells) + 1)]
    for cell_id, cell in cells.items():
        assert kinds(cell) == kinds(executed[cell_id]) != set(), cell_id
    for cell_id in same:
        assert printed(cells[cell_id]) == printed(executed[cell_id])
    assert sum("image/png" in kinds(cell) for cell in cells.values()) == n_pictures
    assert NOTEBOOKS[name].stat().st_size < 300_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_links_lead_somewhere(name):
    cells = committed(name).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 2
    for link in links:
        assert (NOTEBOOKS[name].parent / link.partition("#")[0]).exists(), link
