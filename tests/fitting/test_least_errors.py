"""The Fisher information of `tools/least_errors.py` is the covariance of the likelihood's slope."""

import numpy as np
import pytest
import torch
from torch import Tensor

from blockspike.fitting.parameters import NeuronParameters, simulate
from blockspike.fitting.synthetic_cells import SyntheticCells
from least_errors import FITTED, information, least_errors, log_rate_slopes


def simulated(n_trials: int) -> tuple[Tensor, Tensor, NeuronParameters]:
    """Current [T, 1, 1] of a cell, its spikes [T, R, 1] and its parameters."""
    cells = SyntheticCells(1, 1, 1.0, trial_noise=0.0, neuron="gif", noise="escape", seed=3)
    drive = torch.from_numpy(cells.cells()[0].current(0.5)[0] / 100)[:, None, None]
    torch.manual_seed(0)
    trains = simulate(cells.truth, drive, 0.5, torch.randn(len(drive), 1, n_trials))
    return drive, trains[:, 0], cells.truth


def test_the_information_is_the_covariance_of_the_slopes_of_the_likelihood():
    drive, trains, truth = simulated(400)
    log_rate, slopes = log_rate_slopes(truth, drive.expand_as(trains), trains, 0.5)
    rate = np.exp(log_rate)
    surprise = np.where(trains > 0, rate / np.expm1(rate), -rate)  # of log P in the log rate
    scores = (surprise[..., None] * slopes).sum((0, 2))
    expected = scores.T @ scores / len(scores)
    found = information(log_rate, slopes)[0] / len(scores)
    scale = np.sqrt(np.diag(found))
    assert scale.shape == (len(FITTED),) and (scale > 0).all()
    size = np.outer(scale, scale)
    np.testing.assert_allclose(found / size, expected / size, atol=0.25)


def test_errors_halve_with_four_times_the_trials():
    drive, trains, truth = simulated(40)
    few = least_errors(truth, drive.expand_as(trains[:, :10]), trains[:, :10], 0.5)
    for name, error in least_errors(truth, drive.expand_as(trains), trains, 0.5).items():
        assert few[name][0] / error[0] == pytest.approx(2, rel=0.3)
