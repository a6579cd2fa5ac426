"""A trained network's traces for the report's viewer."""

from typing import Any

import torch

from blockspike.app.activity import shown_samples
from blockspike.app.loaded_run import load_run
from blockspike.app.trainer import use_threads
from blockspike.report.viewer import pack_traces
from blockspike.runs.run import Run


@torch.no_grad()
def traces_of(run: Run, threads: int | None) -> dict[str, Any]:
    """Packed traces of the hidden layers on the test recordings that `evaluate` shows.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the run is not finished, or holds fitted neurons.
    """
    use_threads(threads)
    network, data, *_ = load_run(run.folder)
    run.finished()
    events, labels = next(iter(data.test_dataloader()))
    predicted = network(events).mean_over_views(len(labels)).argmax(1)
    samples = shown_samples(labels).tolist()
    titles = [f"class {int(labels[i])}, classified as {int(predicted[i])}" for i in samples]
    traces = list(network.run_layers(events, membrane=True))
    return pack_traces(traces, samples, titles, data.dt_ms)
