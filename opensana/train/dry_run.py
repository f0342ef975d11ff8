"""`opensana train RECIPE --dry-run`: every number that follows from a recipe, before any work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.device import format_bytes
from opensana.errors import ConfigError
from opensana.models.find import autoencoder_config_of, transformer_config_of
from opensana.models.flops import (
    META,
    TEXT_TOKENS,
    Cost,
    autoencoder_cost,
    controlnet_cost,
    image_tokens,
    transformer_cost,
)
from opensana.train.autoencoder.phases import freeze_all_but, phase_prefixes
from opensana.train.engine.parallel import ALONE, Processes, blocks, training_device
from opensana.train.engine.precision import best_format
from opensana.train.optim.optimizers import base_rate
from opensana.train.optim.sizes import FLOAT, held, optimizer_bytes
from opensana.train.recipe import (
    AnyRecipe,
    AutoencoderRecipe,
    CachedRecipe,
    ClipRecipe,
    ControlNetRecipe,
    DistillationRecipe,
    Recipe,
    TransformerRecipe,
    load_recipe,
    require,
)
from opensana.train.transformer.controlnet import choose_trained
from opensana.train.transformer.initial import check_trainable
from opensana.train.transformer.lora import add_adapters, trained_parameters
from opensana.train.workload import peak_of
from opensana.transformer.controlnet import Controlled, ControlNet, control_config
from opensana.transformer.model import Transformer, TransformerConfig

# The share of its peak that a device reaches in a training that is well set up.
USUAL_SHARE = 0.4


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; `gathered`: working copies of weights that are sharded or cast."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Plan:
    """A recipe in numbers. `tokens` and `flops` are of one step of all processes; 0 is unknown.

    `saved` parameters are in a checkpoint, twice, and in the export.
    """

    recipe: Recipe
    processes: int
    samples: int
    parameters: int
    trained: int
    saved: int
    memory: Memory
    tokens: int
    flops: float
    peak: float
    checkpoint: int

    @property
    def rate(self) -> float:
        return base_rate(self.recipe)

    @property
    def seconds(self) -> float:
        """Of one step at the usual share of the peak."""
        return self.flops / (USUAL_SHARE * self.peak * self.processes)

    @property
    def checkpoints(self) -> int:
        """How many are written in the whole run."""
        return -(-self.recipe.steps // self.recipe.checkpoint.every)

    def __str__(self) -> str:
        return "\n".join(f"{name:14} {text}" for name, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        recipe, memory, parallel = self.recipe, self.memory, self.recipe.parallel
        mode = parallel.mode if self.processes > 1 else "alone"
        again = ", activation checkpointing" if parallel.checkpoint_activations else ""
        yield "recipe", f"{recipe.name} ({recipe.kind}), in {recipe.run}"
        yield "processes", f"{self.processes} ({mode}{again})"
        yield "parameters", f"{self.parameters:,}, of which {self.trained:,} train"
        yield (
            "batch",
            f"{recipe.batch:,} = {self.processes} processes x {recipe.accumulate} micro-batches"
            f" x {self.samples} samples",
        )
        if self.tokens:
            yield "tokens", f"{self.tokens:,} a step, texts of up to {TEXT_TOKENS}"
        yield "products", f"{recipe.dtype}, sums and weights in float32"
        schedule = recipe.schedule
        yield (
            "learning rate",
            f"{self.rate:.3g} ({recipe.optimizer.name}, lr {recipe.optimizer.lr:g},"
            f" scale {recipe.optimizer.scale}), warm-up {schedule.warmup:,} steps,"
            f" then {schedule.decay}",
        )
        yield "steps", f"{recipe.steps:,}, {recipe.steps * recipe.batch:,} samples"
        for name, size in vars(memory).items():
            yield f"  {name}", format_bytes(size)
        yield "memory", f"{format_bytes(memory.total)} a device, the sum of these"
        yield "operations", f"{self.flops:.3g} a step, forward and backward"
        per_second = self.tokens / self.seconds if self.tokens else recipe.batch / self.seconds
        yield (
            "speed",
            f"about {per_second:,.0f} {'tokens' if self.tokens else 'samples'}/s,"
            f" {self.seconds:.3g} s a step, {self.seconds * recipe.steps / 3600:,.1f} h in all:"
            f" {USUAL_SHARE:.0%} of {self.processes} x {self.peak / 1e12:,.3g} TFLOPS",
        )
        kept = min(recipe.checkpoint.keep, self.checkpoints)
        yield (
            "checkpoints",
            f"{self.checkpoints:,} of {format_bytes(self.checkpoint)}, the last {kept} kept:"
            f" {format_bytes(kept * self.checkpoint)}; exported weights"
            f" {format_bytes(FLOAT * self.saved)}",
        )


@dataclass(frozen=True)
class Shapes:
    """A model without numbers, what of it trains and is saved, and what a micro-batch costs."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    saved: int
    """Parameters in a checkpoint and in the export."""
    cost: Cost


def dry_run(recipe_path: Path | str, overrides: Sequence[str] = (), *, processes: int = 1) -> str:
    """What follows from a recipe for so many processes, as lines of text; nothing is trained."""
    return str(plan(load_recipe(recipe_path, overrides), processes=processes))


def plan(recipe: AnyRecipe, *, processes: int) -> Plan:
    """A recipe in numbers for so many processes, from shapes alone; ConfigError if it has none."""
    if isinstance(recipe, ClipRecipe):
        raise ConfigError("a clip recipe has no dry run: it takes minutes on one device")
    if isinstance(recipe, DistillationRecipe):
        raise ConfigError("a distillation has no dry run; that of its teacher says what fits")
    require(processes > 0, "processes", processes, "1 or more")
    device = training_device(recipe.parallel.device)
    group = Processes(count=processes, sharded=recipe.parallel.mode == "fsdp" and processes > 1)
    samples = len(group.slots(recipe.batch, recipe.accumulate)[0])
    if recipe.dtype == "auto":
        recipe = replace(recipe, dtype=best_format(device))
    half = isinstance(recipe, CachedRecipe) and recipe.dtype == "bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    products = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    tokens, passes = 0, 1
    if isinstance(recipe, AutoencoderRecipe):
        shapes = _shapes_of_autoencoder(recipe, samples)
    else:
        samples *= recipe.data.repeat
        config = _transformer_config(recipe)
        if isinstance(recipe, ControlNetRecipe):
            shapes = _shapes_of_controlnet(recipe, config, samples, dtype)
        else:
            passes = 1 if recipe.prior is None else 2
            shapes = _shapes_of_transformer(recipe, config, samples, dtype)
        tokens = recipe.batch * recipe.data.repeat * passes * image_tokens(config)
    saved = optimizer_bytes(recipe.optimizer.name, shapes.trained, ALONE)
    return Plan(
        recipe=recipe,
        processes=processes,
        samples=samples,
        parameters=sum(p.numel() for p in shapes.model.parameters()),
        trained=sum(p.numel() for p in shapes.trained.values()),
        saved=shapes.saved,
        memory=_memory(recipe, shapes, group, dtype),
        tokens=tokens,
        flops=shapes.cost.flops * processes * recipe.accumulate * passes,
        peak=peak_of(recipe.parallel, device, products),
        checkpoint=2 * FLOAT * shapes.saved + saved,
    )


def _shapes_of_transformer(
    recipe: TransformerRecipe, config: TransformerConfig, samples: int, dtype: torch.dtype
) -> Shapes:
    with META:
        model = Transformer(config)
        if recipe.lora is not None:
            add_adapters(model, recipe.lora, seed=recipe.seed)
    trained = trained_parameters(model)
    saved = model.parameters() if recipe.lora is None else trained.values()
    cost = transformer_cost(config, samples=samples, dtype=dtype)
    return Shapes(model, trained, sum(p.numel() for p in saved), cost)


def _shapes_of_controlnet(
    recipe: ControlNetRecipe, config: TransformerConfig, samples: int, dtype: torch.dtype
) -> Shapes:
    with META:
        base = Transformer(config).requires_grad_(False)
        control = ControlNet(control_config(config, recipe.blocks))
    choose_trained(control)
    model = Controlled(base, control)
    cost = controlnet_cost(model.to(dtype), samples=samples)
    saved = sum(p.numel() for p in control.parameters())
    return Shapes(model, trained_parameters(control), saved, cost)


def _shapes_of_autoencoder(recipe: AutoencoderRecipe, samples: int) -> Shapes:
    with META:
        model = Autoencoder(
            AutoencoderConfig.from_dict(recipe.model)
            if recipe.model is not None
            else autoencoder_config_of(str(recipe.initial))
        )
    trained = freeze_all_but(model, phase_prefixes(recipe, model.config))
    cost = autoencoder_cost(model, samples=samples, crop=recipe.data.crop)
    return Shapes(model, trained, sum(p.numel() for p in model.parameters()), cost)


def _memory(recipe: Recipe, shapes: Shapes, processes: Processes, dtype: torch.dtype) -> Memory:
    model, trained, cost = shapes.model, shapes.trained, shapes.cost
    learnt = FLOAT * sum(held(p.shape, processes) for p in trained.values())
    recomputing = recipe.parallel.checkpoint_activations
    total = sum(p.numel() for p in model.parameters())
    gathered = total * dtype.itemsize if dtype != torch.float32 else 0
    if processes.sharded:
        # FSDP gathers the current block, the next one and the root, and one block's gradients.
        sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
        gathered = (2 * max(sizes) + total - sum(sizes)) * dtype.itemsize + max(sizes) * FLOAT
    return Memory(
        weights=FLOAT * sum(held(p.shape, processes) for p in model.parameters()),
        gradients=learnt,
        optimizer=optimizer_bytes(recipe.optimizer.name, trained, processes),
        average=learnt,
        gathered=gathered,
        activations=cost.kept_with_recomputing if recomputing else cost.kept,
    )


def _transformer_config(recipe: TransformerRecipe | ControlNetRecipe) -> TransformerConfig:
    if isinstance(recipe, ControlNetRecipe):  # whose transformer stays as it is
        return transformer_config_of(recipe.initial)
    if recipe.model is not None:
        return TransformerConfig.from_dict(recipe.model)
    assert recipe.initial is not None
    check_trainable(recipe.initial)
    return transformer_config_of(recipe.initial)
