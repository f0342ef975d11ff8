"""Linear layers with weights prepacked for oneDNN: faster, the same products.

In float32 on a CPU torch runs a linear layer through MKL, which reorders the weight at each call
and does not use all of many processors. oneDNN takes a weight that is reordered once. For inference
only. `pack` is applied from outside; the state-dict keys do not change.

C channels in, O out.
"""

import platform
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from opensana.layers.mix_ffn import MixFFN

X86 = ("x86_64", "amd64")


class PackedLinear(nn.Module):
    """A linear layer [..., C] to [..., O] for inference in float32 on a CPU."""

    then: str = "none"
    """The activation fused into the product, by oneDNN's name."""

    def __init__(self, plain: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = plain.weight.detach()
        self.shape = weight.shape
        self.out_features, self.in_features = weight.shape[:2]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1).contiguous(), None)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())

    @property
    def weight(self) -> Tensor:
        """A plain copy of the weight, in the original layer's shape."""
        return self.packed.to_dense().view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("a packed layer has no gradient; train the plain model")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.then, [], "")

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)


class PackedPointwise(PackedLinear):
    """A 1x1 convolution [B, C, H, W] to [B, O, H, W]; without a copy for channels-last input."""

    @property
    def in_channels(self) -> int:
        return self.in_features

    @property
    def out_channels(self) -> int:
        return self.out_features

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed layers run there; oneDNN has these layouts on x86 processors only."""
    fits = device.type == "cpu" and dtype == torch.float32
    return fits and torch.backends.mkldnn.is_available() and platform.machine().lower() in X86


def pack(module: nn.Module) -> None:
    """Replace every linear layer and 1x1 convolution in `module` by its packed form."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        elif (
            type(child) is nn.Conv2d
            and child.kernel_size == child.stride == (1, 1)
            and child.padding in ((0, 0), 0)
            and child.groups == 1
        ):
            setattr(module, name, PackedPointwise(child))
        else:
            pack(child)
    if isinstance(module, MixFFN) and isinstance(module.conv_inverted, PackedPointwise):
        inverted = module.conv_inverted
        inverted.then, module.activation = "swish", nn.Identity()
