"""What ``torch.hub.load(FOLDER, NAME, source="local")`` offers: each public function is a model."""

import torch
from torch import nn

dependencies = ["torch"]


class _Separable(nn.Module):
    """Images (N, 1, 28, 28) to scores (N, classes), by convolutions over places and over channels in turn."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, kernel_size=3, stride=2, padding=1)
        self.places = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, groups=width)
        self.channels = nn.Conv2d(width, 2 * width, kernel_size=1)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.scores = nn.Linear(2 * width * 7 * 7, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        x = torch.relu(self.stem(images))
        x = torch.relu(self.norm(self.channels(self.places(x))))
        return self.scores(x.flatten(1))


def separable(width: int = 32, classes: int = 10) -> nn.Module:
    """Depthwise separable convolutions for images of one channel, 28x28. width: channels of the first layer."""
    return _Separable(width, classes)
