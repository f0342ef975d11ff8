"""Linear layers whose weights lie as oneDNN's kernels read them: the same products, sooner.

For float32 on a CPU torch hands a linear layer to MKL, which brings the weight into its own order
at each call and leaves part of many processors unused. oneDNN keeps the order it likes, so that
only the products are left. For inference: there is no gradient. `pack` is applied from outside; a
packed model has the names and the state of the plain one.

C channels in, O out.
"""

import platform
from collections.abc import MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from opensana.layers.mix_ffn import MixFFN

X86 = ("x86_64", "amd64")


class PackedLinear(nn.Module):
    """A linear layer [..., C] to [..., O] for inference, float32, on a CPU."""

    then: str = "none"
    """What is applied to each number on its way out, by oneDNN's name."""

    def __init__(self, plain: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = plain.weight.detach()
        self.shape = weight.shape
        self.out_features, self.in_features = weight.shape[:2]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1).contiguous(), None)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())

    @property
    def weight(self) -> Tensor:
        """A plain copy of the weight, in the shape of the layer that was packed."""
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
    """A 1x1 convolution [B, C, H, W] to [B, O, H, W]; no copy where channels lie last."""

    @property
    def in_channels(self) -> int:
        return self.in_features

    @property
    def out_channels(self) -> int:
        return self.out_features

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed layers run there; oneDNN's own layouts are those of x86 processors."""
    fits = device.type == "cpu" and dtype == torch.float32
    return fits and torch.backends.mkldnn.is_available() and platform.machine().lower() in X86


def pack(module: nn.Module) -> None:
    """Replace every linear layer and 1x1 convolution inside by its packed form."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        elif type(child) is nn.Conv2d and _is_pointwise(child):
            setattr(module, name, PackedPointwise(child))
        else:
            pack(child)
    if isinstance(module, MixFFN):
        inverted = cast(PackedPointwise, module.conv_inverted)
        inverted.then, module.activation = "swish", nn.Identity()


def _is_pointwise(layer: nn.Conv2d) -> bool:
    plain = layer.kernel_size == layer.stride == (1, 1) and layer.padding in ((0, 0), 0)
    return plain and layer.groups == 1
