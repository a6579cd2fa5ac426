"""The error of numbers that are not finite."""


class NotFiniteError(ValueError):
    """NaN or Inf in an argument or a state; `neuron` is the first affected one, if known.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((10, 1, 2), float("nan"))
        >>> try:
        ...     bs.alif(current, torch.tensor([0.9, 0.9]))
        ... except bs.NotFiniteError as error:
        ...     print(error.neuron)
        0
    """

    def __init__(self, message: str, neuron: int | None = None):
        super().__init__(message)
        self.neuron = neuron
