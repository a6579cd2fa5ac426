"""The figure on recordings, drawn from a table of fits."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from blockspike.figures.recording import recording_fit
from blockspike.figures.recordings import recordings
from blockspike.figures.style import use_style


def fits() -> pd.DataFrame:
    rows = []
    for kind, arp in (("PhysicalPopulation", 0.5), ("PaperPopulation", 2.0)):
        for dt_ms in (0.1, 0.5, 1.0):
            rows.append((f"blockspike.fitting.population.{kind}", arp, dt_ms))
        rows.append((f"blockspike.fitting.population.{kind}", 8.0, 0.1))
    table = pd.DataFrame(rows, columns=["population._target_", "population.arp_ms", "data.dt_ms"])
    scores = np.linspace(0.3, 0.9, len(table))
    return table.assign(
        **{
            "data_set": "my cells", "n_cells": 4, "population.method": "fused",
            "fit_s_per_cell": 2.0, "population.n_starts": 64.0, "test_etv_15ms_median": scores,
            "test_etv_15ms_q25": scores - 0.1, "test_etv_15ms_q75": scores + 0.05,
        }
    )  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    use_style()
    figures = []
    monkeypatch.setattr(
        "blockspike.figures.recordings.save", lambda f, path: figures.append(f) or path
    )
    yield figures
    plt.close("all")


def test_points_are_those_of_the_table(tmp_path, drawn):
    (path,) = recordings(fits(), tmp_path)
    assert path.name == "recordings_my_cells"
    against_dt, against_arp, seconds = drawn[0].axes
    lines = {line.get_label(): line for line in against_dt.containers}
    ours = lines["our recipe, ARP 0.5 ms"][0]
    table = fits()
    np.testing.assert_allclose(ours.get_xdata(), [0.1, 0.5, 1.0])
    np.testing.assert_allclose(ours.get_ydata(), table["test_etv_15ms_median"][:3])
    np.testing.assert_allclose(against_arp.containers[0][0].get_xdata(), [0.5, 8.0])
    assert "my cells (4 cells), not the Allen cells" in drawn[0].get_suptitle()
    names = [label.get_text() for label in seconds.get_yticklabels()]
    assert "our recipe, CPU, dt 0.1 ms, 64 starts" in names
    assert sum("published" in name and "GPU" in name for name in names) == 2


def test_a_table_of_fits_without_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected columns test_etv_15ms_median"):
        recordings(fits().drop(columns="test_etv_15ms_median"), tmp_path)


@pytest.mark.parametrize(
    "table", [pd.DataFrame({"a": [1]}), fits().assign(**{"population._target_": None})]
)
def test_without_fits_the_published_values_and_the_command_are_shown(tmp_path, drawn, table):
    (path,) = recordings(table, tmp_path)
    assert path.name == "recordings_published_values_only"
    against_dt, against_arp, _ = drawn[0].axes
    for axis, override in ((against_dt, "data.dt_ms="), (against_arp, "population.arp_ms=")):
        assert override in axis.get_title(loc="left") and len(axis.get_lines()) == 1


def test_each_cell_has_a_column(tmp_path):
    use_style()
    rng = np.random.default_rng(0)
    traces = {"dt_ms": np.array(0.5)}
    for k in range(2):
        traces |= {
            f"cell{k}_name": np.array(f"cell {k}"),
            f"cell{k}_current_pa": rng.standard_normal(2000),
            f"cell{k}_trains": (rng.random((3, 2000)) < 0.01).astype(np.uint8),
            f"cell{k}_model": (rng.random((4, 2000)) < 0.01).astype(np.uint8),
            f"cell{k}_predicted": rng.random(2000) * 0.02,
            f"cell{k}_etv_15ms": np.array(0.8),
            f"cell{k}_gamma_4ms": np.array(0.7),
        }
    assert recording_fit(traces, tmp_path / "shown") == tmp_path / "shown.png"
    assert (tmp_path / "shown.png").stat().st_size > 10_000
    del traces["cell0_predicted"]  # as in files of older versions
    traces["cell0_model"] = traces["cell0_model"][0]
    recording_fit(traces, tmp_path / "old")
    assert (tmp_path / "old.png").stat().st_size > 10_000
    plt.close("all")
