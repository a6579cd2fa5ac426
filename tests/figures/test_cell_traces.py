"""Traces stored with a fit: what is written is read, and little is lost."""

from dataclasses import fields, replace

import numpy as np
import pytest

from blockspike.data.limits import read_npz
from blockspike.figures.cell_traces import (
    arrays_of,
    cells_of,
    n_points,
    rate_steps,
    smoothed_hz,
    spikes_of,
    thinned,
)
from blockspike.files import write_npz
from made_traces import made_cell


def test_cells_are_read_as_they_were_written(tmp_path):
    cells = [made_cell(f"cell {k}", n_segments=k + 1, seed=k) for k in range(12)]
    cells[3] = replace(cells[3], voltage_mv=None)
    write_npz(tmp_path / "traces.npz", arrays_of(cells))
    read = cells_of(read_npz(tmp_path / "traces.npz"))
    assert len(read) == 12 and read[3].voltage_mv is None
    for before, after in zip(cells, read, strict=True):
        for field in fields(before):
            expected, got = getattr(before, field.name), getattr(after, field.name)
            np.testing.assert_array_equal(expected, got, err_msg=field.name)
            if isinstance(expected, np.ndarray):
                assert got.dtype == expected.dtype, field.name


def test_traces_of_older_versions_are_refused():
    older = {"dt_ms": np.array(0.5), "cell0_name": np.array("a"), "cell0_trains": np.zeros((2, 9))}
    with pytest.raises(ValueError, match=r"traces.npz: expected titles, .* fit again"):
        cells_of(older)


def test_a_long_series_keeps_its_extremes():
    values = np.random.default_rng(0).normal(0, 1, (2, 10_001))
    values[1, 7_777] = np.nan
    few = thinned(values, 500)
    assert few.shape == (2, 500) and not np.isnan(few).any()
    np.testing.assert_array_equal(few[0].min(), values[0].min())
    np.testing.assert_array_equal(few[0].max(), values[0].max())
    place = values[0].argmax() / values.shape[1]
    assert few[0].argmax() / few.shape[1] == pytest.approx(place, abs=1 / 250)
    assert thinned(values, 10_001) is values
    assert np.isnan(thinned(np.full((1, 10_001), np.nan), 500)).all()


def test_a_page_of_many_cells_is_small():
    for n_segments in (1, 3, 20):  # each with a current, a voltage, V, θ and two rates
        points_of_page = 146 * n_segments * 6 * n_points(146, n_segments)
        assert points_of_page * 2 * 4 / 3 <= 16e6  # bytes, as base64 of int16
    assert n_points(146, 3) > 2000 and n_points(10_000, 50) == 200


def test_spikes_are_counted_by_segment_trial_and_step():
    first, second = np.zeros((2, 5)), np.zeros((1, 5))
    first[1, [0, 4]] = 1
    second[0, 2] = 2  # two spikes within one step
    expected = [[0, 1, 0], [0, 1, 4], [1, 0, 2], [1, 0, 2]]
    np.testing.assert_array_equal(spikes_of([first, second]), expected)
    assert spikes_of([np.zeros((2, 5))]).shape == (0, 3)


def test_a_smoothed_rate_has_the_mean_rate():
    train = np.random.default_rng(0).random(40_000) < 0.005
    hz = smoothed_hz(train, 0.5, 10)
    assert hz.shape == (4000,) and hz.mean() == pytest.approx(train.mean() * 2000, rel=0.01)
    np.testing.assert_allclose(hz[::3], smoothed_hz(train, 0.5, 30))


@pytest.mark.parametrize(
    ("dt_ms", "n_steps", "most", "expected"),
    [(0.5, 40_000, 5000, 10), (8.0, 100, 5000, 1), (0.5, 40_000, 1000, 40), (0.5, 41, 2, 21)],
)
def test_rates_are_given_every_5_ms_if_they_are_not_too_many(dt_ms, n_steps, most, expected):
    assert rate_steps(dt_ms, n_steps, most) == expected
