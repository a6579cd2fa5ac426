"""`blockspike report`: the page in a browser, and its content."""

import base64
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from blockspike.app.activity import shown_samples
from blockspike.app.loaded_run import load_run
from blockspike.app.report import confusion_of
from blockspike.figures.tables import Source
from blockspike.networks.classifier import run_layers
from blockspike.neurons import SpikeTrace, alif
from blockspike.neurons.state import NeuronState
from blockspike.report.comparison import comparisons
from blockspike.report.page import EmbeddedFigure, found_figures, render
from blockspike.report.sweeps import Sweep, sweeps
from blockspike.report.viewer import pack, pack_traces
from blockspike.runs.run import Run
from blockspike.training.confusion import write_confusion
from made_runs import run, swept, write_runs

IMAGES = Path(__file__).parents[2] / "docs" / "images"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><path d="M0 0h9"/></svg>'
MADE_BY = {
    "git_sha": "0123456789abcdef", "git_dirty": False, "machine": "box x86_64 2 cores",
    "python": "3.11.2", "versions": {"torch": "2.9"},
}  # fmt: skip
STATES = pd.DataFrame(
    {
        "run": ["e4/a=1,b=2/seed=0", "e4/bad/seed=1"], "state": ["done", "failed"],
        "epochs": [40, np.nan], "started": ["2026-01-02T03:04:05+0000", None],
        "seconds": [61.4, np.nan], "val_score": [0.9123, np.nan],
        "test_score": [0.8765, np.nan], "last_val_score": [0.9, 0.25],
        "error": [None, "<script>alert('x')</script> & more"],
    }
)  # fmt: skip


def page(
    states: pd.DataFrame = STATES,
    traces: dict[str, Any] | None = None,
    shown: Sequence[Sweep] = (),
    confusion: str | None = None,
    figures: Sequence[EmbeddedFigure] = (),
) -> str:
    return render(
        made_by=MADE_BY, figures=figures, missing_figures={}, sweeps=shown,
        comparisons=comparisons(None), table=None, states=states, traces=traces, run_name="a/run",
        confusion=confusion,
    )  # fmt: skip


def trained(blockspike, folder: Path) -> tuple[Path, list[SpikeTrace], list[int]]:
    """A small finished run, its hidden layers' traces on a test batch, and the shown samples."""
    blockspike(
        "train", "data=nmnist_sample", "network.n_hidden=16", "data.n_steps=100", "data.dt_ms=4",
        "threads=1", "trainer.max_epochs=4", "optimizer.lr=0.02",
    )  # fmt: skip
    (result,) = (folder / "outputs").rglob("result.json")
    network, data, *_ = load_run(result.parent)
    events, labels = next(iter(data.test_dataloader()))
    with torch.no_grad():
        traces = list(run_layers(network.layers, events, membrane=True))
    return result.parent, traces, shown_samples(labels).tolist()


def hover(browser: webdriver.Chrome, neuron: int, step: int, n_units: int, n_steps: int) -> None:
    """Put the pointer on a neuron's row of the raster, at a time step."""
    raster = browser.find_element(By.ID, "raster")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", raster)
    frame = raster.find_element(By.CSS_SELECTOR, "rect.axis")
    left, top, width, height = (
        float(str(frame.get_attribute(name))) for name in ("x", "y", "width", "height")
    )
    x = left + width * step / n_steps
    y = top + height * (1 - (neuron + 0.5) / n_units)
    size = raster.rect
    move = ActionChains(browser, duration=0).move_to_element_with_offset
    move(raster, round(x - size["width"] / 2), round(y - size["height"] / 2)).perform()


def shown(browser: webdriver.Chrome) -> dict[str, str]:
    """Neuron, step, V, θ and whether there is a spike, as shown by the viewer."""
    return browser.execute_script("return {...document.getElementById('trace').dataset}")


def drawn(browser: webdriver.Chrome, name: str) -> np.ndarray:
    """Points [n, 2] of a line in the plot of one neuron, in pixels."""
    path = browser.find_element(By.CSS_SELECTOR, f"#trace path.{name}").get_attribute("d")
    pairs = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", str(path))
    return np.array(pairs, float).reshape(-1, 2)


def check_shown(
    browser: webdriver.Chrome, trace: SpikeTrace, sample: int, neuron: int, step: int
) -> None:
    """Check that the numbers shown are those of the trace, within half a 16-bit unit."""
    values = shown(browser)
    assert (values["neuron"], values["step"]) == (str(neuron), str(step))
    for name, whole in (("membrane", trace.membrane), ("threshold", trace.threshold)):
        half_unit = whole[:, sample].abs().max().item() / 32767 / 2
        true = whole[step, sample, neuron].item()
        assert float(values[name]) == pytest.approx(true, abs=1.01 * half_unit, rel=0)
    fired = bool(trace.spikes[step, sample, neuron])
    assert values["fired"] == str(fired).lower()
    text = browser.find_element(By.ID, "readout").text
    membrane = trace.membrane[step, sample, neuron].item()
    assert f"Neuron {neuron}" in text and ("spike" in text.split("At")[1]) == fired
    assert float(re.findall(r"V (−?[\d.]+)", text)[0].replace("−", "-")) == pytest.approx(
        membrane, abs=2e-3
    )


def check_drawn(browser: webdriver.Chrome, trace: SpikeTrace, sample: int, neuron: int) -> None:
    """Check that V and θ share one linear scale and each spike has a mark at its time."""
    values = torch.cat([x[:, sample, neuron] for x in (trace.membrane, trace.threshold)]).numpy()
    membrane, threshold = drawn(browser, "membrane"), drawn(browser, "threshold")
    y = np.concatenate([membrane[:, 1], threshold[:, 1]])
    slope, offset = np.polyfit(values, y, 1)
    assert slope < 0
    np.testing.assert_allclose(y, slope * values + offset, atol=0.15)
    spikes = trace.spikes[:, sample, neuron].nonzero()[:, 0].numpy()
    np.testing.assert_allclose(drawn(browser, "spikes")[:, 0], membrane[spikes, 0], atol=0.11)


@pytest.mark.slow
def test_the_page_of_a_run_in_a_browser(blockspike, browser, tmp_path):
    run, traces, samples = trained(blockspike, tmp_path)
    figures = tmp_path / "outputs" / "figures"
    figures.mkdir()
    shutil.copy(IMAGES / "speed.png", figures)
    (figures / "classification_here.svg").write_text(SVG)
    done = blockspike("report", str(run), "--threads=1")
    assert "outputs/report.html" in done.stdout
    browser.get((tmp_path / "outputs" / "report.html").as_uri())

    loaded = browser.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    assert len(loaded) == 3 and min(loaded) > 0  # and the confusion matrix
    options = Select(browser.find_element(By.ID, "recording")).options
    assert len(options) == len(samples) == 3

    n_steps, _, n_units = traces[0].spikes.shape
    for layer, recording in ((0, 0), (1, 2)):
        Select(browser.find_element(By.ID, "recording")).select_by_index(recording)
        Select(browser.find_element(By.ID, "layer")).select_by_index(layer)
        trace, sample = traces[layer], samples[recording]
        fired = trace.spikes[:, sample].nonzero()
        assert len(fired), "the test needs a spike to point at"
        step, neuron = (int(i) for i in fired[len(fired) // 2])
        for at_neuron, at_step in ((neuron, step), (0, 50), (n_units - 1, 99)):
            hover(browser, at_neuron, at_step, n_units, n_steps)
            check_shown(browser, trace, sample, at_neuron, at_step)
            check_drawn(browser, trace, sample, at_neuron)

    assert browser.get_log("browser") == []
    resources = "return performance.getEntriesByType('resource').map((r) => r.name)"
    assert all(name.startswith("data:") for name in browser.execute_script(resources))


def made_traces(n_steps: int = 60, n_units: int = 5) -> dict[str, Any]:
    torch.manual_seed(0)
    current = torch.rand(n_steps, 2, n_units)
    beta, p, b = (torch.full((n_units,), x) for x in (0.9, 0.95, 0.3))
    trace = alif(current, beta, p, b, arp=2, membrane=True)
    return pack_traces([trace] * 2, [0, 1], ["one", "two"], 2.0)


@pytest.mark.slow
def test_keys_move_the_neuron_and_a_click_holds_it(browser, tmp_path):
    (tmp_path / "page.html").write_text(page(traces=made_traces()))
    browser.get((tmp_path / "page.html").as_uri())
    hover(browser, 2, 30, 5, 60)
    raster = browser.find_element(By.ID, "raster")
    browser.execute_script("arguments[0].focus()", raster)
    for key, neuron, step in (
        (Keys.ARROW_UP, "3", "30"), (Keys.ARROW_UP, "4", "30"), (Keys.ARROW_UP, "4", "30"),
        (Keys.ARROW_DOWN, "3", "30"), (Keys.ARROW_RIGHT, "3", "31"), (Keys.ARROW_LEFT, "3", "30"),
        (Keys.HOME, "0", "30"), (Keys.ARROW_DOWN, "0", "30"), (Keys.END, "4", "30"),
        (Keys.PAGE_DOWN, "0", "30"), (Keys.PAGE_UP, "4", "30"),
    ):  # fmt: skip
        browser.switch_to.active_element.send_keys(key)
        now = shown(browser)
        assert (now["neuron"], now["step"]) == (neuron, step), key
        assert raster.get_attribute("aria-valuenow") == neuron
    hover(browser, 1, 10, 5, 60)
    ActionChains(browser).click().perform()
    hover(browser, 3, 20, 5, 60)
    assert (shown(browser)["neuron"], shown(browser)["step"]) == ("1", "20")
    ActionChains(browser).click().perform()
    hover(browser, 4, 20, 5, 60)
    assert shown(browser)["neuron"] == "4"
    assert browser.get_log("browser") == []


def test_packed_values_have_an_error_of_half_a_unit_at_most():
    values = torch.linspace(-3.7, 12.1, 70).view(10, 7)  # [T, N]
    packed = pack(values)
    whole = np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(7, 10)
    np.testing.assert_allclose(whole.T * packed["scale"], values, atol=packed["scale"] / 2 * 1.001)
    assert packed["scale"] == pytest.approx(12.1 / 32767)
    assert pack(torch.zeros(3, 2))["scale"] == 1.0


def test_a_large_network_shows_fewer_recordings():
    silent = torch.zeros(1000, 3, 1200)
    trace = SpikeTrace(silent, NeuronState("made", (), silent), silent, silent)
    made = pack_traces([trace], [0, 1, 2], ["a", "b", "c"], 1.0)
    assert [r["title"] for r in made["recordings"]] == ["a"]
    assert len(made_traces()["recordings"]) == 2


def test_the_page_of_a_run_has_its_confusion_matrix(tmp_path):
    assert confusion_of(Run(tmp_path)) is None  # of a run that was not tested
    write_confusion(tmp_path / "confusion.csv", torch.tensor([[3, 1], [0, 4]]))
    address = confusion_of(Run(tmp_path))
    assert address is not None and b"7 of 8 classified correctly" in base64.b64decode(
        address.removeprefix("data:image/svg+xml;base64,")
    )
    html = page(confusion=address)
    assert f'<img src="{address}" alt="Confusion matrix of a/run">' in html
    assert "Confusion matrix" not in page()


def test_texts_of_a_run_are_escaped():
    html = page()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more" in html
    traces = made_traces()
    traces["recordings"][0]["title"] = "</script><script>alert(1)</script>"
    assert "<script>alert" not in page(traces=traces)


def test_runs_are_listed_without_unknown_values():
    text = re.sub("<[^>]+>", "|", page())
    assert "2 in all, 1 done, 1 failed." in text
    assert "|61|" in text and "|40|" in text
    assert "|0.912||0.876||0.900|" in text and "||||0.250|" in text
    assert "nan" not in text.lower() and "None" not in text
    assert "blockspike train experiment=demo" in page(states=STATES.head(0))


def test_found_figures_are_shown_and_missing_ones_named(tmp_path):
    for name in ("speed.png", "tradeoff.png"):
        shutil.copy(IMAGES / name, tmp_path)
    (tmp_path / "speed.svg").write_text(SVG)
    (tmp_path / "tradeoff.svg").write_text(SVG.replace("</svg>", " " * 500_000 + "</svg>"))
    (tmp_path / "mine.svg").write_text(SVG)
    for name in ("fits_cell", "epochs_shd"):
        (tmp_path / f"{name}.svg").write_text(SVG)
    Source("runs.csv", 2, "0", "color=model").write_beside(tmp_path / "epochs_shd.png")
    figures, missing = found_figures(tmp_path)
    kinds = {figure.name: figure.address.split(";")[0] for figure in figures}
    assert kinds == {
        "speed": "data:image/svg+xml", "tradeoff": "data:image/png", "mine": "data:image/svg+xml",
        "fits_cell": "data:image/svg+xml", "epochs_shd": "data:image/svg+xml",
    }  # fmt: skip
    assert {f.name for f in figures if f.is_of_runs} == {"epochs_shd"}  # fits may be a sweep's own
    (drawn,) = [f for f in figures if f.table is not None]
    assert "plot epochs color=model --table FILE" in page(figures=[drawn])
    place = f"--output-dir {tmp_path.parent}"
    of_runs = ("classification", "surrogates", "detach", "neurons", "recordings")
    assert missing == {
        **{name: f"blockspike plot paper {name} {place}" for name in of_runs},
        "libraries": (
            f"blockspike plot paper speed --table {tmp_path.parent}/tables/speed.csv {place}"
        ),
    }


def made_table(path: Path, data_set: str, n_seeds: int) -> None:
    """A table of runs of one data set, as `blockspike collect` writes it."""
    row = {
        "experiment": "paper_shd", "data_set": data_set, "n_threads": 1, "model.method": "blocks",
        "model.arp_ms": 20.0, "model.surrogate": "boxcar", "model.detach_spikes": True,
        "trainer.accelerator": "cpu", "test_accuracy": 0.7, "epoch_s": 50.0,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{**row, "seed": seed} for seed in range(n_seeds)]).to_csv(path, index=False)


def captions(folder: Path) -> dict[str, str]:
    """Figure → its caption, without its name."""
    html = (folder / "outputs" / "report.html").read_text()
    found = re.findall(r"<figcaption><b>(.*?)</b>(.*?)</figcaption>", html)
    return {name: re.sub("<[^>]+>", "", text) for name, text in found}


@pytest.mark.slow
def test_figures_of_runs_and_numbers_come_from_one_table(blockspike, tmp_path):
    made_table(tmp_path / "kept" / "runs.csv", "Kept", 2)
    made_table(tmp_path / "outputs" / "tables" / "runs.csv", "Own", 1)
    speed = pd.read_csv(RESULTS / "speed.csv")
    blockspike("plot", "paper", "tradeoff", f"--table={RESULTS / 'speed.csv'}")
    blockspike("plot", "paper", "classification", "--table=kept/runs.csv")
    assert "numbers from kept/runs.csv" in blockspike("report").stdout
    html = (tmp_path / "outputs" / "report.html").read_text()
    assert "<td>Kept</td>" in html and "<td>Own</td>" not in html
    assert "from <code>kept/runs.csv</code>, 2 rows; the model" in html
    shown = captions(tmp_path)
    nobody = "classification_n_mnist_published_values_only"
    assert set(shown) == {nobody, "classification_kept", "tradeoff"}
    assert shown["classification_kept"].endswith("Drawn from kept/runs.csv, 2 rows.")
    assert shown["tradeoff"].endswith(f"Drawn from {RESULTS / 'speed.csv'}, {len(speed)} rows.")

    blockspike("plot", "paper", "classification")  # from outputs/tables/runs.csv
    assert "numbers from outputs/tables/runs.csv" in blockspike("report").stdout
    html = (tmp_path / "outputs" / "report.html").read_text()
    assert "<td>Own</td>" in html and "<td>Kept</td>" not in html
    shown = captions(tmp_path)
    assert shown["classification_own"].endswith("Drawn from outputs/tables/runs.csv, 1 row.")
    assert "tradeoff" in shown and "classification_kept" not in shown
    assert "classification_kept: <code>kept/runs.csv</code>, 2 rows" in html
    again = "blockspike plot paper classification --table outputs/tables/runs.csv"
    assert f"<code>{again}</code>" in html

    blockspike("report", "--table=kept/runs.csv")
    assert "classification_own" not in captions(tmp_path)
    assert "classification_kept" in captions(tmp_path)
    made_table(tmp_path / "kept" / "runs.csv", "Kept", 3)  # the figure was drawn before this change
    blockspike("report", "--table=kept/runs.csv")
    assert set(captions(tmp_path)) == {"tradeoff"}


def test_sweeps_are_on_the_page_without_being_collected(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", swept())
    write_runs(tmp_path / "outputs", pd.DataFrame([run("seeds"), run("seeds", seed=1)]))
    blockspike("report")
    html = (tmp_path / "outputs" / "report.html").read_text()
    assert re.findall("<h3>(.*?)</h3>", html) == ["default"]
    heads = ["network.n_hidden", "model", "data", "test_accuracy", "runs"]
    assert re.findall('<th scope="col".*?>(.*?)</th>', html)[:5] == heads
    (first, *_) = re.findall("<tr><td>(.*?)</tr>", html)
    assert re.sub("<[^>]+>", " ", first).split()[:7] == [
        "64",
        "blocks",
        "nmnist",
        "0.510",
        "±",
        "0.010",
        "2",
    ]
    assert html.count('<img src="data:image/svg+xml') == 1
    assert not (tmp_path / "outputs" / "tables").exists()


def test_a_damaged_result_leaves_the_page_without_sweeps(blockspike, tmp_path):
    (folder, *_) = write_runs(tmp_path / "outputs", swept())
    (folder / "result.json").write_text("{")
    assert "no sweeps" in blockspike("report").stderr
    html = (tmp_path / "outputs" / "report.html").read_text()
    assert "<h3>" not in html and "damaged file" in html


def test_a_mean_over_different_settings_is_marked_on_the_page():
    (made,) = sweeps(swept().assign(git_sha=["a", "b"] * 8))
    assert made.warnings and "git_sha" in made.warnings[0]
    assert f'<p class="warning">{made.warnings[0]}</p>' in page(shown=[made])


def test_an_empty_page_says_how_to_fill_it(blockspike, tmp_path):
    blockspike("report")
    html = (tmp_path / "outputs" / "report.html").read_text()
    commands = ("plot paper tradeoff --table outputs/tables/speed.csv", "collect",
                "train experiment=demo", "report FOLDER")  # fmt: skip
    for command in commands:
        assert f"<code>blockspike {command}</code>" in html
    assert 'id="raster"' not in html


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nothing", ("nothing", "no run here")),
        ("--table=nothing.csv", ("nothing.csv", "expected a table")),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(blockspike, tmp_path, arguments, words):
    done = blockspike("report", arguments, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())
