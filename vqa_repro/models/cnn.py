"""A small convolutional network for small synthetic images, trained together with the model."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqa_repro.utils.distributed import World


class SmallCNN(nn.Module):
    """Four convolutions, three of which halve the grid.

    (I, S, S, 3) uint8 -> (I, (S/8)^2, channels). A region sees 30x30 pixels around its own 8x8.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        # A 4x4 window halves the grid evenly. A 3x3 one would be centred on its upper left pixel,
        # and after three of them attention would be drawn half a region away from its content.
        self.layers = nn.Sequential(
            *_block(3, channels // 4, 4, stride=2),
            *_block(channels // 4, channels // 2, 4, stride=2),
            *_block(channels // 2, channels // 2, 3, stride=1),
            *_block(channels // 2, channels, 4, stride=2),
        )
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        # Stored images are channels-last already: the permutation is only a view.
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        maps: Tensor = self.layers(x)
        return maps.flatten(2).transpose(1, 2)


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    padding = (kernel - stride) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training mean and variance are over the images of all processes.

    As ``nn.SyncBatchNorm``, but also on the CPU, and for processes that have no image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            local: Tensor = super().forward(x)
            return local
        # Also under autocast: bfloat16 cannot even represent the count.
        low, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        C = x.shape[1]
        per_channel = x.transpose(0, 1).reshape(C, -1)
        count = x.new_full((1,), per_channel.shape[1])
        sums: Tensor = _SumOverProcesses.apply(torch.cat([per_channel.sum(1), count]))
        mean, count = sums[:C] / sums[C], sums[C].detach()
        centred = x - mean[:, None, None]
        squares: Tensor = _SumOverProcesses.apply(centred.square().sum((0, 2, 3)))
        variance = squares / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(low)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes, whose gradient is summed too: each loss depends on all the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed: Tensor = World(size=dist.get_world_size()).all_reduce(values.clone())
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed: Tensor = World(size=dist.get_world_size()).all_reduce(gradient.clone())
        return summed
