"""A small convolutional network, trained along with the model, for small drawn pictures."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3x3 convolutions, each with batch normalisation and ReLU; three of them halve the grid.

    (B, S, S, 3) uint8 -> (B, (S/8)^2, channels).
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = (3, channels // 4, channels // 2, channels, channels)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.channels = channels

    def forward(self, pictures: Tensor) -> Tensor:
        # Stored pictures are channels-last already: permuting them is only a view.
        x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        maps: Tensor = self.layers(x)
        return maps.flatten(2).transpose(1, 2)
