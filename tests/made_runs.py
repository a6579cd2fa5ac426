"""Rows of runs as `blockspike collect` writes them, for tests of figures and tables."""


def run(experiment="paper_shd", data_set="HD-Lauscher", **columns) -> dict:
    """A row as `blockspike collect` writes it, as far as figures and comparison need it."""
    row = {
        "experiment": experiment, "data_set": data_set, "seed": 0, "n_threads": 1,
        "model.method": "blocks", "model.arp_ms": 20.0, "model.surrogate": "multi_gaussian",
        "model.detach_spikes": True, "trainer.accelerator": "cpu", "test_accuracy": 0.7,
        "epoch_s": 50.0,
    }  # fmt: skip
    names = {name.rsplit(".", 1)[-1]: name for name in row}
    return row | {names[name]: value for name, value in columns.items()}
