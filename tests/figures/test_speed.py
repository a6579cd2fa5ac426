"""The figures on speed, drawn from a benchmark's table."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from blockspike.figures.paper_numbers import paper_numbers
from blockspike.figures.speed import speed, tradeoff
from blockspike.plots.style import use_style

ABOUT = {"device": "cpu", "cpu": "Some CPU", "threads": 2, "git_sha": "abc"}


def rows() -> pd.DataFrame:
    made = []
    for name, ratio in (("fused", 1.0), ("standard", 9.0), ("standard reference", 90.0)):
        for arp in (10, 50):
            size = {"n_steps": 512, "batch_size": 32, "arp_steps": arp, "n_units": 128}
            made.append(
                {"study": "length", "contender": name, "total_by_fused": ratio + arp} | size
            )
    made += [
        {"study": "layers", "contender": "standard", "n_units": 256, "n_layers": n,
         "total_by_fused": 10.0 + n} for n in (1, 2, 3)
    ]  # fmt: skip
    for name, cost in (("fused", 1.0), ("blocks", 2.0), ("standard", 100.0)):
        made += [
            {"study": "tradeoff", "contender": name, "dt_ms": dt_ms, "simulated_s": 2.0,
             "total_ms_median": cost / dt_ms, "spike_time_error_ms": dt_ms - 0.1}
            for dt_ms in (0.1, 1.0, 8.0)
        ]  # fmt: skip
    made.append(
        {"study": "libraries", "contender": "sinabs", "total_by_fused": 30.0, "batch_size": 128}
    )
    made.append({"study": "libraries", "contender": "Norse", "left_out": "ImportError"})
    return pd.DataFrame([ABOUT | {"total_ms_median": 1.0} | row for row in made])


@pytest.fixture
def drawn(monkeypatch):
    use_style()
    figures = {}
    monkeypatch.setattr(
        "blockspike.figures.speed.save", lambda f, path: figures.update({path.name: f}) or path
    )
    yield figures
    plt.close("all")  # pyplot warns at the 21st open figure, in whichever test makes it


def test_points_are_those_of_the_table(tmp_path, drawn):
    assert [p.name for p in speed(rows(), tmp_path)] == ["speed", "libraries"]
    assert [p.name for p in tradeoff(rows(), tmp_path)] == ["tradeoff"]
    first, second, _, layers = drawn["speed"].axes
    lines = [(line.get_linestyle(), list(line.get_ydata())) for line in first.get_lines()]
    assert ("-", [19.0, 59.0]) in lines and (":", [100.0, 140.0]) in lines
    published = paper_numbers(experiment="speed_length")
    own = published[(published["batch"] == 32) & (published["t_len"] == 512)]
    assert ("--", own["value"].tolist()) in lines
    assert "not measured" in second.texts[0].get_text()
    assert "batch_size=64" in second.texts[0].get_text()
    assert [11.0, 12.0, 13.0] in [list(line.get_ydata()) for line in layers.get_lines()]
    lines = drawn["tradeoff"].axes[0].lines
    costs = {line.get_label(): list(line.get_xdata()) for line in lines}
    assert costs["fused"] == [0.5, 0.0625] and costs["step loop"] == [50.0, 6.25]
    references = [list(x.get_xdata()) for x in lines if x.get_linestyle() == "None"]
    assert [5.0] in references and [500.0] in references  # their error is 0 by definition
    names = [label.get_text() for label in drawn["libraries"].axes[0].get_yticklabels()]
    # Ordered by their medians.
    assert names == ["sinabs", "fused", "standard", "standard reference"]


def test_legends_are_beside_the_panels(tmp_path, drawn):
    speed(rows(), tmp_path)
    tradeoff(rows(), tmp_path)
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
        legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
        boxes = [legend.get_window_extent() for legend in legends if legend is not None]
        assert boxes or figure is drawn["libraries"]  # made rows of no library in the paper
        assert not any(box.overlaps(axis.bbox) for box in boxes for axis in figure.axes)


def test_files_are_written(tmp_path):
    use_style()
    for path in speed(rows(), tmp_path):
        assert path.is_file() and path.with_suffix(".svg").is_file()


def test_the_figure_of_a_missing_study_is_left_out(tmp_path, drawn, capsys):
    table = rows()
    layers = pd.DataFrame(table[table["study"] == "layers"])
    assert [p.name for p in speed(layers, tmp_path)] == ["speed"]
    assert tradeoff(layers, tmp_path) == []
    assert "study=tradeoff" in capsys.readouterr().out


def test_without_a_published_contender_there_is_no_legend(tmp_path, drawn):
    table = rows()
    speed(pd.DataFrame(table[table["contender"] == "fused"]), tmp_path)
    assert drawn["libraries"].axes[1].get_legend() is None


@pytest.mark.parametrize(("column", "value"), [("git_sha", "def"), ("threads", 1), ("cpu", "B")])
def test_rows_of_two_machines_or_commits_are_refused(tmp_path, column, value):
    table = rows()
    table.loc[3, column] = value
    with pytest.raises(ValueError, match="expected rows of one machine and commit"):
        speed(table, tmp_path)


def test_a_table_of_other_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="table: .* without study, contender"):
        speed(pd.DataFrame({"test_accuracy": [1.0]}), tmp_path)


def test_panels_show_ratios_of_other_machines(tmp_path, drawn):
    table = rows()
    table["total_by_fused"] *= 20
    speed(table, tmp_path)
    lowest, highest = drawn["speed"].axes[0].get_ylim()
    assert lowest <= 3 and highest > table["total_by_fused"].max()
