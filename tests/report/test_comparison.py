"""The report's table of published values beside ours."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blockspike.figures.tables import read_table
from blockspike.report.comparison import Comparison, comparisons
from made_runs import run

SHD = "Figure 4, SHD"
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def compared(*rows: dict) -> dict[str, Comparison]:
    """Accuracies by the title of their experiment."""
    made = comparisons(pd.DataFrame(list(rows)))
    return {c.title: c for c in made if "accuracy" in c.quantity}


def find(comparison: Comparison, **values: str) -> dict[str, str]:
    (row,) = (r for r in comparison.rows if values.items() <= r.items())
    return row


def test_ours_is_the_mean_over_seeds_beside_the_published_value():
    accuracies = (0.6, 0.7, 0.74)
    shd = compared(*(run(seed=s, test_accuracy=a) for s, a in enumerate(accuracies)))[
        "Figure 4, SHD"
    ]
    error = 100 * np.std(accuracies, ddof=1) / 3**0.5
    row = find(shd, arp_ms="20")
    assert row["published"] == "86.0"
    assert row["ours"] == f"68.0 ± {error:.1f}"
    assert row["n_seeds"] == "3"
    assert row["method"].startswith("Blocks")


def test_data_sets_keep_their_own_names_and_rows():
    sample = "N-MNIST sample (1080 recordings)"
    made = compared(run(), run(data_set="SHD"), run("paper_nmnist", sample, arp_ms=10.0))
    assert made[SHD].published_data_set == "SHD"
    for name in ("HD-Lauscher", "SHD"):
        assert find(made[SHD], data_set=name)["published"] == "86.0"
    row = find(made["Figure 4, N-MNIST"], data_set=sample)
    assert (made["Figure 4, N-MNIST"].published_data_set, row["published"]) == ("N-MNIST", "97.0")


def test_fused_is_compared_with_the_published_standard_and_says_so():
    made = compared(run(method="fused", arp_ms=0.0), run(method="fused", arp_ms=20.0))[
        "Figure 4, SHD"
    ]
    assert find(made, arp_ms="0")["published"] == "87.3 (standard)"
    row = find(made, arp_ms="20", n_seeds="1")
    assert (row["published"], row["ours"]) == ("–", "70.0")


def test_published_values_without_runs_have_dashes_beside_them():
    made = compared(run())
    for arp_ms in ("40", "60", "80", "100"):
        row = find(made[SHD], arp_ms=arp_ms)
        assert (row["ours"], row["data_set"], row["n_seeds"]) == ("–", "–", "0")
    assert made["Surrogate gradients"].rows == []
    assert "experiment=paper_surrogates" in made["Surrogate gradients"].command


def test_surrogates_and_attached_spikes_are_compared_with_their_own_numbers():
    made = compared(
        run("paper_surrogates", surrogate="boxcar"),
        run("paper_detach", surrogate="boxcar", arp_ms=60.0, detach_spikes=False),
        run("paper_detach", surrogate="boxcar", arp_ms=60.0, test_accuracy=0.8),
    )
    assert (
        find(made["Surrogate gradients"], setting="boxcar", arp_ms="20", n_seeds="1")["published"]
        == "81.2"
    )
    for spikes, published, ours in (("attached", "45.0", "70.0"), ("detached", "67.8", "80.0")):
        row = find(made["Attached and detached spikes"], setting=f"boxcar, {spikes}")
        assert (row["published"], row["ours"]) == (published, ours)


@pytest.mark.parametrize("table", [None, pd.DataFrame([{"experiment": "demo"}]), pd.DataFrame()])
def test_without_runs_there_are_commands_and_no_rows(table):
    made = comparisons(table)
    assert len(made) == 6
    assert not any(c.rows for c in made)
    assert all(c.command.startswith("blockspike train -m experiment=") for c in made)


def test_indistinguishable_runs_are_refused():
    with pytest.raises(ValueError, match="got several of experiment paper_shd"):
        comparisons(pd.DataFrame([run(), run()]))


def test_the_results_kept_here_are_compared():
    table, _ = read_table(RESULTS / "runs.csv")
    made = comparisons(table)
    ours = find(made[2], recipe="our recipe")
    own = 100 * pd.Series(table["test_accuracy"][table["experiment"] == "shd"])
    expected = (f"{own.mean():.1f} ± {own.sem():.1f}", str(len(own)), "HD-Lauscher")
    assert (ours["ours"], ours["n_seeds"], ours["data_set"]) == expected
