"""Training a small CLIP on the emoji and the text encoder's states of their captions (paper 3.1).

A batch is contrasted as a whole: B pictures with K captions of each, drawn anew for every step.
Captions of one picture, and pictures with one caption, are never negatives of each other.

B pictures, T = B * K texts, N tokens, S text channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from opensana.config import build
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.device import sent
from opensana.errors import DataError
from opensana.features.texts import Texts
from opensana.metrics.small_clip import Clip, ClipConfig, contrastive_loss
from opensana.train.checkpoints.export import Export
from opensana.train.engine.compilation import compiled
from opensana.train.engine.ema import Average
from opensana.train.engine.figures import Figures, Watch
from opensana.train.engine.loop import drive, require_finite
from opensana.train.engine.parallel import ALONE, Processes, clip_gradients
from opensana.train.engine.precision import products
from opensana.train.engine.randomness import (
    drawn_by,
    numpy_generator,
    samples_of_step,
    torch_generator,
)
from opensana.train.engine.task import ModuleState, Part
from opensana.train.monitor.metrics import Workload
from opensana.train.optim.optimizers import Optimizers, rate_at
from opensana.train.recipe import ClipDataRecipe, ClipRecipe, require
from opensana.train.transformer.initial import standardise_inputs

TOP = 5
EVALUATED_AT_ONCE = 256


@dataclass(frozen=True)
class ClipBatch:
    """Pixels [B, 3, H, W] in -1..1, states [T, N, S], their mask, and the positive pairs [B, T]."""

    pixels: Tensor
    states: Tensor
    mask: Tensor
    positive: Tensor
    names: list[str]


def train_clip(recipe: ClipRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, ClipTask)


class ClipTask:
    """The model, its average, its optimiser, the pictures and the states of their captions."""

    def __init__(self, recipe: ClipRecipe, processes: Processes = ALONE) -> None:
        require(
            processes.alone, "processes", processes.count, "1: a batch is contrasted as a whole"
        )
        self.recipe, self.device = recipe, processes.device
        self.work = Workload(recipe.batch, device=self.device)
        config = build(ClipConfig, recipe.model, where="[model]")
        data = EmojiData.open(recipe.data.folder)
        self.records = data.plain
        self.pictures = shrunk_pictures(data, self.records, config.size)
        self.texts = Texts.open(recipe.data.text)
        require(
            config.text_channels == self.texts.null.shape[-1],
            "model.text_channels",
            config.text_channels,
            f"{self.texts.null.shape[-1]}, as the states in {recipe.data.text}",
        )
        self.ids = caption_ids(self.records, self.texts, recipe.data.text)
        with drawn_by(recipe.seed, "initialisation"):
            self.model = Clip(config)
        standardise_inputs(self.model.text.project, self.texts)
        self.model.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = Average(self.model, decay=recipe.ema)
        self.optimizer = Optimizers(dict(self.model.named_parameters()), recipe.optimizer)
        self.engine = compiled(self.model) if recipe.compile else self.model
        self.watch = Watch(self.device)
        self.parts: dict[str, Part] = {
            "model": ModuleState(self.model),
            "ema": ModuleState(self.average.module),
            "optimizer": self.optimizer,
        }

    def prepare(self, step: int) -> ClipBatch:
        recipe, data = self.recipe, self.recipe.data
        count = len(self.records)
        chosen = samples_of_step(step, batch=recipe.batch, count=count, seed=recipe.seed)
        rows = [row for _, row in chosen]
        draw = numpy_generator(recipe.seed, step, "captions")
        known = [self.ids[row] for row in rows]
        captions = [
            ids[int(draw.integers(len(ids)))] for _ in range(data.captions) for ids in known
        ]
        pictures = self.pictures[torch.tensor(rows)]
        states, mask = self.texts.batch(captions)
        pixels = varied(pictures, data, torch_generator(recipe.seed, step, "varied"))
        positive = belonging(rows, captions, known)
        pixels, states, mask, positive = (
            sent(part, self.device) for part in (pixels, states, mask, positive)
        )
        names = [self.records[row].label for row in rows]
        return ClipBatch(pixels, states, mask, positive, names)

    def train(self, step: int, batch: ClipBatch) -> Figures:
        """One step of symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3)."""
        recipe, device = self.recipe, self.device

        # Data and loss
        pixels = batch.pixels.to(memory_format=torch.channels_last)
        with products(recipe, device):
            logits = self.engine(pixels, batch.states, batch.mask)
        loss = contrastive_loss(logits.float(), batch.positive)

        # Backward and gradient clip
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_gradients(self.optimizer.parameters, recipe.clip)

        # Metrics
        rate = rate_at(recipe, step)

        def told(found: dict[str, Tensor]) -> dict[str, float]:
            values = {name: float(value) for name, value in found.items()}
            require_finite(step, batch.names, **values)
            return {"loss": values["loss"], "lr": rate, "gradient": values["gradient"]}

        figures = self.watch.read({"loss": loss, "gradient": norm}, told)

        # Update, then the EMA weights
        self.optimizer.step(lr=rate, found_inf=self.watch.found_inf)
        self.average.update(self.model, step)
        return figures

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """How often a held-out caption finds its picture: among all, and in the vocabulary."""
        model, parts = self.average.module, self.pictures.split(EVALUATED_AT_ONCE)
        pictures = torch.cat([model.embed_images(on_white(p).to(self.device)) for p in parts])
        known = [row for row, record in enumerate(self.records) if record.vocabulary]
        found = {
            f"{name}_top{count}": share
            for name, rows in {"all": range(len(self.records)), "vocabulary": known}.items()
            for count, share in self._retrieved(pictures, list(rows)).items()
        }
        return {**found, "scale": float(model.log_scale.exp())}

    def draw(self, step: int) -> None:
        """Nothing: a CLIP makes no pictures."""

    def export(self) -> Export:
        """In half precision: the scores change in their fourth digit."""
        state = self.average.module.state_dict()
        half = {name: value.half() for name, value in state.items()}
        return Export(Path(self.recipe.run) / "export", self.model.config.to_dict(), half)

    def _retrieved(self, pictures: Tensor, rows: Sequence[int]) -> dict[int, float]:
        held = [(index, self.records[row].held_out_caption) for index, row in enumerate(rows)]
        asked = [(index, caption.text) for index, caption in held if caption]
        if not asked:
            return {}
        known = {text: index for index, text in enumerate(self.texts.captions)}
        states, mask = self.texts.batch([known[text] for _, text in asked])
        texts = self.average.module.embed_texts(states.to(self.device), mask.to(self.device))
        cosines = texts @ pictures[rows].T
        right = cosines.gather(1, torch.tensor([[index] for index, _ in asked]).to(self.device))
        ranks = (cosines > right).sum(1)
        return {count: float((ranks < count).float().mean()) for count in (1, TOP)}


def caption_ids(records: Sequence[Record], texts: Texts, folder: str) -> list[list[int]]:
    """The cached training captions of each record; DataError if one is missing."""
    known = {text: index for index, text in enumerate(texts.captions)}
    missing = [c.text for record in records for c in record.captions if c.text not in known]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} captions, such as {missing[0]!r}; make it with: "
            f"python recipes/emoji/caption.py --to {folder}"
        )
    return [[known[c.text] for c in record.training_captions] for record in records]


def belonging(rows: Sequence[int], captions: Sequence[int], ids: Sequence[list[int]]) -> Tensor:
    """[B, T]: is the text one of the picture's captions, or of another draw of the picture?

    `rows` name the pictures, `ids` all captions of each; text t was drawn for picture t modulo B.
    """
    picture = torch.tensor(rows)
    drawn_for = picture.repeat(len(captions) // len(rows))
    shared = torch.tensor([[caption in known for caption in captions] for known in ids])
    return shared | (picture[:, None] == drawn_for)


def shrunk_pictures(data: EmojiData, records: Sequence[Record], size: int) -> Tensor:
    """uint8 [K, 4, S, S], colours premultiplied by alpha, averaged over areas."""
    shrunk = []
    for record in records:
        levels = torch.from_numpy(np.array(data.pictures[record.index])).permute(2, 0, 1).float()
        layer = torch.cat([levels[:3] * levels[3:] / 255, levels[3:]])
        shrunk.append(functional.adaptive_avg_pool2d(layer, size).round().to(torch.uint8))
    return torch.stack(shrunk)


def on_white(pictures: Tensor) -> Tensor:
    """Premultiplied uint8 [B, 4, S, S] as pixels [B, 3, S, S] in -1..1."""
    return laid_on(pictures.float() / 255, torch.ones(len(pictures), 3))


def laid_on(layers: Tensor, grounds: Tensor) -> Tensor:
    """Premultiplied layers [B, 4, S, S] in 0..1 over plain colours [B, 3], in -1..1."""
    return 2 * (layers[:, :3] + (1 - layers[:, 3:]) * grounds[:, :, None, None]) - 1


def varied(pictures: Tensor, data: ClipDataRecipe, generator: torch.Generator) -> Tensor:
    """Pixels [B, 3, S, S] of premultiplied uint8 pictures: zoomed, moved, on some colour."""
    count = len(pictures)
    zoom, *shifts = (2 * torch.rand(3, count, generator=generator) - 1).unbind()
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 + data.zoom * zoom
    affine[:, :, 2] = 2 * data.shift * torch.stack(shifts, dim=1)
    grid = functional.affine_grid(affine, list(pictures.shape), align_corners=False)
    layers = functional.grid_sample(pictures.float() / 255, grid, align_corners=False)
    grounds = torch.rand(count, 3, generator=generator)
    white = torch.rand(count, 1, generator=generator) < data.white
    return laid_on(layers, torch.where(white, 1.0, grounds))
