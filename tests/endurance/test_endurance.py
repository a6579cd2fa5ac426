"""Short forms of what `make endurance` runs for long."""

from pathlib import Path

import numpy as np
import pytest
import sizes
from long_runs import TINY, watch

pytestmark = pytest.mark.slow


def test_nothing_grows_in_sixty_epochs(tmp_path: Path, data_dir: Path):
    samples = watch(tmp_path / "run", data_dir, *TINY, "trainer.max_epochs=60")
    assert samples["epoch"].to_numpy().max() >= 59
    during = samples["epoch"].to_numpy() < 60
    third = during.sum() // 3
    assert third >= 3
    for column, ratio in (("memory_mb", 1.05), ("handles", 1), ("threads", 1)):  # it still warms up
        values = samples[column].to_numpy()[during]
        assert np.median(values[-third:]) <= ratio * np.median(values[third:-third]), column


def test_long_runs_wide_layers_and_arrays_with_silent_columns():
    assert sizes.long_runs(10**5, 2000) == []
    assert sizes.wide_layers(1000, recurrent=False) == []
    assert sizes.wide_layers(300, recurrent=True) == []
    assert sizes.large_arrays(65, 2**14, 256) == []
