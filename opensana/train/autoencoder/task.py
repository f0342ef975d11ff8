"""Training the autoencoder in the three phases of the DC-AE paper (3.3, figure 6).

full: everything, on low-resolution crops. latent: the layers around the latent, on high-resolution
pictures. refine: the decoder's last layers, with a PatchGAN. And one that the paper does not have,
for published weights: decoder, all of it, below an encoder that stays. What is measured, drawn and
exported are the EMA weights.

B batch, C latent channels, H W picture size, h w latent size. Pixels are in [-1, 1].
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.datasets.crops import PictureSource, stacked
from opensana.errors import DataError
from opensana.metrics.reconstruction import psnr
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import from_levels
from opensana.train.autoencoder.losses import ReconstructionLoss
from opensana.train.autoencoder.patch_gan import PatchGan
from opensana.train.autoencoder.phases import freeze_all_but, phase_prefixes
from opensana.train.checkpoints.export import Export
from opensana.train.engine.compilation import compiled
from opensana.train.engine.ema import Average
from opensana.train.engine.figures import Figures, Watch
from opensana.train.engine.loop import drive, require_finite
from opensana.train.engine.parallel import ALONE, Processes, clip_gradients, distributed, unsharded
from opensana.train.engine.precision import products
from opensana.train.engine.randomness import drawn_by, numpy_generator, samples_of_step
from opensana.train.engine.task import ModuleState, Part
from opensana.train.monitor.metrics import Workload
from opensana.train.monitor.samples import to_bytes, write_grid
from opensana.train.optim.optimizers import Optimizers, base_rate, rate_at
from opensana.train.recipe import AutoencoderRecipe, require
from opensana.train.transformer.initial import trainable


@dataclass(frozen=True)
class CropBatch:
    """uint8 pictures [B, 3, H, W] and the names of the samples of the whole step."""

    pictures: np.ndarray
    names: list[str]


def train_autoencoder(recipe: AutoencoderRecipe) -> None:
    """Run one phase to its end; the same call resumes it."""
    drive(recipe, AutoencoderTask, draw_every=recipe.samples.every)


class AutoencoderTask:
    """The model, its average, its optimisers and its pictures."""

    def __init__(self, recipe: AutoencoderRecipe, processes: Processes = ALONE) -> None:
        self.recipe, self.processes = recipe, processes
        self.work = Workload(recipe.batch, device=processes.device)
        (self.slots,) = processes.slots(recipe.batch, recipe.accumulate)
        self.source = _open(recipe, "train")
        if not len(self.source):
            raise DataError(f"{recipe.data.folder} has no training pictures")
        self.model = initial_autoencoder(recipe)
        unit = self.model.compression
        require(
            recipe.data.crop % unit == 0, "data.crop", recipe.data.crop, f"a multiple of {unit}"
        )
        self.layout = layout_on(processes.device, recipe)
        self.model.to(processes.device, memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        trained = freeze_all_but(self.model, phase_prefixes(recipe, self.model.config))
        self.average = Average(self.model, decay=recipe.ema)
        self.optimizer = Optimizers(trained, recipe.optimizer)
        self.loss = ReconstructionLoss(recipe.loss)
        engine = distributed(self.model, recipe.parallel, processes)
        self.reconstruct = compiled(engine) if recipe.compile else engine
        self.parts: dict[str, Part] = {
            "model": ModuleState(self.model),
            "ema": ModuleState(self.average.module),
            "optimizer": self.optimizer,
        }
        head = self.model.decoder.conv_out.named_parameters()
        self.last_layer = [p for name, p in head if name.endswith("weight")][-1]
        self.gan = PatchGan(recipe, processes) if recipe.loss.gan else None
        self.watch = Watch(processes.device)
        if self.gan:
            self.parts["discriminator"] = ModuleState(self.gan.discriminator)
            self.parts["discriminator_optimizer"] = self.gan.optimizer
        self.fixed = fixed_pictures(recipe, self.source)

    def prepare(self, step: int) -> CropBatch:
        recipe = self.recipe
        chosen = samples_of_step(step, batch=recipe.batch, count=len(self.source), seed=recipe.seed)
        crops = [
            self.source.sample(
                chosen[slot][1], numpy_generator(recipe.seed, step, slot, "crop"), recipe.data.crop
            )
            for slot in self.slots
        ]
        return CropBatch(stacked(crops), [self.source.name(index) for _, index in chosen])

    def train(self, step: int, batch: CropBatch) -> Figures:
        """One step of a phase (DC-AE paper 3.3), then one of the discriminator if it has begun."""
        recipe, gan = self.recipe, self.gan if step >= self.recipe.loss.gan_start else None

        # Data: pixels [B, 3, H, W]
        pixels = self._placed(batch.pictures)

        with products(recipe, pixels.device):
            # Reconstruction
            output = self.reconstruct(pixels).float()

            # Loss
            terms = self.loss.terms(output, pixels)
            loss = self.loss.weighted(terms)
            if gan:
                adversarial, terms_of_gan = gan.decoder_loss(output, loss, self.last_layer)
                loss, terms = loss + adversarial, terms | terms_of_gan

        # Backward and gradient clip
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_gradients(self.optimizer.parameters, recipe.clip)

        # Metrics
        rate, processes = rate_at(recipe, step), self.processes

        def told(found: dict[str, Tensor]) -> dict[str, float]:
            *values, gradient = (float(value) for value in found.values())
            means = processes.mean(dict(zip(found, values, strict=False)))
            require_finite(step, batch.names, **means, gradient=gradient)
            return {**means, "lr": rate, "gradient": gradient}

        figures = self.watch.read({"loss": loss, **terms, "gradient": norm}, told)

        # Update, then the EMA weights
        self.optimizer.step(lr=rate, found_inf=self.watch.found_inf)
        self.average.update(self.model, step)
        if not gan:
            return figures

        # The discriminator's own step, at a rate that falls as the decoder's
        with products(recipe, pixels.device):
            of_discriminator = gan.loss(pixels, output.detach())
        gan.backward(of_discriminator)

        def judged(found: dict[str, Tensor]) -> dict[str, float]:
            value = processes.mean({"judge": float(found["judge"])})
            require_finite(step, batch.names, **value)
            return value

        judge = self.watch.read({"judge": of_discriminator}, judged)
        lr = rate / base_rate(recipe) * recipe.discriminator.lr
        gan.optimizer.step(lr=lr, found_inf=self.watch.found_inf)
        return lambda: figures() | judge()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR of whole pictures on white with the EMA weights, and the latent's scale."""
        model, figures = self.average.module, {}
        for split, pictures in self.fixed.items():
            values = [psnr(model(pixels), pixels) for pixels in self._batches(pictures)]
            figures[f"psnr_{split}"] = float(torch.cat(values).mean())
        return {**figures, "latent_std": self._latent_std()}

    @torch.no_grad()
    def draw(self, step: int) -> None:
        pictures = next(iter(self.fixed.values()))[: self.recipe.samples.pictures]
        pixels = self._placed(pictures)
        rows = torch.stack([pixels, self.average.module(pixels)], dim=1).flatten(0, 1)
        if self.processes.first:
            write_grid(Path(self.recipe.run), step, to_bytes(rows), columns=8)

    def export(self) -> Export:
        config = self.model.config
        if self.recipe.scaling == "measured":
            config = replace(config, scaling_factor=round(1 / self._latent_std(), 6))
        folder = Path(self.recipe.run) / "export"
        state = unsharded(self.average.module.state_dict(), self.processes)
        return Export(folder, config.to_dict(), state)

    def _batches(self, pictures: np.ndarray) -> list[Tensor]:
        batch = self.recipe.evaluate.batch
        starts = range(0, len(pictures), batch)
        return [self._placed(pictures[i : i + batch]) for i in starts]

    def _placed(self, pictures: np.ndarray) -> Tensor:
        """Pixels where and as the model wants them."""
        return from_levels(pictures, self.processes.device).to(memory_format=self.layout)

    @torch.no_grad()
    def _latent_std(self) -> float:
        encoder = self.average.module.encoder
        latents = [encoder(pixels) for pixels in self._batches(self.fixed["train"])]
        return float(torch.cat(latents).std())


def layout_on(device: torch.device, recipe: AutoencoderRecipe) -> torch.memory_format:
    """The layout of maps: as the recipe says, but on CUDA the one that tensor cores read."""
    last = recipe.channels_last or device.type == "cuda"
    return torch.channels_last if last else torch.contiguous_format


def initial_autoencoder(recipe: AutoencoderRecipe) -> Autoencoder:
    """The weights of `initial`, or a random start of [model] that depends on the seed alone."""
    if recipe.initial is not None:
        return trainable(load_autoencoder(find_autoencoder(recipe.initial)))
    assert recipe.model is not None
    with drawn_by(recipe.seed, "initialisation"):
        return Autoencoder(AutoencoderConfig.from_dict(recipe.model))


def fixed_pictures(recipe: AutoencoderRecipe, train: PictureSource) -> dict[str, np.ndarray]:
    """uint8 [K, 3, S, S] of evenly spaced held-out and training pictures, on white.

    A folder without a held-out split is measured on training pictures alone.
    """
    count, size = recipe.evaluate.pictures, recipe.evaluate.size
    found = {}
    for split, source in {"held_out": _open(recipe, "held_out"), "train": train}.items():
        if len(source):
            spaced = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
            found[split] = stacked([source.square(int(index), size) for index in spaced])
    return found


def _open(recipe: AutoencoderRecipe, split: str) -> PictureSource:
    data = recipe.data
    return PictureSource.open(
        data.folder, split=split, white=data.white, rescale=data.rescale, aligned=data.aligned
    )
