"""Batch normalisation over the images of all processes of a training, on a processor.

torch's SyncBatchNorm has kernels for GPUs only.
"""

import torch
from torch import Tensor, nn

from ciss import distributed


class SumOfAllProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes. Its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(context, tensor: Tensor) -> Tensor:
        return distributed.all_sum(tensor.clone())

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return distributed.all_sum(gradient.clone())


class BatchNormOfAllProcesses(nn.BatchNorm2d):
    """A layer of batch normalisation with mean and variance of the images of all processes.

    Args:
        layer: the one that it replaces. Parameters and statistics are the same tensors; `act` and `drop` are those of
            timm's layers that include an activation.
    """

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__(layer.num_features, eps=layer.eps, momentum=layer.momentum, device="meta")
        self._parameters, self._buffers, self.training = layer._parameters, layer._buffers, layer.training
        self.drop, self.act = getattr(layer, "drop", None), getattr(layer, "act", None)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises (B,C,H,W); B may differ between processes."""
        output = self._normalised(images) if self.training else super().forward(images)
        for layer in (self.drop, self.act):
            output = output if layer is None else layer(output)
        return output

    def _normalised(self, images: Tensor) -> Tensor:
        values, over = images.float(), (0, 2, 3)
        number = values.new_full((1,), values.numel() / values.shape[1])
        sums = SumOfAllProcesses.apply(torch.cat([values.sum(dim=over), number]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = values - mean[:, None, None]
        variance = SumOfAllProcesses.apply(centred.square().sum(dim=over)) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * number / (number - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        output = centred * scale[:, None, None] + self.bias[:, None, None]
        return output.to(images.dtype)


def synchronise(module: nn.Module) -> nn.Module:
    """The module with all its layers of batch normalisation replaced."""
    if isinstance(module, nn.BatchNorm2d) and not isinstance(module, BatchNormOfAllProcesses):
        return BatchNormOfAllProcesses(module)
    for name, child in module.named_children():
        replaced = synchronise(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module
