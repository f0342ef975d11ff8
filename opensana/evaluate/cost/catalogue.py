"""The models whose cost is known: ours, counted on meta tensors, and peers by their shapes.

Steps and guidance are those of the paper's Tables 7 and 14, as far as it names them. That FLUX-dev
took 50 steps and Hunyuan-DiT 50 follows from the rates that their printed speeds imply.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.errors import OpensanaError, RequestError, WeightsError, near
from opensana.evaluate.cost.convolutional import KlDecoder, UNet
from opensana.evaluate.cost.peers import Flux, HunyuanDiT, LuminaNext, PixArt, StableDiffusion3
from opensana.evaluate.cost.sheet import Sheet, counted
from opensana.models.find import autoencoder_config_of, transformer_config_of
from opensana.models.flops import META, TEXT_TOKENS
from opensana.models.index import INDEX, SPRINT_STEPS, ModelDefaults, read_info
from opensana.models.presets import AUTOENCODERS, TRANSFORMERS
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from opensana.weights.locate import is_here, locate
from opensana.weights.published_models import hub_id

UNIT = 32
"""Sizes are multiples of it: every network here divides them evenly."""
LARGEST = 16384

Network = Callable[[int], Sheet]
"""The size of a square picture in pixels to what is multiplied for it."""


@dataclass(frozen=True)
class Painter:
    """How a model draws: one forward pass, the decoder, and how often each runs."""

    forward: Network
    decode: Network
    steps: int
    passes: int
    """Forward passes a step: 2 with classifier-free guidance, 1 without."""
    text_tokens: int
    kind: Literal["ours", "peer"] = "peer"

    def picture(self, size: int, *, steps: int | None = None) -> Sheet:
        """All that a picture takes, without its text encoder; the parameters count once."""
        forward, decode = self.forward(size), self.decode(size)
        drawing = forward.times((steps or self.steps) * self.passes)
        return Sheet(drawing.products + decode.products, forward.parameters + decode.parameters)


def _peer(
    network: Callable[[int, int], Sheet], decoder: KlDecoder, steps: int, passes: int, text: int
) -> Painter:
    return Painter(lambda size: network(size, text), decoder.decode, steps, passes, text)


def sana(
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    *,
    steps: int | None = None,
    guided: bool | None = None,
) -> Painter:
    """A model of ours; a few-step transformer takes its guidance as an input."""
    few = transformer.guidance_embeds
    guided = not few if guided is None else guided
    return Painter(
        lambda size: _forward(transformer, size // autoencoder.compression),
        lambda size: _decode(autoencoder, size),
        steps or (SPRINT_STEPS if few else ModelDefaults.steps),
        1 + guided,
        TEXT_TOKENS,
        "ours",
    )


@cache
def _forward(config: TransformerConfig, side: int) -> Sheet:
    """Blocks are alike: one and two of them are counted, the rest follows."""
    one, two = (_shallow(replace(config, num_layers=depth), side) for depth in (1, 2))
    block = Sheet(two.products - one.products, two.parameters - one.parameters)
    return one + block.times(config.num_layers - 1)


def _shallow(config: TransformerConfig, side: int) -> Sheet:
    with META:
        network = Transformer(config)
        latent = torch.empty(1, config.in_channels, side, side)
        states, time = torch.empty(1, TEXT_TOKENS, config.caption_channels), torch.empty(1)
    guidance = time if config.guidance_embeds else None
    return counted(network, lambda: network(latent, time, states, guidance=guidance))


@cache
def _decode(config: AutoencoderConfig, size: int) -> Sheet:
    with META:
        network, side = Autoencoder(config), size // config.compression
        latent = torch.empty(1, config.latent_channels, side, side)
    return counted(network.decoder, lambda: network.decode(latent))


def _published(transformer: str) -> Painter:
    return sana(TRANSFORMERS[transformer], AUTOENCODERS["dc_ae_f32c32_sana_1_1"])


F8C4, F8C16 = KlDecoder(), KlDecoder(latent=16, mixes=False)
PAINTERS: dict[str, Painter] = {
    "flux-dev": _peer(Flux().forward, F8C16, 50, 1, 512),
    "flux-schnell": _peer(Flux(guidance=False).forward, F8C16, 4, 1, 256),
    "sd3-medium": _peer(StableDiffusion3().forward, F8C16, 28, 2, 77 + 256),
    "pixart-alpha": _peer(PixArt().forward, F8C4, 20, 2, 120),
    "pixart-sigma": _peer(PixArt().forward, F8C4, 20, 2, 300),
    "hunyuan-dit": _peer(HunyuanDiT().forward, F8C4, 50, 2, 77 + 256),
    "lumina-next": _peer(LuminaNext().forward, F8C4, 30, 2, 256),
    "sdxl": _peer(UNet().forward, F8C4, 50, 2, 77),
    "sana-0.6b": _published("sana_600m_1024"),
    "sana-1.6b": _published("sana_1600m_1024"),
    "sana-1.5-1.6b": _published("sana_1_5_1600m"),
    "sana-1.5-4.8b": _published("sana_1_5_4800m"),
    "sprint-0.6b": _published("sprint_600m"),
    "sprint-1.6b": _published("sprint_1600m"),
}
GROUPS = ("all", "ours", "peers")


def painters(names: str) -> dict[str, Painter]:
    """By names between commas: of the table, `all`, `ours`, `peers`, or a model of ours."""
    found: dict[str, Painter] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name in GROUPS:
            found |= {n: p for n, p in PAINTERS.items() if name in ("all", p.kind, f"{p.kind}s")}
        else:
            found[name] = PAINTERS.get(name) or _of_ours(name)
    if not found:
        raise RequestError(f"no models are named; there are {', '.join((*GROUPS, *PAINTERS))}")
    return found


def _of_ours(name: str) -> Painter:
    """A built-in or published model, or a folder; drawn with as its index says, if it has one.

    Nothing is downloaded for it.
    """
    try:
        if not (is_here(name) or hub_id(name)):
            raise WeightsError("it is not on this machine")
        parts = transformer_config_of(name), autoencoder_config_of(name)
        if is_here(name) and ((folder := locate(name)) / INDEX).is_file():
            defaults = read_info(folder, name=name).defaults
            few = parts[0].guidance_embeds
            return sana(*parts, steps=defaults.steps, guided=not few and defaults.guidance != 1)
        return sana(*parts)
    except OpensanaError as error:
        known = (*GROUPS, *PAINTERS)
        raise RequestError(
            f"unknown model {name!r}{near(name, known)}; there are {', '.join(known)}, "
            f"and models that `opensana info` knows ({error})"
        ) from None


def check_sizes(sizes: str) -> list[int]:
    """Numbers between commas, each the side of a square picture."""
    found = [part.strip() for part in sizes.split(",")]
    for size in found:
        number = int(size) if size.isascii() and size.isdecimal() else 0
        if not 0 < number <= LARGEST or number % UNIT:
            raise RequestError(
                f"sizes are multiples of {UNIT} up to {LARGEST} between commas, such as "
                f"512,1024; got {size!r}"
            )
    return [int(size) for size in dict.fromkeys(found)]
