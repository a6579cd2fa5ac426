"""The table in docs/howto/nir.md and its check by tools/nir_peers.py; needs no simulator."""

import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest

nir_peers: Any = import_module("nir_peers")
READOUT, ROWS = nir_peers.READOUT, nir_peers.ROWS


def exact(peer: str, cache: Any = None) -> dict[str, dict[str, np.ndarray]]:
    """Results of a simulator that agrees completely."""
    return {
        case: nir_peers.expected_arrays(nir_peers.made_network(recurrent))
        for case, (_, recurrent, _) in nir_peers.cases_of(peer).items()
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


NORSE = next(row for row in ROWS if row.dialect == "norse")
FIRST = next(row for row in ROWS if row.only_first_spikes)


def test_the_networks_spike():
    for recurrent in (False, True):
        arrays = nir_peers.expected_arrays(nir_peers.made_network(recurrent))
        for name, values in arrays.items():
            assert name == READOUT or 0.02 < values.mean() < 0.2
        assert (arrays["layer_0_lif"].any(0)).mean() > 0.6


def test_every_row_is_on_the_page():
    stated = [cells(line) for line in nir_peers.stated_lines(nir_peers.PAGE.read_text())]
    assert [(x[0], x[1], x[5]) for x in stated] == [(r.title, r.graph, r.why) for r in ROWS]
    equal = {(x[0], x[1]): x[2:5] == ["equal"] * 3 for x in stated}
    for peer, dialect in (("Norse 1.1.0", "norse"), ("snnTorch 1.0.0", "snntorch")):
        assert equal[peer, f'`dialect="{dialect}"`']
    assert equal["sinabs 3.1.3", '`dialect="sinabs"`, hard reset set']


@pytest.mark.parametrize("row", [row for row in ROWS if not row.only_first_spikes])
def test_the_same_spikes_are_called_equal(row):
    assert cells(nir_peers.line_of(row, exact(row.peer)))[2:5] == ["equal"] * 3


@pytest.mark.parametrize("readout", [None, "none"])
@pytest.mark.parametrize("node", ["layer_0_lif", "layer_1_lif"])
def test_one_different_spike_is_reported(node, readout):
    found = exact("norse")
    spikes = found[nir_peers.case_name(NORSE, True, readout)][node]
    spikes[-1, -1, -1] = 1 - spikes[-1, -1, -1]
    assert cells(nir_peers.line_of(NORSE, found))[2:5] == ["equal", "0.0 %", "equal"]
    del found[nir_peers.case_name(NORSE, False, readout)][node]
    assert cells(nir_peers.line_of(NORSE, found))[2] == "25.0 %"


def test_another_membrane_and_an_error_are_reported():
    found = exact("norse")
    membrane = found[nir_peers.case_name(NORSE, True, None)][READOUT]
    membrane += 2e-5 * np.abs(membrane).max()
    assert cells(nir_peers.line_of(NORSE, found))[2:5] == ["equal", "equal", "differs"]
    found[nir_peers.case_name(NORSE, True, "none")] = {"error": np.array("TypeError: r")}
    assert cells(nir_peers.line_of(NORSE, found))[2:4] == ["equal", "refused"]


def test_first_spikes_may_come_one_step_later():
    found = exact("spyx")
    case = nir_peers.case_name(FIRST, False, None)
    for result in found.values():
        result["layer_0_lif"] = np.roll(result["layer_0_lif"], 1, axis=0)
        result["layer_0_lif"][0] = 0
    assert cells(nir_peers.line_of(FIRST, found))[2:5] == ["equal", "–", "–"]
    first = found[case]["layer_0_lif"][:, 0, 0].argmax()
    found[case]["layer_0_lif"][first + 1 :] = 0  # spikes after the first do not count
    found[case]["layer_0_lif"][first, 0, 0] = 0
    assert cells(nir_peers.line_of(FIRST, found))[2].endswith(" %")


@pytest.mark.parametrize(
    ("stated", "found", "expected"),
    [
        ("| equal | 3.8 % |", "| equal | 3.8 % |", True),
        ("| equal | 3.8 % |", "| equal | 4.1 % |", True),
        ("| equal | 3.8 % |", "| equal | 4.3 % |", False),
        ("| equal | 3.8 % |", "| 0.0 % | 3.8 % |", False),
        ("| equal | 3.8 % |", "| equal | equal |", False),
        ("| equal | 3.8 % |", "| equal | refused |", False),
        ("| equal | 3.8 % |", "| equal |", False),
    ],
)
def test_lines_agree_up_to_a_tenth_of_a_share(stated, found, expected):
    assert nir_peers.agrees(stated, found) == expected


TABLE = "\n".join([nir_peers.START, *nir_peers.HEAD, "{}", nir_peers.END, "after", ""])


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page that states the results of `exact`."""
    monkeypatch.setattr(nir_peers, "run_peer", exact)
    monkeypatch.setattr(nir_peers, "PAGE", tmp_path / "nir.md")
    found = {peer: exact(peer) for peer in nir_peers.REQUIREMENTS}
    lines = [nir_peers.line_of(row, found[row.peer]) for row in ROWS]
    nir_peers.PAGE.write_text("before\n" + TABLE.format("\n".join(lines)))
    return nir_peers.PAGE


def test_a_correct_page_passes(page, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nir_peers.py"])
    text = page.read_text()
    assert nir_peers.main() == 0
    assert page.read_text() == text and not capsys.readouterr().err


@pytest.mark.parametrize("old", ["| equal | equal | equal | the same steps |\n", "Norse 1.1.0"])
def test_a_wrong_page_fails_until_it_is_rewritten(old, page, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nir_peers.py"])
    right = page.read_text()
    page.write_text(right.replace(old, old.replace("equal", "3.0 %").replace("1.1.0", "1.1.1"), 1))
    assert page.read_text() != right
    assert nir_peers.main() == 1
    assert capsys.readouterr().err.startswith("docs/howto/nir.md differs from: | Norse 1.1.0 | ")
    page.write_text(right.replace(right.splitlines()[-4] + "\n", ""))
    assert nir_peers.main() == 1
    assert f"expected {len(ROWS)} lines, got {len(ROWS) - 1}" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["nir_peers.py", "--write"])
    assert nir_peers.main() == 0
    monkeypatch.setattr(sys, "argv", ["nir_peers.py"])
    assert nir_peers.main() == 0
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
