"""A linear model on spike counts: the baseline that a spiking network must beat."""

import numpy as np
import torch
from torch.nn import functional as F

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
Split = tuple[np.ndarray, np.ndarray]


def linear_baseline(train: Split, val: Split, test: Split) -> float:
    """Test accuracy of softmax regression on the square roots of spike counts.

    The L2 penalty is chosen on the validation data.

    Args:
        train, val, test: counts [n, n_inputs] and labels [n] each.

    Returns:
        Accuracy, 0 to 1.
    """
    features = [torch.as_tensor(counts).sqrt() for counts, _ in (train, val, test)]
    mean, std = features[0].mean(0), features[0].std(0) + 0.1
    parts = [
        ((x - mean) / std, torch.as_tensor(labels))
        for x, (_, labels) in zip(features, (train, val, test), strict=True)
    ]
    scores = []
    for penalty in _PENALTIES:
        weight = _softmax_regression(*parts[0], penalty)
        accuracies = [float(((x @ weight.T).argmax(1) == y).float().mean()) for x, y in parts]
        scores.append(accuracies[1:])
    return max(scores, key=lambda of_parts: of_parts[0])[1]


def _softmax_regression(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach()
