"""Root-mean-square norms lose nothing that their weights keep."""

import torch

from opensana.layers import RMSNorm


def test_a_norm_with_float32_weights_is_not_rounded_under_autocast() -> None:
    norm = RMSNorm(64)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    wide = x.double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * norm.weight
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 1e-6 * exact.norm()


def test_a_norm_keeps_the_format_of_its_model() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert RMSNorm(8).to(dtype)(torch.ones(1, 2, 8, dtype=dtype)).dtype == dtype
