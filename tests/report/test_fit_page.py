"""The page of a fit: its tables, its numbers, and its drawings in a browser."""

import base64
import json
import re
import zlib
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from blockspike.figures.cell_traces import CellTraces
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.identified import identified
from blockspike.fitting.millivolts import COLUMNS
from blockspike.report.fit_page import PARAMETERS, number, render_fit, score
from blockspike.report.packed import pack_rows, pack_spikes
from made_traces import DT_MS, N_MODEL, N_STEPS, made_cell

MADE_BY = {
    "git_sha": None, "git_dirty": False, "machine": "box", "python": "3.11", "versions": {},
}  # fmt: skip


def made_table(cells: list[CellTraces], **columns) -> pd.DataFrame:
    """Rows of `fits.csv`, whose scores and time constants fall from the first cell to the last."""
    n = len(cells)
    return pd.DataFrame(
        {
            "cell": [cell.name for cell in cells], "dt_ms": DT_MS,
            "tau_membrane_ms": np.linspace(20, 10, n), "gain_per_pa": np.linspace(0.01, 0.02, n),
            "b_2": 0.0, "test_etv_15ms": np.linspace(0.9, 0.4, n), "train_etv_15ms": 0.95,
            "test_null_etv_15ms": 0.3, "test_reliability_etv_15ms": [np.nan] + [0.97] * (n - 1),
        }
    ).assign(**columns)  # fmt: skip


def page_of(cells: list[CellTraces], failed: dict[str, str] | None = None, **columns) -> str:
    return render_fit(
        MADE_BY, "outputs/fit/x", "my cells", made_table(cells, **columns), cells, failed or {}
    )


def rows_of(html: str, caption: str) -> list[list[str]]:
    """Texts of the rows of the first table with this caption."""
    table = html.split(f"<caption>{caption}</caption>")[1].split("</table>")[0]
    return [
        [re.sub("<[^>]+>", "", x).strip() for x in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)]
        for row in table.split("<tr>")[1:]
    ]


def stored(html: str, k: int = 0) -> dict:
    """Numbers that the page draws for cell k."""
    found = re.findall(r'<script class="traces" type="application/json">(.*?)</script>', html, re.S)
    return json.loads(found[k])


def test_every_parameter_of_a_fitted_neuron_has_a_symbol_and_a_unit():
    of_neuron = {x.name for x in fields(FittedNeuron)} - {"name"}
    neuron = FittedNeuron("cell", 10.0, 100.0, 0.2, 0.01, 0.0, arp_ms=2.0, dt_ms=0.5)
    found = identified(neuron.parameters()).keys()
    scales = {*COLUMNS, "compensated_mohm", "compensated_tau_ms"}
    assert of_neuron | found | scales == PARAMETERS.keys()


def test_a_cell_shows_its_parameters_and_scores():
    html = page_of([made_cell()])
    rows = rows_of(html, "Parameters")
    assert rows[0] == ["parameter", "value", "unit"]
    assert ["τ_m time constant of the membrane", "20", "ms"] in rows
    assert not any("b₂" in row[0] for row in rows)  # 0: the neuron has no such part
    scores = {name: values for name, *values in rows_of(html, "Scores")}
    assert scores["normalised ETV, σ 15 ms"] == ["0.900", "0.950"]
    assert scores["null: a constant rate during the stimulus, σ 15 ms"] == ["0.300", "–"]
    assert scores["reliability: another trial of the neuron, σ 15 ms"] == ["–", "–"]
    assert 'id="cells"' not in html and 'id="parameters"' not in html  # there is only one


def test_intervals_of_parameters_are_shown_where_there_are_some():
    cells = [made_cell("a"), made_cell("b")]
    html = page_of(
        cells, tau_membrane_ms_low=[18.0, np.nan], tau_membrane_ms_high=[22.5, np.nan],
        not_constrained=["b; rest", None],
    )  # fmt: skip
    assert html.count("This stimulus does not constrain b; rest.") == 1
    assert html.count("does not constrain") == 1
    rows = rows_of(html, "Parameters")
    assert rows[0] == ["parameter", "value", "90 % interval", "unit"]
    assert ["τ_m time constant of the membrane", "20", "18 to 22.5", "ms"] in rows
    assert ["gain steady change of V per current", "0.01", "–", "thresholds/pA"] in rows
    assert ["τ_m time constant of the membrane", "10", "–", "ms"] in rows_of(
        html.split('id="cell-1"')[1], "Parameters"
    )


def test_a_compensated_voltage_is_shown_as_such():
    cell = made_cell()
    assert cell.voltage_mv is not None
    assert "the recorded voltage is the largest of each step" in page_of([cell])
    html = page_of(
        [cell], compensated_mohm=21.5, compensated_tau_ms=0.31, test_voltage_rms_mv=1.25,
        train_voltage_rms_mv=1.5,
    )  # fmt: skip
    assert "the recorded voltage, without the electrode’s share, is the largest" in html
    rows = rows_of(html, "Parameters")
    assert [
        "R_e compensated resistance of the electrode that was compensated",
        "21.5",
        "MΩ",
    ] in rows
    scores = {name: values for name, *values in rows_of(html, "Scores")}
    name = "root mean squared error of the voltage between spikes (mV)"
    assert scores[name] == ["1.250", "1.500"]


def test_every_row_of_the_table_leads_to_its_cell():
    cells = [made_cell(f"cell {k}") for k in range(3)]
    html = page_of(cells, cell_type=["spiny", None, "aspiny"], test_etv_15ms_se=0.02)
    for k, cell in enumerate(cells):
        assert f'<a href="#cell-{k}">{cell.name}</a>' in html
        assert f'<section class="cell" id="cell-{k}"' in html
    assert '<button type="button">cell type</button>' in html
    assert "cell 0, spiny</h3>" in html and "cell 1</h3>" in html
    overview = re.findall(r'<script id="overview" type="application/json">(.*?)</script>', html)
    content = json.loads(overview[0])
    assert content["kinds"] == ["spiny", "", "aspiny"]
    assert [x["label"] for x in content["parameters"]] == ["τ_m (ms)", "gain (thresholds/pA)"]
    assert content["scores"]["reliability"] == [None, 0.97, 0.97]


def test_texts_of_a_fit_are_escaped():
    bad = "</script><script>alert(1)</script>"
    cells = [replace(made_cell(bad), titles=[bad]), made_cell("b")]
    html = page_of(cells, failed={"c": bad}, cell_type=[bad, "x"])
    assert "<script>alert" not in html and html.count("&lt;script&gt;alert(1)") >= 4
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


def test_the_table_must_be_that_of_the_traces():
    cells = [made_cell("a"), made_cell("b")]
    table = made_table(cells)
    for wrong in (table.iloc[::-1], table.head(1), table.head(0)):
        with pytest.raises(ValueError, match=r"fits.csv: expected a row for each of the 2 cells"):
            render_fit(MADE_BY, "x", "x", wrong, cells, {})
    with pytest.raises(ValueError, match=r"fits.csv: expected a column test_etv_15ms"):
        render_fit(MADE_BY, "x", "x", table.drop(columns="test_etv_15ms"), cells, {})


def test_intervals_between_spikes_are_those_within_a_trial():
    spikes = np.array([[0, 0, 10], [0, 0, 30], [0, 1, 5], [0, 1, 15], [1, 1, 2], [1, 1, 4]])
    cell = replace(
        made_cell(n_segments=2), recorded=spikes.astype(np.int32), model=spikes[::-1][:3]
    )
    html = page_of([cell])
    intervals = stored(html)["intervals"]
    edges = np.array(intervals["edges_ms"])
    middle = (edges[1:] + edges[:-1]) / 2
    recorded = dict(zip(middle, intervals["recorded"], strict=True))
    assert {t: share for t, share in recorded.items() if share} == pytest.approx(
        {1.0: 1 / 3, 5.0: 1 / 3, 10.0: 1 / 3}, abs=1e-4
    )
    assert "recorded: median 5 ms, coefficient of variation 0.69" in html
    assert "model: median 1 ms" in html  # of the one pair that is left
    silent = replace(cell, recorded=spikes[:0], model=spikes[:0])
    assert "recorded: no intervals; model: no intervals" in page_of([silent])


def test_numbers_have_three_digits_and_a_minus_sign():
    values = (0.123456, -2.0, 12345.6, 0.0000123, float("nan"), None, 0)
    assert [number(x) for x in values] == ["0.123", "−2", "12346", "1.23e−05", "–", "–", "0"]


def test_scores_have_three_decimals_and_rates_three_digits():
    values = (0.12345, -0.0001, -0.5, 1.0, float("nan"), None)
    assert [score("etv_15ms", x) for x in values] == ["0.123", "0.000", "−0.500", "1.000", "–", "–"]
    assert score("recorded_hz", 3.333333) == "3.33"


def unpacked(text: str, dtype: str) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(size, -1)
    return np.ascontiguousarray(planes.T).view(dtype).ravel()


def test_series_are_rounded_to_levels_of_their_own_and_unknown_values_marked():
    rows = np.array([[1.0, np.nan, -2.0, 0.501], [500.0, 500.0, 500.0, 500.0], [np.nan] * 4])
    packed = pack_rows(rows, 4)
    assert (packed["low"], packed["level"]) == ([-2.0, 500.0, 0.0], [1.0, 0.0, 0.0])
    whole = unpacked(packed["data"], "<u2")
    assert whole.tolist() == [3, 65535, 0, 3, 0, 0, 0, 0, *[65535] * 4]
    rows = np.random.default_rng(0).normal(-60, 5, (3, 500))
    packed = pack_rows(rows, 200)
    low, level = (np.array(packed[name])[:, None] for name in ("low", "level"))
    read = low + level * unpacked(packed["data"], "<u2").reshape(rows.shape)
    assert np.abs(read - rows).max() < 0.51 * level.max()


def test_spikes_are_packed_whatever_their_order():
    spikes = np.array([[1, 0, 7], [0, 1, 3], [0, 1, 3], [1, 1, 99_999]])
    places = np.cumsum(unpacked(pack_spikes(spikes, 2, 100_000), "<u4"))
    assert places.tolist() == [100_003, 100_003, 200_007, 399_999]
    assert unpacked(pack_spikes(spikes[:0], 2, 10), "<u4").tolist() == []


def test_a_page_of_many_cells_stays_small():
    """Its series are noise at all steps, of which nothing can be packed but the levels."""
    cells = [made_cell(f"cell {k}", n_segments=3, seed=k) for k in range(20)]
    size = len(page_of(cells)) / len(cells)
    assert size < 68_000  # 146 of them: 10 MB


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page of cells; its log must be empty in the end."""

    def open_page(cells: list[CellTraces], **columns) -> webdriver.Chrome:
        (tmp_path / "page.html").write_text(page_of(cells, **columns))
        browser.get((tmp_path / "page.html").as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    resources = "return performance.getEntriesByType('resource').map((r) => r.name)"
    assert all(name.startswith("data:") for name in browser.execute_script(resources))


def marks(browser: webdriver.Chrome, name: str) -> np.ndarray:
    """Positions [n, 2] of the spikes drawn in the first cell, in pixels of their panel."""
    path = browser.find_element(By.CSS_SELECTOR, f"#cell-0 .time path.{name}.spike")
    pairs = re.findall(r"M([-\d.]+) ([-\d.]+)v", str(path.get_attribute("d")))
    return np.array(pairs, float).reshape(-1, 2)


def panel_width(browser: webdriver.Chrome) -> float:
    frame = browser.find_element(By.CSS_SELECTOR, "#cell-0 .time rect.axis")
    return float(str(frame.get_attribute("width")))


def press(browser: webdriver.Chrome, selector: str, key: str, times: int = 1) -> None:
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].focus()", element)
    for _ in range(times):
        browser.switch_to.active_element.send_keys(key)


@pytest.mark.slow
def test_spikes_are_drawn_at_their_times_and_keys_zoom(opened):
    cell = made_cell(n_segments=2)
    browser = opened([cell])
    for segment in (0, 1):
        Select(browser.find_element(By.CSS_SELECTOR, ".segment")).select_by_index(segment)
        for name, spikes, n_trials in (("recorded", cell.recorded, 3), ("model", cell.model, 4)):
            own = spikes[spikes[:, 0] == segment]
            drawn = marks(browser, name)
            expected = (own[:, 2] + 0.5) / N_STEPS * panel_width(browser)
            np.testing.assert_allclose(drawn[:, 0], expected, atol=0.06)
            assert len(np.unique(drawn[:, 1])) == len(np.unique(own[:, 1])) == n_trials
    press(browser, ".zoom", Keys.ARROW_RIGHT, 20)
    share = (20 / N_STEPS) ** 0.2
    text = browser.find_element(By.CSS_SELECTOR, ".zoom").get_attribute("aria-valuetext")
    assert text == f"{share * N_STEPS * DT_MS / 1000:.3f} s shown"
    press(browser, ".from", Keys.END)
    steps = cell.recorded[cell.recorded[:, 0] == 1][:, 2] + 0.5
    seen = np.sort(steps[steps >= (1 - share) * N_STEPS])
    expected = (seen / N_STEPS - (1 - share)) / share * panel_width(browser)
    np.testing.assert_allclose(np.sort(marks(browser, "recorded")[:, 0]), expected, atol=0.1)


@pytest.mark.slow
def test_the_pointer_reads_values_moves_and_zooms(opened):
    cell = made_cell()
    browser = opened([cell])
    svg = browser.find_element(By.CSS_SELECTOR, ".time")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    middle = ActionChains(browser, duration=0).move_to_element(svg)
    middle.perform()
    text = browser.find_element(By.CSS_SELECTOR, ".readout").text.replace("−", "-")
    time_s, current, voltage = (
        float(re.findall(pattern, text)[0])
        for pattern in (r"At ([\d.]+) s", r"current (-?[\d.]+) pA", r"recorded V (-?[\d.]+) mV")
    )
    near = round(time_s * 1000 / DT_MS) + np.arange(-1, 2)
    assert np.abs(cell.current_pa[0, near] - current).min() < 0.1
    assert cell.voltage_mv is not None
    assert np.abs(cell.voltage_mv[0, near].astype(float) - voltage).min() < 0.1
    before = len(marks(browser, "recorded"))
    middle.double_click().perform()
    zoomed = marks(browser, "recorded")
    assert 0.3 * before < len(zoomed) < 0.7 * before
    drag = ActionChains(browser, duration=0).move_to_element(svg).click_and_hold()
    drag.move_by_offset(100, 0).release().perform()
    moved = marks(browser, "recorded")
    same = [np.abs(zoomed[:, 0] + 100 - x).min() < 0.2 for x in moved[:, 0] if x > 101]
    assert same and all(same)


@pytest.mark.slow
def test_headings_sort_the_table_and_later_cells_are_drawn_when_seen(opened):
    cells = [made_cell(f"cell {k}", seed=k) for k in range(12)]
    browser = opened(cells, cell_type=["b", "a"] * 6)

    def shown(column: int) -> list[str]:
        rows = browser.find_elements(By.CSS_SELECTOR, ".sorted tbody tr")
        return [row.find_elements(By.CSS_SELECTOR, "th, td")[column].text for row in rows]

    headings = browser.find_elements(By.CSS_SELECTOR, ".sorted thead th")
    buttons = [heading.find_element(By.TAG_NAME, "button") for heading in headings]
    names = [button.text for button in buttons]
    assert names[:5] == ["cell", "cell type", "ETV", "null", "reliability"]
    buttons[0].click()
    assert shown(0) == [f"cell {k}" for k in range(12)]
    buttons[0].send_keys(Keys.ENTER)
    assert shown(0) == [f"cell {k}" for k in range(11, -1, -1)]
    assert headings[0].get_attribute("aria-sort") == "descending"
    buttons[2].click()
    assert shown(0) == [f"cell {k}" for k in range(12)]
    assert headings[0].get_attribute("aria-sort") == "none"
    for _ in range(2):  # unknown ones are last either way
        buttons[4].click()
        assert shown(4)[-1] == "–" and shown(0)[-1] == "cell 0"
    dots = browser.find_elements(By.CSS_SELECTOR, "#distributions svg:first-child circle")
    assert len(dots) == 12
    label = browser.find_element(By.CSS_SELECTOR, "#distributions svg").get_attribute("aria-label")
    assert "a median 14.5 of 6 cells, b median 15.5 of 6 cells" in str(label)
    last = "return document.querySelector('#cell-11 .time').childElementCount"
    assert browser.execute_script(last) == 0
    browser.find_element(By.LINK_TEXT, "cell 11").click()
    wait = "const done = arguments[0]; setTimeout(() => done(true), 300)"
    browser.execute_async_script(wait)
    assert browser.execute_script(last) > 5
    top = "return document.getElementById('cell-11').getBoundingClientRect().top"
    assert abs(browser.execute_script(top)) < 60


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_the_screen(opened, width):
    browser: webdriver.Chrome = opened([made_cell("cell_" * 12, n_segments=2), made_cell("b")])
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    content, screen = browser.execute_script(sizes)
    assert content == screen == width
    assert panel_width(browser) < width


def test_the_raster_has_a_row_for_each_trial():
    assert f'data-rows="{3 + N_MODEL}"' in page_of([made_cell()])
