"""LoRAs for some pictures of a model: a second transformer that shares all but the changed layers.

A changed layer is made from the stored weights as `open_model` makes it: merged in float32 on the
CPU, rounded once, quantised, placed, packed. So a picture is the one of a model that was opened
with these LoRAs, bit for bit. A product beside the plain one, W x + s B (A x), would take less
memory and let all LoRAs share a batch, but it rounds otherwise: such pictures would be no other
program's, and not those of the same model saved with its LoRA.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic

import torch
from torch import nn

from opensana.errors import ConfigError
from opensana.layers.weight_only import WeightOnlyLinear
from opensana.models.load import load_other_transformer, load_transformer
from opensana.models.open import Model
from opensana.models.options import LoadOptions
from opensana.runtime.fused import FusedBlock, fuse, is_fused
from opensana.runtime.placing import place, prepare_for_inference
from opensana.runtime.quantize import (
    Quantization,
    dequantised_layer,
    dequantize,
    quantised_layer,
    quantization_of,
    quantize,
)
from opensana.transformer.model import Transformer
from opensana.weights.locate import locate
from opensana.weights.lora import (
    Lora,
    MergedLora,
    apply_loras,
    check_fit,
    lora_provenance,
    merged_loras,
    merged_weight,
    paired,
    read_lora,
)

Layer = nn.Linear | nn.Conv2d | WeightOnlyLinear
Merged = Sequence[tuple[Lora, float]]
SETTINGS = ("then", "quantise", "twice")
"""What packing and quantising a whole network set on single layers."""


def check_options(options: LoadOptions) -> None:
    """ConfigError for compiled blocks."""
    if options.compile:
        raise ConfigError(
            "LoRAs that a request may name need new layers, and compiled blocks are fixed; leave "
            "compile out, or the LoRAs"
        )


class WithLoras(Generic[Model]):
    """An open model, and its stored weights to merge LoRAs into."""

    def __init__(self, model: Model, options: LoadOptions) -> None:
        """`options` are those that the model was opened with."""
        check_options(options)
        self.model = model
        folder = locate(options.model, revision=options.revision, variant=options.variant)
        if options.transformer is None:
            self._stored = load_transformer(folder, variant=options.variant)
        else:
            self._stored = load_other_transformer(options.transformer, folder)
        # LoRAs that the model was opened with come first, as if all were named together.
        sources = paired(options.lora, options.lora_scale)
        self._first = [(read_lora(source), scale) for source, scale in sources]

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        """The stored layers by their published names."""
        found = self._stored.named_modules()
        return {name: layer for name, layer in found if isinstance(layer, Layer)}

    @cached_property
    def sides(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each layer that a LoRA may change."""
        return {name: _sides(layer) for name, layer in self._layers.items()}

    def check(self, lora: Lora) -> None:
        """WeightsError for a LoRA of another architecture."""
        check_fit(lora, self.sides)

    def described(self, loras: Sequence[MergedLora]) -> Model:
        """The model as pictures with these LoRAs record it; its transformer is the plain one."""
        known = self.model.provenance
        provenance = {**known, **lora_provenance([*merged_loras(known), *loras])}
        if (scheme := provenance.pop("quantization", None)) is not None:
            provenance["quantization"] = scheme  # last, as `open_model` has it
        return replace(self.model, few_step=None, provenance=provenance)

    def bytes(self, loras: Merged) -> int:
        """How much memory `transformer` takes beside the model's own, at most."""
        return sum(self._plain_bytes(name) for name in self._changed(loras))

    @property
    def all_bytes(self) -> int:
        """`bytes` of LoRAs that change every layer."""
        return sum(map(self._plain_bytes, self._layers))

    def _plain_bytes(self, name: str) -> int:
        outputs, inputs = self.sides[name]
        return outputs * inputs * self.model.transformer.dtype.itemsize

    def _changed(self, loras: Merged) -> set[str]:
        """The layers to make anew. A quantised or fused model is made again as a whole."""
        if is_fused(self.model.transformer):
            return set(self._layers)
        names = {name for lora, _ in loras for name in lora.layers}
        quantised = (name for name, one in self._layers.items() if _is_quantised(one))
        return names.union(quantised)

    @torch.no_grad()
    def transformer(self, loras: Merged) -> Transformer:
        """The transformer with LoRAs merged, which were checked; it shares all other layers."""
        network = self.model.transformer
        quantization = quantization_of(network)
        all = [*self._first, *loras]
        if is_fused(network):
            return self._fused(network, all, quantization)
        layers = {
            name: self._remade(name, all, network.get_submodule(name), quantization)
            for name in self._changed(loras)
        }
        return _grafted(network, layers)

    def _fused(
        self, old: Transformer, loras: Merged, quantization: Quantization | None
    ) -> Transformer:
        """All of it with LoRAs, where and as the old one runs: fused blocks join several layers."""
        made = copy.deepcopy(self._stored)
        if quantization_of(made) is not None:
            dequantize(made)
        apply_loras(made, loras)
        if quantization is not None:
            quantize(made, quantization)
        fuse(place(made, next(old.parameters()).device, old.dtype))
        for new, block in zip(made.transformer_blocks, old.transformer_blocks, strict=True):
            if isinstance(new, FusedBlock) and isinstance(block, FusedBlock):
                new.attn1.core, new.ff.middle = block.attn1.core, block.ff.middle
        return made

    def _remade(
        self, name: str, loras: Merged, old: nn.Module, quantization: Quantization | None
    ) -> nn.Module:
        """A layer with LoRAs, where and as the old one runs."""
        stored = self._layers[name]
        made: nn.Module = _copied(stored)
        weight = made.weight
        assert isinstance(weight, nn.Parameter)
        for lora, scale in loras:
            if (change := lora.layers.get(name)) is not None:
                weight.data = merged_weight(weight.data, change, scale)
        if _is_quantised(old):
            assert quantization is not None and isinstance(made, nn.Linear | nn.Conv2d)
            made = quantised_layer(made, quantization)
        model = self.model
        holder = nn.Sequential(made)
        prepare_for_inference(holder, model.device, model.transformer.dtype)
        for setting in SETTINGS:
            if setting in vars(old):
                setattr(holder[0], setting, vars(old)[setting])
        return holder[0]


def _sides(layer: Layer) -> tuple[int, int]:
    if isinstance(layer, WeightOnlyLinear):
        return layer.out_features, layer.in_features
    outputs, inputs = layer.weight.flatten(1).shape
    return outputs, inputs


def _is_quantised(layer: nn.Module) -> bool:
    return isinstance(layer, WeightOnlyLinear)


def _copied(layer: Layer) -> nn.Linear | nn.Conv2d:
    """A plain layer whose parameters may be set without changing the stored one."""
    if isinstance(layer, WeightOnlyLinear):
        return dequantised_layer(layer)
    made = copy.copy(layer)
    made._parameters = {
        name: None if old is None else nn.Parameter(old.data, requires_grad=False)
        for name, old in layer._parameters.items()
    }
    return made


def _grafted(network: Any, layers: Mapping[str, nn.Module]) -> Any:
    """A copy of a module with other layers at some dotted names; it shares all else."""
    found = copy.copy(network)
    found._modules = dict(network._modules)
    inside: dict[str, dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        head, _, rest = name.partition(".")
        if rest:
            inside.setdefault(head, {})[rest] = layer
        else:
            found._modules[head] = layer
    for head, rest in inside.items():
        found._modules[head] = _grafted(network._modules[head], rest)
    return found
