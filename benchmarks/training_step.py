"""One training step of the Linear DiT: this project against diffusers, in the same loop.

    python -m benchmarks.training_step [--sides 8 16] [--batch 8] [--repeats 9]

Width 384, 12 layers, float32, 64 and 256 image tokens, captions of 10 to 56 text tokens (8 to 40
words). A step is the flow-matching loss, its gradients, their clipping, and torch's AdamW; weights,
samples, noises and noise levels are the same. diffusers' model is timed with all texts padded to
300 tokens, as published, and with the texts as this project gets them, padded to the longest of the
batch. Steps alternate in one process; ratios are of medians. Memory is that of a few steps in a
process of their own, above what the process held before it built its model. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from benchmarks.timing import machine, medians
from opensana.flow.loss import flow_matching_loss
from opensana.transformer.model import Transformer, TransformerConfig

HEADS, HEAD, LAYERS = 12, 32, 12
SHORTEST, LONGEST, PADDED = 10, 56, 300
STEPS_FOR_MEMORY = 4
Velocity = Callable[["Batch", Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Latents and noises [B, C, H, W], noise levels [B], states [B, N, D] and their mask."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    states: Tensor
    mask: Tensor

    def padded(self, length: int) -> "Batch":
        """The same with texts of `length` tokens."""
        more = length - self.mask.shape[1]
        states = nn.functional.pad(self.states, (0, 0, 0, more))
        mask = nn.functional.pad(self.mask, (0, more))
        return Batch(self.latents, self.noise, self.sigma, states, mask)


def config_of(side: int) -> TransformerConfig:
    return TransformerConfig(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=HEADS * HEAD,
        num_layers=LAYERS,
        sample_size=side,
    )


def batch_of(config: TransformerConfig, count: int) -> Batch:
    """Random samples; lengths of texts are spread evenly from the shortest to the longest."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.in_channels, config.sample_size, config.sample_size)
    latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    lengths = torch.linspace(SHORTEST, LONGEST, count).long()
    mask = torch.arange(LONGEST) < lengths[:, None]
    states = torch.randn(count, LONGEST, config.caption_channels, generator=generator)
    return Batch(latents, noise, torch.rand(count, generator=generator), states, mask)


def our_model(config: TransformerConfig) -> tuple[Transformer, Velocity]:
    model = Transformer(config)

    def velocity(batch: Batch, x: Tensor, timestep: Tensor) -> Tensor:
        return model.velocity(x, timestep, model.prepare_text(batch.states, batch.mask))

    return model, velocity


def their_model(config: TransformerConfig) -> tuple[SanaTransformer2DModel, Velocity]:
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    model = SanaTransformer2DModel(**values)

    def velocity(batch: Batch, x: Tensor, timestep: Tensor) -> Tensor:
        return model(x, batch.states, timestep, encoder_attention_mask=batch.mask.long())[0]

    return model, velocity


MODELS = {"opensana": our_model, "diffusers": their_model}


def training_step(model: nn.Module, velocity: Velocity, batch: Batch) -> Callable[[], float]:
    """A step of the loop that both sides share; returns its loss."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()

        def towards(x: Tensor, timestep: Tensor) -> Tensor:
            return velocity(batch, x, timestep)

        loss = flow_matching_loss(towards, batch.latents, batch.noise, batch.sigma).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        return float(loss.detach())

    return step


def compare(side: int, count: int, repeats: int) -> dict[str, object]:
    config = config_of(side)
    torch.manual_seed(0)
    built = {name: MODELS[way](config) for name, way in WAYS.items()}
    weights = built["opensana"][0].state_dict()
    batch = batch_of(config, count)
    steps: list[Callable[[], float]] = []
    for name, (model, velocity) in built.items():
        model.load_state_dict(weights)
        steps.append(training_step(model, velocity, batch.padded(LENGTHS[name])))
    losses = [step() for step in steps]
    seconds = dict(zip(WAYS, medians(steps, repeats), strict=True))
    memory = {name: memory_in_a_process(name, side, count) for name in WAYS}
    ours = seconds["opensana"]
    return {
        "ratio_at_300_text_tokens": round(seconds["diffusers_300"] / ours, 3),
        "ratio_at_equal_text_length": round(seconds["diffusers"] / ours, 3),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "peak_memory_mb": memory,
        "relative_difference_of_first_loss": max(losses) / min(losses) - 1,
    }


WAYS = {"opensana": "opensana", "diffusers": "diffusers", "diffusers_300": "diffusers"}
LENGTHS = {"opensana": LONGEST, "diffusers": LONGEST, "diffusers_300": PADDED}


def memory_in_a_process(name: str, side: int, count: int) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(peak_memory, name, side, count).result()


def peak_memory(name: str, side: int, count: int) -> int:
    """Megabytes that model, optimizer and steps take at most, in this process."""
    config = config_of(side)
    batch = batch_of(config, count).padded(LENGTHS[name])
    before = resident("VmRSS")
    model, velocity = MODELS[WAYS[name]](config)
    step = training_step(model, velocity, batch)
    for _ in range(STEPS_FOR_MEMORY):
        step()
    return round(resident("VmHWM") - before)


def resident(key: str) -> float:
    """Resident memory of this process in megabytes: VmRSS now, VmHWM at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step against diffusers.")
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16], help="of the latent")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    results = {}
    for side in arguments.sides:
        results[f"{side**2}_tokens"] = compare(side, arguments.batch, arguments.repeats)
        print(f"{side**2} image tokens", results[f"{side**2}_tokens"], flush=True)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
