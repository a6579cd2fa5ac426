"""Parts of recordings, for training or for the test, as one batch of many cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The training or the test part of all cells.

    Cells may have different numbers of segments, and segments different lengths.

    Attributes:
        current: float32 [T, B, C], up to B segments of up to T steps of C cells, divided by the
            cell's scale; 0 after the end of a segment.
        trains: recorded trains of each cell and segment, float32 [R, T] of the segment's own T.
        first: of each cell and segment, the first step that is scored; in those before, the neuron
            settles.
    """

    current: Tensor
    trains: list[list[np.ndarray]]
    first: list[list[int]]

    def segments(self, cell: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Current [T] and trains [R, T] of each segment of a cell."""
        currents = self.current[:, : len(self.trains[cell]), cell].numpy().T
        return [
            (current[: own.shape[1]], own)
            for current, own in zip(currents, self.trains[cell], strict=True)
        ]

    def scored(self, cell: int) -> list[np.ndarray]:
        """Trains of each segment of a cell over the steps that are scored, [R, T − first]."""
        return [x[:, first:] for x, first in zip(self.trains[cell], self.first[cell], strict=True)]


def beside(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows [T] of different lengths as columns, [T, B], NaN after the end of a shorter one."""
    out = np.full((max(map(len, rows)), len(rows)), np.nan, np.result_type(*rows, np.float32))
    for i, row in enumerate(rows):
        out[: len(row), i] = row
    return out


def stacked(cells: Sequence[np.ndarray]) -> Tensor:
    """Arrays [T, B] of different shapes as one, float32 [T, B, C]; 0 for NaN and where none is."""
    n_steps, n_segments = np.max([x.shape for x in cells], 0)
    out = np.zeros((n_steps, n_segments, len(cells)), np.float32)
    for i, x in enumerate(cells):
        out[: len(x), : x.shape[1], i] = np.where(np.isnan(x), 0, x)
    return torch.from_numpy(out)


def n_steps_of(trains: Sequence[Sequence[np.ndarray]]) -> int | Tensor:
    """Steps of the trains [R, T] of each cell and segment, int64 [B, C]; 0 where there is no such.

    One number if it is the same for all.
    """
    steps = [[own.shape[1] for own in of_cell] for of_cell in trains]
    n_segments = max(map(len, steps))
    all_steps = torch.tensor([own + [0] * (n_segments - len(own)) for own in steps]).T
    same = int(all_steps[0, 0])
    return same if (all_steps == same).all() else all_steps


def padded(trains: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Trains [R, T] of each cell and segment as one tensor of up to R trials.

    Returns:
        Spikes, 0 or 1, float32 [T, R, B, C], and whether there is such a trial, bool [R, B, C].
    """
    shapes = np.array([own.shape for of_cell in trains for own in of_cell])
    n_trials, n_steps = shapes.max(0)
    spikes = torch.zeros(n_steps, n_trials, max(map(len, trains)), len(trains))
    is_there = torch.zeros(spikes.shape[1:], dtype=torch.bool)
    for cell, of_cell in enumerate(trains):
        for segment, own in enumerate(of_cell):
            spikes[: own.shape[1], : len(own), segment, cell] = torch.from_numpy(own.T > 0)
            is_there[: len(own), segment, cell] = True
    return spikes, is_there
