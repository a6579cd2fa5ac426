"""Run networks as NIR graphs in other simulators, and compare spikes step by step.

    python tools/nir_peers.py [--cache FOLDER] [--write]

Each simulator gets its own environment under FOLDER, made once (4 GB in all). The resulting table
is compared with the one in docs/howto/nir.md; the exit code is 1 if they differ. --write updates
the page instead.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.nir import Readout, to_nir, write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "howto" / "nir.md"
START, END = "<!-- table of tools/nir_peers.py -->", "<!-- end of the table -->"
HEAD = [
    "| simulator | graph | feed-forward | recurrent | readout | why |",
    "|---|---|---|---|---|---|",
]
DT_MS = 2.0
READOUT = "readout_membrane"
REQUIREMENTS = {
    "norse": ["norse==1.1.0", "nir==1.0.8", "nirtorch==2.6"],
    "sinabs": ["sinabs==3.1.3", "nir==1.0.4", "nirtorch==2.0.2"],
    "snntorch": ["snntorch==1.0.0", "nir==1.0.8", "nirtorch==2.6", "torch", "numpy"],
    "spyx": ["spyx==1.0.0", "nir==1.0.8"],
}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        peer: a key of REQUIREMENTS.
        title: the simulator's name and version.
        graph: description of the graph.
        dialect: argument of `to_nir`.
        why: reason for agreement or difference.
        options: options for nir_peer.py.
        only_first_spikes: whether to compare only the step of each neuron's first spike in the
            first layer, which is one step later in the simulator.
    """

    peer: str
    title: str
    graph: str
    dialect: str
    why: str
    options: tuple[str, ...] = ()
    only_first_spikes: bool = False


ROWS = [
    Row("norse", "Norse 1.1.0", "default", "nir", "Euler steps; leaves out the LI"),
    Row("norse", "Norse 1.1.0", '`dialect="norse"`', "norse", "the same steps"),
    Row("sinabs", "sinabs 3.1.3", "default", "nir",
        "τ counts steps; the input is added as it is"),
    Row("sinabs", "sinabs 3.1.3", '`dialect="sinabs"`', "sinabs",
        "subtracts the threshold; several spikes in a step"),
    Row("sinabs", "sinabs 3.1.3", '`dialect="sinabs"`, hard reset set', "sinabs",
        "the same steps", ("hard reset",)),
    Row("snntorch", "snnTorch 1.0.0", "default", "nir", "knows no LI"),
    Row("snntorch", "snnTorch 1.0.0", '`dialect="snntorch"`', "snntorch", "the same steps"),
    Row("spyx", "Spyx 1.0.0", "default", "nir", "knows no LI"),
    Row("spyx", "Spyx 1.0.0", '`dialect="spyx"`', "spyx",
        "subtracts the threshold, a step later; spikes come a step later"),
    Row("spyx", "Spyx 1.0.0", '`dialect="spyx"`, first spikes of the first layer', "spyx",
        "the same until then, a step later", only_first_spikes=True),
]  # fmt: skip


def made_network(recurrent: bool) -> SpikingClassifier:
    """Make a network 20 → 24 → 24 → 5 in float32; β and bias differ between neurons."""
    torch.manual_seed(0)
    net = SpikingClassifier(
        20, 5, 24, 2, dt_ms=DT_MS, recurrent=recurrent, recurrent_delay=1, tau_adaptation_ms=None
    )
    with torch.no_grad():
        for layer in [*net.layers, net.readout]:
            layer.weight.mul_(2)
            layer.bias.uniform_(-0.05, 0.1)
            layer.beta.uniform_(0.6, 0.98)
            if getattr(layer, "recurrent_weight", None) is not None:
                layer.recurrent_weight.normal_(0, 0.2)
    return net.eval()


def made_input() -> torch.Tensor:
    """Make input spikes [200, 4, 20]."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(200, 4, 20, generator=generator) < 0.2).float()


def python_of(peer: str, cache: Path) -> Path:
    """The interpreter of the peer's environment, which is made if it is missing."""
    folder = cache / peer
    python, done = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(REQUIREMENTS[peer])
    if not done.is_file() or done.read_text() != wanted:
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *REQUIREMENTS[peer]], check=True)
        done.write_text(wanted)
    return python


def expected_arrays(net: SpikingClassifier) -> dict[str, np.ndarray]:
    """Node of the graph → our spikes [T, B, N], or the readout's membrane."""
    with torch.no_grad():
        output = net(made_input())
    arrays = {f"layer_{i}_lif": spikes.numpy() for i, spikes in enumerate(output.spikes)}
    return arrays | {READOUT: output.readout.numpy()}


def run_peer(peer: str, cache: Path) -> dict[str, dict[str, np.ndarray]]:
    """Run the graphs of a peer's rows; returns case → node → array."""
    with tempfile.TemporaryDirectory() as name:
        folder, cases = Path(name), {}
        np.save(folder / "input.npy", made_input().numpy())
        for case, (row, recurrent, readout) in cases_of(peer).items():
            graph = to_nir(made_network(recurrent), DT_MS, dialect=row.dialect, readout=readout)
            write(folder / f"{len(cases)}.nir", graph)
            options = {"dt_s": 1e-3 * DT_MS, "options": row.options}
            cases[case] = {"graph": f"{len(cases)}.nir", **options}
        (folder / "cases.json").write_text(json.dumps(cases))
        script = Path(__file__).with_name("nir_peer.py")
        subprocess.run([python_of(peer, cache), script, peer, folder], check=True)
        found: dict[str, dict[str, np.ndarray]] = {case: {} for case in cases}
        with np.load(folder / f"{peer}.npz") as arrays:
            for key in arrays.files:
                case, node = key.rsplit("/", 1)
                found[case][node] = arrays[key]
    return found


def cases_of(peer: str) -> dict[str, tuple[Row, bool, Readout | None]]:
    """Case name → row, whether the network is recurrent, and `readout` of `to_nir`."""
    cases: dict[str, tuple[Row, bool, Readout | None]] = {}
    for row in ROWS:
        readouts: tuple[Readout | None, ...] = (None,) if row.dialect == "nir" else (None, "none")
        for recurrent, readout in product((False, True), readouts):
            if row.peer == peer:
                cases[case_name(row, recurrent, readout)] = (row, recurrent, readout)
    return cases


def case_name(row: Row, recurrent: bool, readout: Readout | None) -> str:
    """Name of a case, unique within a peer."""
    return f"{ROWS.index(row)} {recurrent} {readout}"


def line_of(row: Row, found: dict[str, dict[str, np.ndarray]]) -> str:
    """The table's line for a row."""
    spikes, membranes = [], []
    for recurrent in (False, True):
        expected = expected_arrays(made_network(recurrent))
        names = (case_name(row, recurrent, readout) for readout in (None, "none"))
        results = [found[name] for name in names if name in found]
        if row.only_first_spikes:
            spikes.append("–" if recurrent else first_spikes_cell(expected, results))
        else:
            spikes.append(spikes_cell(expected, results))
            membranes.append(membrane_cell(expected, results[0]))
    membrane = next((cell for cell in membranes if cell != "equal"), "equal") if membranes else "–"
    return f"| {row.title} | {row.graph} | {spikes[0]} | {spikes[1]} | {membrane} | {row.why} |"


def spikes_cell(expected: dict[str, np.ndarray], results: list[dict[str, np.ndarray]]) -> str:
    """Text: "equal" if all hidden spikes are, else the share of steps that differ."""
    if any("error" in result for result in results):
        return "refused"
    wrong = [
        result[name] != spikes if name in result else np.ones(spikes.shape, bool)
        for result in results
        for name, spikes in expected.items()
        if name != READOUT
    ]
    return share_cell(np.concatenate([x.ravel() for x in wrong]))


def share_cell(wrong: np.ndarray) -> str:
    """Text: the share of true values, or "equal" if there are none."""
    return f"{100 * wrong.mean():.1f} %" if wrong.any() else "equal"


def membrane_cell(expected: dict[str, np.ndarray], result: dict[str, np.ndarray]) -> str:
    """Text: whether the readout's membrane is equal up to float32 rounding."""
    if READOUT not in result:
        return "–"
    error = np.abs(result[READOUT] - expected[READOUT]).max() / np.abs(expected[READOUT]).max()
    return "equal" if error < 1e-5 else "differs"


def first_spikes_cell(expected: dict[str, np.ndarray], results: list[dict[str, np.ndarray]]) -> str:
    """Text: whether each neuron of the first layer first spikes one step later than ours."""
    ours = expected["layer_0_lif"][:-1]  # spikes of the last step would come after the end
    wrong = [
        (ours.argmax(0) != result["layer_0_lif"][1:].argmax(0))
        | (ours.any(0) != result["layer_0_lif"][1:].any(0))
        for result in results
    ]
    return share_cell(np.concatenate([x.ravel() for x in wrong]))


def stated_lines(text: str) -> list[str]:
    """Lines of the page's table, without the head."""
    table = text.partition(START)[2].partition(END)[0].split("\n")
    return [line for line in table if line.startswith("|")][len(HEAD) :]


def agrees(stated: str, found: str) -> bool:
    """Return whether two lines agree; shares may differ by a tenth of their value."""
    if stated.count("|") != found.count("|"):
        return False
    cells = zip(stated.split("|"), found.split("|"), strict=True)
    return all(a == b or _is_close(a, b) for a, b in cells)


def _is_close(a: str, b: str) -> bool:
    """Return whether two cells are shares in % that agree to a tenth."""
    try:
        x, y = (float(cell.replace(" %", "")) for cell in (a, b))
    except ValueError:
        return False
    return abs(x - y) <= 0.1 * x


def main() -> int:
    """Run all simulators and compare or write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-nir-peers")
    parser.add_argument("--write", action="store_true", help="write the table into its page")
    arguments = parser.parse_args()
    found = {peer: run_peer(peer, arguments.cache.resolve()) for peer in REQUIREMENTS}
    lines = [line_of(row, found[row.peer]) for row in ROWS]
    print("\n".join([*HEAD, *lines]))
    text = PAGE.read_text()
    if arguments.write:
        before, after = text.partition(START)[0], text.partition(END)[2]
        PAGE.write_text("\n".join([before + START, "", *HEAD, *lines, "", END]) + after)
        return 0
    stated = stated_lines(text)
    wrong = [line for line, given in zip(lines, stated, strict=False) if not agrees(given, line)]
    for line in wrong:
        print(f"docs/howto/nir.md differs from: {line}", file=sys.stderr)
    if len(stated) != len(lines):
        print(f"docs/howto/nir.md: expected {len(lines)} lines, got {len(stated)}", file=sys.stderr)
    return int(bool(wrong) or len(stated) != len(lines))


if __name__ == "__main__":
    sys.exit(main())
