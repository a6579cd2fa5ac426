"""The study of fits times both methods on the same data."""

import pytest

from blockspike.benchmark import fitting


@pytest.mark.slow
def test_both_methods_are_timed_on_the_same_data():
    batch = fitting.make_batch(2, 300)
    assert batch.current.shape == (300, 3, 2) and batch.window == (0, 300, 300)
    rows = fitting.measure(
        fitting.Size(n_cells=2, n_steps=300, n_epochs=2), 2, ("fused", "standard")
    )
    assert [row["contender"] for row in rows] == ["fused", "standard"]
    assert all(row["rounds"] == 2 and row["total_ms_median"] > 0 for row in rows)
