"""Short forms of what `make endurance` runs for long."""

from pathlib import Path

import sizes
from long_runs import TINY, growth, watch


def test_nothing_grows_in_sixty_epochs(tmp_path: Path, data_dir: Path):
    samples = watch(tmp_path / "run", data_dir, *TINY, "trainer.max_epochs=60")
    grown = growth(samples, 60)
    assert grown.epochs >= 59 and len(samples) >= 20
    assert grown.memory <= 0.05  # it still warms up; 1 MB an epoch would be 0.06
    assert grown.handles <= 0 and grown.threads <= 0


def test_long_runs_wide_layers_and_arrays_with_silent_columns():
    assert sizes.long_runs(10**5, 2000) == []
    assert sizes.wide_layers(1000, recurrent=False) == []
    assert sizes.wide_layers(300, recurrent=True) == []
    assert sizes.large_arrays(65, 2**14, 256) == []
