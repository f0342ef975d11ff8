"""Low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685), through peft."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from opensana.errors import ConfigError, MissingExtraError, near
from opensana.train.checkpoints.export import Export
from opensana.train.engine.parallel import Processes
from opensana.train.engine.randomness import drawn_by
from opensana.train.engine.task import ModuleState, Part
from opensana.train.recipe import LoraRecipe, TransformerRecipe
from opensana.train.transformer.networks import PlainNetwork
from opensana.transformer.model import Transformer
from opensana.weights.lora import FILE, PREFIX, lora_metadata

# What peft calls the only adapter of a model; the name stands inside parameter names.
ADAPTER = "default"


def add_adapters(model: nn.Module, recipe: LoraRecipe, *, seed: int) -> None:
    """Freeze the model and put an adapter on each layer that a target names, in place.

    The first matrix is random and depends on the seed alone, the second is zero: at first the model
    computes what it did. ConfigError for a target that names no layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("lora", "peft") from error
    check_targets(model, recipe.targets)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets),
    )
    with drawn_by(seed, "lora"):
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    """Each target must be the end of the name of a linear layer or a plain convolution."""
    names = [
        name.split(".")
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    ends = {".".join(parts[start:]) for parts in names for start in range(len(parts))}
    for target in targets:
        if target not in ends:
            raise ConfigError(
                f"lora.targets: {target!r} names no linear layer of the transformer"
                f"{near(target, ends)}; usual are to_q, to_k, to_v and to_out.0"
            )


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by their names in the model."""
    return {name: value for name, value in model.state_dict().items() if ".lora_" in name}


class AdapterState:
    """The adapters alone as a part of a checkpoint: the frozen weights are those of `initial`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_tensors(self) -> dict[str, Tensor]:
        return adapters(self.module)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        ours = adapters(self.module)
        frozen = {n: v for n, v in self.module.state_dict().items() if n not in ours}
        ModuleState(self.module).load_state_tensors({**frozen, **tensors})


class LoraNetwork:
    """Adapters on a frozen transformer: they alone train, are saved and are exported."""

    def __init__(
        self,
        model: Transformer,
        recipe: TransformerRecipe,
        options: LoraRecipe,
        processes: Processes,
    ) -> None:
        add_adapters(model, options, seed=recipe.seed)
        plain = PlainNetwork(model, recipe, processes)
        self.run, self.options = Path(recipe.run), options
        self.trained, self.average, self.engine = plain.trained, plain.average, plain.engine
        self.velocity_for, self.averaged_velocity = plain.velocity_for, plain.averaged_velocity
        modules = {"model": plain.trained, "ema": plain.average.module}
        self.parts: dict[str, Part] = {n: AdapterState(module) for n, module in modules.items()}

    def export(self) -> Export:
        return lora_export(self.options, self.average.module, self.run)


def lora_export(options: LoraRecipe, model: nn.Module, run: Path) -> Export:
    """`pytorch_lora_weights.safetensors` as diffusers reads it, with peft's settings."""
    state = {
        PREFIX + name.replace(f".{ADAPTER}.", "."): value.detach().to("cpu", copy=True)
        for name, value in adapters(model).items()
    }
    settings = {
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": list(options.targets),
    }
    name = FILE.removesuffix(".safetensors")
    return Export(run / "export", None, state, name=name, metadata=lora_metadata(settings))
