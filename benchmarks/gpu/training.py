"""Steps of the trainer itself on features of random numbers: 0.6B at 512 px by its recipe."""

import copy
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.gpu.measuring import attempt, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import TINY_TRANSFORMER, fill
from benchmarks.timing import finished
from opensana.features.latents import Sample, write_features
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.train.engine.parallel import Processes
from opensana.train.engine.precision import best_format
from opensana.train.recipe import TransformerRecipe, load_recipe
from opensana.train.transformer.batches import Stream
from opensana.train.transformer.drawing import drawn_texts
from opensana.train.transformer.networks import PlainNetwork
from opensana.train.transformer.task import FlowTask
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer

RECIPE = "recipes/sana/600m-1-512.toml"
ALONE = (
    "parallel.mode=ddp",
    "parallel.checkpoint_activations=false",
    "evaluate.pictures=2",
    "evaluate.batch=2",
    "schedule.warmup=1",
)
VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "came_16": (16, ("optimizer.name=came",)),
    "adamw_16": (16, ("optimizer.name=adamw",)),
    "muon_16": (16, ("optimizer.name=muon",)),
    "adamw_32": (32, ("optimizer.name=adamw",)),
    "adamw_64": (64, ("optimizer.name=adamw",)),
    "adamw_64_recomputed": (
        64,
        ("optimizer.name=adamw", "parallel.checkpoint_activations=true"),
    ),
    "adamw_32_compiled": (32, ("optimizer.name=adamw", "compile=true")),
}
"""Batch and overrides. Compiling comes last: how long it takes is not known."""
TINY_VARIANTS, TINY_BATCH = ("came_16", "adamw_16", "muon_16", "adamw_64_recomputed"), 4
TINY_MODEL = ("num_attention_heads", "num_cross_attention_heads", "cross_attention_head_dim",
              "cross_attention_dim", "num_layers", "sample_size", "caption_channels")  # fmt: skip
STEPS, SAMPLES, LONGEST_TEXT = 4, 64, 120


def run(setting: Setting, note: Note) -> None:
    with TemporaryDirectory() as name:
        dtype, variants = best_format(setting.device), TINY_VARIANTS if setting.tiny else VARIANTS
        recipes = {v: recipe_of(setting, v, Path(name), dtype=dtype) for v in variants}
        config = TransformerConfig.from_dict(recipes["came_16"].model or {})
        write_random_features(Path(name) / "cache", config)
        with setting.device:
            model = Transformer(config)
        fill(model)  # once: 600 million numbers take seconds
        for variant, recipe in recipes.items():
            found = attempt(setting, lambda recipe=recipe: measured(setting, recipe, model))
            note(variant, found)


def recipe_of(setting: Setting, variant: str, folder: Path, *, dtype: str) -> TransformerRecipe:
    batch, changes = VARIANTS[variant]
    own = [f"data.folder={folder / 'cache'}", f"run={folder / 'run'}", *ALONE, *changes]
    own += [f"dtype={dtype}", f"batch={TINY_BATCH if setting.tiny else batch}"]
    if setting.tiny:
        own += [f"model.{name}={getattr(TINY_TRANSFORMER, name)}" for name in TINY_MODEL]
    recipe = load_recipe(RECIPE, own)
    assert isinstance(recipe, TransformerRecipe)
    return recipe


def write_random_features(folder: Path, config: TransformerConfig) -> None:
    """A cache of a few samples with one caption each, of 10 to LONGEST_TEXT tokens."""
    random, side = np.random.default_rng(0), config.sample_size
    keys: dict[str, str] = dict.fromkeys(TEXT_KEYS, "random")
    lengths = np.linspace(10, LONGEST_TEXT, SAMPLES).astype(int)
    states = [random.standard_normal((n, config.caption_channels)) for n in lengths]
    text = folder.with_name("text")
    with write_text(text, keys=keys, null=states[0][:2]) as texts:
        texts.add([f"caption {index}" for index in range(SAMPLES)], states)
    with write_features(folder, keys={}, text=text) as writer:
        latents = random.standard_normal((SAMPLES, config.in_channels, side, side))
        writer.add(latents, [Sample(str(i), (i,), (None,), ("random",)) for i in range(SAMPLES)])


def measured(setting: Setting, recipe: TransformerRecipe, model: Transformer) -> dict[str, float]:
    """Samples a second, peak memory and MFU of whole steps, and the loader's share of each.

    The trainer prepares a batch while it trains on another, so a share above 1 is what it waits
    for.
    """
    device = setting.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    processes, stream = Processes(device=device), Stream.open(recipe, device=device)
    network = PlainNetwork(copy.deepcopy(model).train(), recipe, processes)
    drawn = drawn_texts(recipe, stream.features, processes)
    task = FlowTask(recipe, network, [stream], drawn, processes)
    begun = time.perf_counter()
    batches = [task.prepare(step) for step in range(STEPS)]
    loading = (time.perf_counter() - begun) / STEPS
    for step in range(2):  # compiling, and the second text length
        task.train(step, batches[step])()
    seconds = step_seconds(device, task, batches)
    speeds = task.work.speeds(seconds)
    found = {
        "ms_a_step": short(1000 * seconds),
        "samples_per_second": short(speeds["samples_per_second"]),
        "loader_share": short(loading / seconds),
    }
    if "mfu" in speeds:
        found["mfu"] = short(speeds["mfu"])
    if device.type == "cuda":
        found["peak_gib"] = short(torch.cuda.max_memory_allocated(device) / 2**30)
    return found


def step_seconds(device: torch.device, task: FlowTask, batches: list[list]) -> float:
    def steps() -> None:
        before = None
        for step, batch in enumerate(batches, len(batches)):
            figures = task.train(step, batch)
            if before:  # as the trainer does
                before()
            before = figures

    begun = time.perf_counter()
    finished(device, steps)()
    return (time.perf_counter() - begun) / len(batches)
