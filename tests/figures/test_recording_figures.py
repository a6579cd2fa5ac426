"""The figure on recordings, drawn from a table of fits."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from blockspike.figures.recording import recording_fit
from blockspike.figures.recordings import recordings
from blockspike.plots.style import use_style
from made_traces import made_cell


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
    assert "our recipe\nCPU, dt 0.1 ms, 64 starts (ETV 0.43)" in names
    assert sum("published" in name and "GPU" in name for name in names) == 2


def test_a_table_of_fits_without_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a table without test_etv_15ms_median"):
        recordings(fits().drop(columns="test_etv_15ms_median"), tmp_path)


def test_lists_in_rows_of_other_neurons_do_not_matter(tmp_path, drawn):
    """A GIF's refractory period is a range, so all values of that column are text."""
    table = fits().astype({"population.arp_ms": object, "population.n_starts": object})
    gif = table.iloc[[0]].assign(
        **{"population._target_": "a.GIFPopulation", "population.arp_ms": "[1.0, 6.0]"}
    )
    with_gif = pd.concat([table, gif]).astype(
        {"population.arp_ms": str, "population.n_starts": str}
    )
    recordings(with_gif, tmp_path)
    recordings(fits(), tmp_path)
    ours, expected = (figure.axes[1].containers[0][0].get_xydata() for figure in drawn)
    np.testing.assert_allclose(ours, expected)


@pytest.mark.parametrize(
    "table", [pd.DataFrame({"a": [1]}), fits().assign(**{"population._target_": None})]
)
def test_without_fits_the_published_values_and_the_command_are_shown(tmp_path, drawn, table):
    (path,) = recordings(table, tmp_path)
    assert path.name == "recordings_published_values_only"
    against_dt, against_arp, _ = drawn[0].axes
    for axis, override in ((against_dt, "data.dt_ms="), (against_arp, "population.arp_ms=")):
        assert override in axis.get_title(loc="left") and len(axis.get_lines()) == 1


@pytest.fixture
def columns(monkeypatch, tmp_path):
    """Draw cells; return the titles and the figure."""
    use_style()
    figures = []
    monkeypatch.setattr(
        "blockspike.figures.recording.save", lambda f, path: figures.append(f) or path
    )

    def draw(cells):
        recording_fit(cells, tmp_path / "shown")
        axes = figures[-1].axes
        return [axis.get_title() for axis in axes if axis.get_title()], figures[-1]

    yield draw
    plt.close("all")


def test_the_best_median_and_worst_cell_have_a_column_each(columns):
    cells = [
        replace(made_cell(f"cell {k}"), etv_15ms=np.array([score]))
        for k, score in enumerate((0.5, 0.9, 0.1, 0.7, 0.3))
    ]
    titles, figure = columns(cells)
    assert [title.split("\n")[0] for title in titles] == ["cell 1", "cell 0", "cell 2"]
    assert "ETV 0.90" in titles[0] and titles[0].endswith("\nstimulus 0")
    assert figure.get_figwidth() < 7.5  # the width of a page: type keeps its size
    raster = figure.axes[3].collections
    assert sum(len(x.get_positions()) for x in raster) == len(cells[1].recorded) + len(
        cells[1].model
    )


def test_many_segments_are_named_and_three_of_them_are_shown(columns):
    cell = made_cell(n_segments=40)
    titles, figure = columns([cell])
    numbers = [title.split("\n")[2] for title in titles]
    assert numbers == ["stimulus 0 (1 of 40)", "stimulus 19 (20 of 40)", "stimulus 39 (40 of 40)"]
    for title, segment in zip(titles, (0, 19, 39), strict=True):
        assert f"ETV {cell.etv_15ms[segment]:.2f}" in title
    assert figure.get_figwidth() < 7.5  # the width of a page: type keeps its size
    titles, _ = columns([cell, made_cell("other")])
    assert {title.split("\n")[2] for title in titles} == {"stimulus 20 (21 of 40)", "stimulus 0"}


def test_a_long_segment_is_cut_and_says_so(columns):
    _, figure = columns([replace(made_cell(), dt_ms=2.0)])
    assert figure.axes[2].get_xlabel() == "time (s), first 3 of 4"
    assert figure.axes[2].get_xlim() == (0, 3)
    _, figure = columns([made_cell()])
    assert figure.axes[2].get_xlabel() == "time (s)" and figure.axes[2].get_xlim() == (0, 1)


def test_the_picture_of_a_recording_is_written(tmp_path):
    use_style()
    assert recording_fit([made_cell()], tmp_path / "shown") == tmp_path / "shown.png"
    assert (tmp_path / "shown.png").stat().st_size > 10_000
    assert (tmp_path / "shown.svg").is_file()


def test_a_silent_segment_is_drawn_as_such(columns):
    silent = np.zeros((1, 400), np.float32)
    nothing = np.zeros((0, 3), np.int32)
    cell = replace(
        made_cell(), recorded=nothing, model=nothing, recorded_hz=silent, model_hz=silent,
        gamma_4ms=np.array([np.nan]),
    )  # fmt: skip
    (title,), figure = columns([cell])
    assert title.split("\n")[1].endswith("Γ –")
    _, raster, rate = figure.axes
    assert raster.get_ylim() == (3 + 4 + 2, 0) and rate.get_ylim() == (-0.03, 1)


def test_fits_of_one_point_that_differ_in_an_option_are_reported(tmp_path, drawn):
    table = fits().assign(experiment="a", seed=0)
    others = table.assign(**{"population.n_starts": 8.0, "experiment": "b", "seed": 1})
    with pytest.warns(UserWarning, match="one point are averaged but differ in population.n_start"):
        recordings(pd.concat([table, others]), tmp_path)
    names = [label.get_text() for label in drawn[0].axes[2].get_yticklabels()]
    assert "our recipe\nCPU, dt 0.1 ms, 8 and 64 starts (ETV 0.43)" in names


def test_methods_have_points_of_their_own_and_do_not_mix_in_lines(tmp_path, drawn):
    table = fits().assign(**{"trainer.accelerator": "gpu"})
    extra = pd.DataFrame(table[table["data.dt_ms"] == 0.1])
    extra = extra.assign(**{"population.method": "standard", "test_etv_15ms_median": 0.0})
    recordings(pd.concat([table, extra], ignore_index=True), tmp_path)
    names = [label.get_text() for label in drawn[0].axes[2].get_yticklabels()]
    assert any(x.startswith("our recipe (standard)\nGPU, dt 0.1 ms, 64 starts") for x in names)
    lines = {line.get_label(): line for line in drawn[0].axes[0].containers}
    of_table = table["test_etv_15ms_median"][:3]
    np.testing.assert_allclose(lines["our recipe, ARP 0.5 ms"][0].get_ydata(), of_table)
