"""Memory of training on a long recording, in a process of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TRAIN = """
import sys
from pathlib import Path
import torch
import blockspike as bs
from blockspike.networks.pieces import run_in_pieces

batch_size, n_inputs = 4, 100
network = bs.SpikingClassifier(n_inputs, 20, n_hidden=256, dt_ms=2.0, detach_spikes=False)
with torch.no_grad():
    for layer in network.layers:
        layer.weight *= 10

def train(n_steps, n_piece):
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(0, n_steps * batch_size, (n_steps * 10,), generator=generator)
    row_ptr = torch.zeros(n_steps * batch_size + 1, dtype=torch.int64)
    row_ptr[1:] = torch.bincount(row, minlength=n_steps * batch_size).cumsum(0)
    unit = torch.randint(0, n_inputs, row.shape, generator=generator, dtype=torch.int32)
    x = bs.EventBatch(row_ptr, unit, (n_steps, batch_size, n_inputs))
    output = run_in_pieces(network, x, n_piece)
    torch.nn.functional.cross_entropy(output.scores, torch.arange(batch_size)).backward()
    assert min(rate.item() for rate in output.rates) > 0.01, output.rates

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

train(200, 100)  # compiles the kernels: the compiler's memory is not training's
before = mib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
train(int(sys.argv[1]), int(sys.argv[2]))
print(before, mib("VmHWM"))
"""


def peak_mib(n_steps: int, n_piece: int) -> tuple[float, float]:
    """Memory of the process before the training step, and at most during it, in MiB."""
    command = [sys.executable, "-c", TRAIN, str(n_steps), str(n_piece)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    return before, after


@pytest.mark.slow
def test_100_000_steps_train_in_2_gib():
    before, after = peak_mib(100_000, 1000)
    print(f"{before:.0f} MiB before, {after:.0f} MiB at most")
    assert after < 2048


@pytest.mark.slow
def test_memory_is_that_of_a_piece_and_of_the_states_between():
    whole = [after - before for before, after in (peak_mib(n, n) for n in (3000, 12_000))]
    pieces = [after - before for before, after in (peak_mib(n, 300) for n in (3000, 12_000))]
    print(f"3,000 and 12,000 steps: {whole} MiB at once, {pieces} MiB in pieces")
    assert pieces[1] < 0.25 * whole[1]
    assert pieces[1] - pieces[0] < 0.15 * (whole[1] - whole[0])
