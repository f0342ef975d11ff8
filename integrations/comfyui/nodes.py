"""The nodes, with ComfyUI's V3 API. IMAGE is [B, H, W, 3] and MASK [B, H, W], both 0 to 1."""

import functools
import io as files
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image
from torch.nn import functional as F

from .client import Client, as_text, loras_of

CATEGORY = "opensana"
PROGRESS = 1000
MOST_SEED = 2**63 - 1


class OpensanaDraw(io.ComfyNode):
    """Draws in this process; needs the opensana package in ComfyUI's environment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        model = io.String.Input("model", default="emoji-256", tooltip="A name, folder or hub id")
        return io.Schema(
            node_id="OpensanaDraw",
            display_name="opensana: draw",
            category=CATEGORY,
            inputs=[model, *_asked()],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, model: str, **asked: Any) -> io.NodeOutput:
        sana = _loaded(model)
        fields = _fields(asked)
        count, bar = fields["images"], comfy.utils.ProgressBar(PROGRESS)
        drawn: list[Image.Image] = []
        for picture in sana.draw(**fields, stop=comfy.model_management.processing_interrupted):
            drawn.append(picture.image)
            bar.update_absolute(PROGRESS * len(drawn) // count)
        comfy.model_management.throw_exception_if_processing_interrupted()
        return io.NodeOutput(_tensor(drawn))


class OpensanaServer(io.ComfyNode):
    """Asks a running `opensana serve`, here or on another machine; needs no package."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OpensanaServer",
            display_name="opensana: ask a server",
            category=CATEGORY,
            inputs=[
                io.String.Input("url", default="http://127.0.0.1:7860"),
                io.String.Input("key", default="", tooltip="If the server needs one"),
                *_asked(),
                io.Image.Input("image", optional=True, tooltip="To start from; its size is kept"),
                io.Mask.Input("mask", optional=True, tooltip="Where to draw the image anew"),
                io.Float.Input("strength", default=0.6, min=0.05, max=1.0, step=0.05),
                io.String.Input(
                    "lora",
                    default="",
                    optional=True,
                    tooltip="Those that the server lists, with weights: film:0.8, ink",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(
        cls,
        url: str,
        key: str,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        strength: float = 0.6,
        lora: str = "",
        **asked: Any,
    ) -> io.NodeOutput:
        body = _fields(asked) | {"lora": loras_of(lora)}
        if image is not None:
            del body["width"], body["height"]
            body |= {"image": as_text(_png(image[0])), "strength": strength}
        if mask is not None and not _is_none(mask, image):
            size = mask.shape[1:] if image is None else image.shape[1:3]
            body["mask"] = as_text(_png(F.interpolate(mask[None, :1], tuple(size))[0, 0]))
        bar = comfy.utils.ProgressBar(PROGRESS)
        pngs = Client(url, key).draw(
            body,
            on_progress=lambda share: bar.update_absolute(int(PROGRESS * share)),
            stopped=comfy.model_management.processing_interrupted,
        )
        comfy.model_management.throw_exception_if_processing_interrupted()
        return io.NodeOutput(_tensor([Image.open(files.BytesIO(png)) for png in pngs]))


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [OpensanaDraw, OpensanaServer]


async def comfy_entrypoint() -> Extension:
    """What ComfyUI calls."""
    return Extension()


def _asked() -> list[Any]:
    """Inputs that both nodes have."""
    side: dict[str, Any] = {"default": 256, "min": 32, "max": 8192, "step": 32}
    return [
        io.String.Input("prompt", multiline=True, default="a red apple"),
        io.String.Input("negative_prompt", multiline=True, default=""),
        io.Int.Input("width", **side),
        io.Int.Input("height", **side),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the model's own"),
        io.Float.Input("guidance", default=0.0, min=0.0, max=100.0, tooltip="0: the model's own"),
        io.Int.Input("seed", default=0, min=0, max=MOST_SEED, control_after_generate=True),
        io.Int.Input("images", default=1, min=1, max=16),
    ]


def _fields(asked: dict[str, Any]) -> dict[str, Any]:
    """As a request has them, without what is left to the model."""
    return {name: value for name, value in asked.items() if value or name not in MODELS_OWN}


MODELS_OWN = ("steps", "guidance")


@functools.lru_cache(maxsize=1)
def _loaded(model: str) -> Any:
    from opensana import Sana

    return Sana.load(model)


def _tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def _is_none(mask: torch.Tensor, image: torch.Tensor | None) -> bool:
    """The 64 x 64 zeros that ComfyUI's Load Image gives of a picture without transparency."""
    own = image is not None and image.shape[1:3] == mask.shape[1:]
    return mask.shape[1:] == (64, 64) and not own and not mask.any()


def _png(pixels: torch.Tensor) -> bytes:
    levels = (pixels.cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    buffer = files.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()
