"""Opening a model: locate, load, LoRA, quantise, place, pack, compile, in this order."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.preview import Preview
from opensana.device import resolve_device, resolve_dtype
from opensana.errors import ConfigError
from opensana.files.user_cache import cache_folder
from opensana.models.index import ModelInfo, read_info
from opensana.models.load import (
    Onto,
    load_autoencoder,
    load_controlnet,
    load_other_transformer,
    load_text,
    load_transformer,
)
from opensana.models.options import LoadOptions, check_graph, check_offload
from opensana.models.parts import SPRINT_PART, autoencoder_folder, stored_dtype
from opensana.models.save import write_model
from opensana.request import MOST_SPRINT_STEPS, Request
from opensana.runtime.compiled import compile_blocks
from opensana.runtime.graphs import Graphs
from opensana.runtime.int8_decoder import decodes_in_8_bits, quantize_decoder
from opensana.runtime.kernels import compile_convolutions
from opensana.runtime.offload import Turns
from opensana.runtime.placing import part_dtype, place, prepare_for_inference
from opensana.runtime.quantize import (
    Quantization,
    check_shapes,
    dequantize,
    join_products,
    quantization_of,
    quantize,
    slower_here,
)
from opensana.runtime.tf32 import settle_float32
from opensana.runtime.triton_blocks import use_triton
from opensana.text.encoder import TextEncoder
from opensana.transformer.controlnet import ControlNet
from opensana.transformer.model import Transformer
from opensana.weights.locate import locate
from opensana.weights.lora import Lora, apply_loras, paired, read_lora

HOST = torch.device("cpu")


@dataclass(frozen=True)
class OpenModel:
    """The networks of a model, where and as they run, and what is known of it."""

    text: TextEncoder
    transformer: Transformer
    autoencoder: Autoencoder
    info: ModelInfo
    memory: int | None = None
    """Bytes that decoding may take beside the weights; None is what is free."""
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a picture records of the model beside its name: the LoRA merged into it."""
    controlnet: ControlNet | None = None
    """What lets a control image steer the transformer."""
    few_step: Transformer | None = None
    """A distilled transformer beside the model's own, which draws in 1 to 4 steps."""
    variant: str | None = None
    """Which weight files of the folder were read."""
    turns: Turns | None = None
    """With offload: which networks are on the device."""
    graphs: Graphs | None = None
    """The CUDA graphs of its steps, if it is to have any."""

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.turns.device if self.turns else next(self.transformer.parameters()).device

    def begin(self, *networks: nn.Module | None) -> None:
        """The turn of these networks on the device, if they have turns there (`Turns.begin`)."""
        if self.turns is not None:
            self.turns.begin(*networks)

    def end(self) -> None:
        """The end of a drawing: networks leave the device that do not stay."""
        if self.turns is not None:
            self.turns.end()

    def room_in_decoding(self, free: int) -> int:
        """Bytes that will be free when pictures are decoded, if `free` are now."""
        if self.turns is None:
            return free
        return self.turns.room(free, self.autoencoder, self.transformer, self.controlnet)

    def drop_text_encoder(self, prompts: Iterable[str], negative: Iterable[str] = ()) -> None:
        """Read all prompts that will be drawn and free the text encoder: `drop_weights`."""
        self.begin(self.text.model)
        self.text.drop_weights(prompts, negative)
        self.end()

    @property
    def shift(self) -> float:
        """How far the solver's noise levels are shifted towards noise (section 4.2)."""
        return self.info.shift

    @property
    def sprint(self) -> bool:
        """A few-step model, whose network takes the guidance as an input (SANA-Sprint)."""
        return self.transformer.config.guidance_embeds

    @property
    def native_size(self) -> int:
        """The side in pixels of the pictures that the model was trained for."""
        return self.transformer.config.sample_size * self.autoencoder.compression

    def read_preview(self) -> Preview | None:
        """The autoencoder's map to small pictures; None where its folder has none."""
        if self.info.folder is None:
            return None
        part = autoencoder_folder(self.info.folder)
        return Preview.read(part, self.autoencoder.latent_channels)

    def save(self, folder: str | Path) -> Path:
        """Write the whole model in the published layout; diffusers reads it."""
        autoencoder = self.autoencoder
        if decodes_in_8_bits(autoencoder):  # it is stored as it was
            assert self.info.folder is not None
            autoencoder = load_autoencoder(self.info.folder, variant=self.variant)
        return write_model(
            folder,
            text=self.text,
            transformer=self.transformer,
            autoencoder=autoencoder,
            info=self.info,
            sprint=self.few_step,
            preview=self.read_preview(),
        )


Model = TypeVar("Model", bound=OpenModel)


def open_model(options: LoadOptions) -> OpenModel:
    """The model that the options name. A LoRA's notes are warnings to the caller's caller."""
    # Locate. What is wrong with a LoRA or a device shows before the large files are read.
    variant, memory = options.variant, options.memory_bytes
    folder = locate(options.model, revision=options.revision, variant=variant)
    info = read_info(folder, name=str(options.model))
    loras: list[tuple[Lora, float]] = []
    for source, scale in paired(options.lora, options.lora_scale):
        lora = read_lora(source)
        loras.append((lora, scale))
        for note in () if lora is source else lora.notes:  # whoever has read it has its notes
            warnings.warn(note, stacklevel=3)
    device = resolve_device(options.device)
    check_offload(options, device)
    if options.graph:
        check_graph(options, device)
    text_device = resolve_device(options.text_device or str(device))
    dtype = resolve_dtype(device, options.dtype, stored_dtype(folder, variant))
    others = part_dtype(device, dtype)
    full = options.dtype is not None and dtype == torch.float32
    provenance: dict[str, Any] = {**settle_float32(device, full=full)}

    # Load, and merge the LoRAs. CUDA gets weights from the files, what is to be changed the CPU.
    straight = device.type == "cuda" and options.offload is None
    onto = Onto(device, dtype) if straight and not (loras or options.quantize) else None
    if options.transformer is None:
        transformer = load_transformer(folder, variant=variant, onto=onto)
    else:
        transformer = load_other_transformer(options.transformer, folder, onto=onto)
        provenance["transformer"] = str(options.transformer)
    stored = quantization_of(transformer)
    if stored is not None and options.graph:
        raise ConfigError(
            f"graph is for plain layers, and {options.model} is quantised: leave it out"
        )
    if stored is not None and loras:  # a LoRA's change is added to plain weights
        dequantize(transformer)
    provenance |= apply_loras(transformer, loras)
    controlnet = None
    if options.controlnet is not None:
        controlnet = load_controlnet(options.controlnet, transformer.config, onto, variant=variant)
    if transformer.config.guidance_embeds:
        info = info.sprint
    changed = bool(loras or options.transformer or options.controlnet)
    few_step = None if changed else _few_step(folder, variant, onto)

    # Quantise.
    asked = None if options.quantize is None else Quantization.named(options.quantize)
    if asked is not None and stored is not None:
        raise ConfigError(
            f"{options.model} is quantised already ({stored.scheme}): leave quantize out, or name "
            "the plain model"
        )
    quantization, again = asked or stored, asked or (stored if loras else None)
    if quantization is not None:
        if options.compile:
            raise ConfigError("compile is for plain models: leave it out, or the quantisation")
        provenance["quantization"] = quantization.scheme
        slower = slower_here(quantization, transformer.config.width, device, dtype)
        if slower is not None:
            warnings.warn(slower, stacklevel=3)
    if again is not None:
        for network in filter(None, (transformer, few_step)):
            quantize(network, again)
    for network in filter(None, (transformer, few_step)):
        check_shapes(network, device)

    # Place, pack, compile. With offload weights lie on the host until their turn.
    turns, at = (None, None) if options.offload is None else (Turns(device), HOST)
    in_triton = options.kernels and device.type == "cuda"
    kernels = cache_folder() if options.kernels and not in_triton else None
    if in_triton and quantization is not None and quantization.scheme in ("w8a8", "fp8"):
        raise ConfigError(
            f"kernels on CUDA have no form for {quantization.scheme}: leave kernels out, or "
            "quantize"
        )
    if quantization is not None and quantization.scheme == "w8a8":
        for network in filter(None, (transformer, few_step)):
            join_products(place(network, at or device, dtype), kernels, device=device)
    for network in filter(None, (transformer, controlnet, few_step)):
        if options.compile:
            compile_blocks(place(network, at or device, dtype), device)
        else:
            prepare_for_inference(network, device, dtype, at=at)
        if in_triton:
            use_triton(network, device)
    onto = Onto(device, others) if straight else None
    autoencoder = load_autoencoder(folder, variant=variant, onto=onto)
    in_float32 = (device.type, others) == ("cpu", torch.float32)
    if in_float32 and quantization is not None and quantization.scheme == "w8a8":
        slower = quantize_decoder(autoencoder, kernels)
        if slower is not None:
            warnings.warn(slower, stacklevel=3)
    prepare_for_inference(autoencoder, device, others, at=at)
    if kernels is not None:
        compile_convolutions(autoencoder, kernels)
    # The text encoder, the largest part, comes last: faults of the others show at once.
    alone = text_device.type != device.type
    text_dtype = resolve_dtype(text_device, None, torch.bfloat16) if alone else others
    leaves = text_device == device
    text = load_text(folder, info, device=text_device, dtype=text_dtype, at=at if leaves else None)
    if turns is not None:
        for network in filter(None, (transformer, controlnet, few_step, autoencoder)):
            turns.add(network, stays=options.offload == "text")
        if leaves:
            turns.add(text.model, stays=False)
    return OpenModel(
        text, transformer, autoencoder, info, memory, provenance, controlnet, few_step, variant,
        turns, Graphs() if options.graph else None,
    )  # fmt: skip


def _few_step(folder: Path, variant: str | None, onto: Onto | None) -> Transformer | None:
    """The distilled transformer that a model folder may bring."""
    part = folder / SPRINT_PART
    return load_transformer(part, variant=variant, onto=onto) if part.is_dir() else None


def few_step_model(model: Model, request: Request) -> Model | None:
    """The model with its few-step transformer, where it has one that can draw the request.

    That is for 1 to 4 steps, without a negative prompt and from text alone, or for solver scm.
    """
    if model.few_step is None or request.solver not in (None, "scm"):
        return None
    plain = request.strength is None and not request.negative_prompt.strip()
    short = request.steps is not None and request.steps <= MOST_SPRINT_STEPS
    if request.solver != "scm" and not (plain and short):
        return None
    return replace(model, transformer=model.few_step, info=model.info.sprint, few_step=None)
