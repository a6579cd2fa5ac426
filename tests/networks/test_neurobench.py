"""`HookedClassifier`: what hooks count is events × synapses, and NeuroBench reports the same."""

import json
import re
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

import blockspike as bs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "neurobench.md"
NEUROBENCH = "neurobench==2.3.0"
REPORT = """
import json, torch
with torch.no_grad():
    network.layers[0].weight[:, ::3] = 0
    network.layers[1].recurrent_weight[0] = 0.5
    for layer in network.layers:
        layer.bias += 0.3  # so that layers spike
ones, n_spikes, n_possible, by_input = 0, 0, 0, 0
fan_out = lambda weight: (weight != 0).sum(0).float()
for x, _ in loader:
    output = network(x.transpose(0, 1))
    by_input += ((x != 0).float() @ fan_out(network.layers[0].weight)).sum().item()
    targets = [[network.layers[0].recurrent_weight, network.layers[1].weight],
               [network.layers[1].recurrent_weight, network.readout.weight]]
    for spikes, weights in zip(output.spikes, targets):
        n_spikes += spikes.sum().item()
        n_possible += spikes.numel()
        ones += sum((spikes @ fan_out(weight)).sum().item() for weight in weights)
weights = [w for layer in network.layers for w in (layer.weight, layer.recurrent_weight)]
weights.append(network.readout.weight)
n = len(loader.dataset)
own = {
    "Footprint": sum(p.numel() * 4 for p in network.parameters()),
    "ConnectionSparsity": sum((w == 0).sum().item() for w in weights)
    / sum(w.numel() for w in weights),
    "ActivationSparsity": 1 - n_spikes / n_possible,
    "Effective_ACs": ones / n,
    "Effective_MACs": by_input / n,
}
results = benchmark.run(quiet=True)
print(json.dumps([own, results | results["SynapticOperations"]]))
"""


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layer", [None, bs.GLIFLayer, bs.EulerAdLIFLayer])
def test_hooks_see_every_weight_and_spike(layer, batch_first):
    torch.manual_seed(0)
    network = bs.SpikingClassifier(
        12, 3, n_hidden=[6, 5], dt_ms=1.0, layer=layer, batch_first=batch_first
    )
    with torch.no_grad():
        for neurons in network.layers:
            cast(bs.NeuronLayer, neurons).bias.add_(2)  # so that they spike
    hooked, seen = bs.HookedClassifier(network), {}
    for name, module in hooked.named_modules():
        if isinstance(module, nn.Linear | nn.ReLU):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (m, *x)}))
    x = (torch.rand(4, 40, 12) < 0.4).float()
    scores = hooked(x)
    output = network(x if batch_first else x.transpose(0, 1))
    hidden = [spikes if batch_first else spikes.transpose(0, 1) for spikes in output.spikes]
    assert all(spikes.any() for spikes in hidden)
    torch.testing.assert_close(scores, output.scores)
    first, second = network.layers
    expected = {
        "feedforward.0": (first.weight, x),
        "feedforward.1": (second.weight, hidden[0]),
        "feedforward.2": (network.readout.weight, hidden[1]),
        "recurrent.0": (first.recurrent_weight, hidden[0]),
        "recurrent.1": (second.recurrent_weight, hidden[1]),
    }
    linear = {name: (m.weight, x) for name, (m, x) in seen.items() if isinstance(m, nn.Linear)}
    assert linear.keys() == expected.keys()
    for name, (weight, inputs) in expected.items():
        assert linear[name][0] is weight
        torch.testing.assert_close(linear[name][1], inputs)
    for i, spikes in enumerate(hidden):
        torch.testing.assert_close(seen[f"spikes.{i}"][1], spikes)
    assert sum(p.numel() for p in hooked.parameters()) == sum(
        p.numel() for p in network.parameters()
    )


@pytest.mark.slow
def test_neurobench_counts_what_we_count(tmp_path):
    """In an environment that has NeuroBench beside what this one has."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    paths = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    site = Path(sysconfig.get_path("purelib", vars=paths))
    lines = [sysconfig.get_path("purelib"), str(Path(bs.__file__).parents[1])]
    (site / "this.pth").write_text("\n".join(lines))
    subprocess.run([python, "-m", "pip", "install", "--quiet", NEUROBENCH], check=True)
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    run = [python, "-c", code + REPORT]
    shown = subprocess.run(run, check=True, capture_output=True, text=True, cwd=tmp_path)
    own, found = json.loads(shown.stdout.splitlines()[-1])
    assert own["Effective_ACs"] > 100 and 0.5 < own["ActivationSparsity"] < 0.999
    for name, value in own.items():
        assert found[name] == pytest.approx(value, abs=1e-4 if "Connection" in name else 1e-6)
    assert 0 <= found["ClassificationAccuracy"] <= 1
