"""A small convolutional network, trained along with the model, for small drawn pictures."""

from torch import Tensor, nn

from vqa_repro.utils.distributed import BatchNorm2d


class SmallCNN(nn.Module):
    """Four convolutions, three of which halve the grid.

    (B, S, S, 3) uint8 -> (B, (S/8)^2, channels). A region sees 30x30 pixels around its own 8x8.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        # A 4x4 window halves the grid evenly. A 3x3 one would be centred on its upper left pixel,
        # and after three of them attention would be drawn half a region away from what it saw.
        self.layers = nn.Sequential(
            *_step(3, channels // 4, 4, stride=2),
            *_step(channels // 4, channels // 2, 4, stride=2),
            *_step(channels // 2, channels // 2, 3, stride=1),
            *_step(channels // 2, channels, 4, stride=2),
        )
        self.channels = channels

    def forward(self, pictures: Tensor) -> Tensor:
        # Stored pictures are channels-last already: permuting them is only a view.
        x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        maps: Tensor = self.layers(x)
        return maps.flatten(2).transpose(1, 2)


def _step(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
    padding = (kernel - stride) // 2
    return [
        nn.Conv2d(before, after, kernel, stride, padding, bias=False),
        BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]
