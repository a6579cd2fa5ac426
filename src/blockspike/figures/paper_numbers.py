"""The paper's published numbers, to draw beside ours."""

from pathlib import Path

import pandas as pd


def paper_numbers(**columns: str) -> pd.DataFrame:
    """Select the rows of `paper_numbers.csv` that hold these values, as in `experiment="shd"`.

    Source: Taylor, King & Harper, "Addressing the speed-accuracy simulation trade-off for adaptive
    spiking neurons", NeurIPS 2023; trained on a GPU. The column `source` is "printed" for numbers
    from its text and tables, and "plot" for numbers read off its figures to ±1 point.

    Args:
        **columns: column → value: `experiment`, `quantity` ("test_accuracy" in %, "epoch_duration"
            in s, …), `method`, `surrogate`, `spikes` (attached or detached), `source`.

    Returns:
        The rows, with the columns `arp_steps`, `arp_ms` and `value` (in the unit of `unit`) among
        others.

    Raises:
        ValueError: there is no such row.
    """
    numbers = pd.read_csv(Path(__file__).with_name("paper_numbers.csv"))
    for name, value in columns.items():
        known = set(numbers[name].dropna().astype(str)) if name in numbers else set(numbers)
        if value not in known:
            raise ValueError(
                f"paper_numbers: expected one of {', '.join(sorted(known))}, got {name}={value!r}"
            )
        numbers = pd.DataFrame(numbers[numbers[name] == value])
    return numbers
