"""LoadOptions: how a model is loaded, once for `Sana.load` and for every command that loads one.

What several commands ask for in the same words is a type with its help here: `device: Device`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction, arg

from opensana.device import has_own_memory, parse_bytes
from opensana.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from opensana.weights.lora import LoraSource

    Loras = LoraSource | Sequence[LoraSource] | None
    Scales = float | Sequence[float]
else:  # as flags, for whose help nothing heavy is imported
    Loras = UseAppendAction[tuple[str, ...]]
    Scales = UseAppendAction[tuple[float, ...]]

DEFAULT_MODEL = "emoji-256"
OffloadName = Literal["text", "all"]
SchemeName = Literal["w8a8", "fp8", "w8", "w4"]
DtypeName = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]

Model = Annotated[
    str | Path, arg(metavar="MODEL", help="A built-in model, a model folder, or a hub id.")
]
Revision = Annotated[
    str | None, arg(metavar="NAME", help="Branch, tag or commit of a model on the hub.")
]
Variant = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="Which weight files of the model: fp16 or bf16; left out, the plain ones.",
    ),
]
Device = Annotated[str, arg(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The keywords of `Sana.load`, and the flags of commands that draw.

    In Python `memory` may be a number of bytes; pictures that need more are decoded in bands of
    rows, to the same pixels. `lora` may be one or several, also read already; `lora_scale` one
    number for one LoRA, a number for each, or 1 for all. With a ControlNet each request needs a
    `control_image`. What `kernels` compiles is kept in the user's cache folder.
    """

    model: Annotated[Model, arg(aliases=["-m"])] = DEFAULT_MODEL
    revision: Revision = None
    variant: Variant = None
    transformer: Annotated[Path | str | None, arg(metavar="FOLDER")] = None
    """Another transformer for the model, such as the export of a training run."""
    lora: Annotated[Loras, arg(metavar="PATH")] = ()
    """A LoRA file or its folder, merged into the transformer; given again, one more is added."""
    lora_scale: Annotated[Scales, arg(metavar="FACTOR")] = ()
    """How much of the LoRA: 0 is none, 1 (the default) all of it; one for each --lora, or none."""
    controlnet: Annotated[str | Path | None, arg(metavar="FOLDER")] = None
    """A ControlNet that `opensana train` made for the model, or a hub id."""
    device: Device = "auto"
    text_device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """Where the text encoder runs, such as cpu beside a small GPU; left out, where all does."""
    offload: OffloadName | None = None
    """For `generate`. text: read all prompts first, then free the text encoder's memory. all: on a
    GPU, besides, have each part there only in its turn, its weights on the host."""
    dtype: DtypeName | None = None
    """Number format of the transformer; left out, what suits device and weights."""
    memory: Annotated[str | int | None, arg(metavar="SIZE")] = None
    """What decoding may take beside the weights, such as 4GiB; left out, what is free."""
    compile: bool = False
    """Let torch.compile make the steps faster: for many pictures, as the first takes minutes."""
    kernels: bool = False
    """Compiled kernels. On a CPU in float32: the decoder's convolutions in C++, compiled in seconds
    and kept. On CUDA: linear attention and Mix-FFN in Triton."""
    quantize: SchemeName | None = None
    """Bring transformer and decoder to 8 bits for speed (w8a8; fp8 on newer NVIDIA cards), or the
    transformer to 8 or 4 for memory alone (w8, w4)."""
    graph: bool = False
    """On CUDA, launch the kernels of a step as one, a CUDA graph: for many pictures of one size."""

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return parse_bytes(self.memory) if isinstance(self.memory, str) else self.memory


def check_offload(options: LoadOptions, device: "torch.device") -> None:
    """ConfigError where nothing could move, or must not."""
    if options.offload is None:
        return
    if not has_own_memory(device):
        raise ConfigError(
            f"offload {options.offload} moves parts between the host and a GPU with a memory of "
            f"its own, got {device}; leave it out (generate --offload text frees the encoder)"
        )
    if options.compile and options.offload == "all":
        raise ConfigError(
            "compiled blocks are bound to where their weights are: leave compile out, or offload "
            "the text alone"
        )


def check_graph(options: LoadOptions, device: "torch.device") -> None:
    """ConfigError where steps cannot be CUDA graphs."""
    if device.type != "cuda":
        raise ConfigError(f"graph is for CUDA, and this runs on {device.type}; leave graph out")
    if options.compile or options.quantize is not None:
        other = "compile" if options.compile else "quantize"
        raise ConfigError(f"graph is for plain layers: leave {other} out, or graph")
    if options.offload == "all":
        raise ConfigError(
            "a graph is bound to where weights are: leave graph out, or offload the text alone"
        )
