"""Training recipes: complete TOML files as frozen dataclasses (paper 2.1, 3; DC-AE paper 3.3).

A recipe's `kind` selects the loop: "autoencoder", "transformer", "controlnet", "distillation" or
"clip". The resolved recipe, with every default filled in, is written beside every checkpoint.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

from opensana.config import load_toml
from opensana.errors import ConfigError, near
from opensana.train.caption_rule import CaptionRule, Rule

HEAD_GROUPS = 8
"""Groups of the norms in the discriminator's heads."""


@dataclass(frozen=True)
class CameRecipe:
    """Three decays, two epsilons, and the largest root mean square of an update."""

    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    eps: tuple[float, float] = (1e-30, 1e-16)
    clip: float = 1.0


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW or CAME for everything, or Muon for the matrices and AdamW for the rest.

    Under Muon, AdamW's rate is `rest` times `lr`: orthogonal updates bear a larger one. With
    `scale = "sqrt"`, `lr` is that of a batch of 256 and grows with the root of the batch.
    """

    name: Literal["adamw", "came", "muon"] = "adamw"
    lr: float = 1e-4
    scale: Literal["none", "sqrt"] = "none"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.95
    rest: float = 1.0
    orthogonal_steps: int = 5
    came: CameRecipe = field(default_factory=CameRecipe)


@dataclass(frozen=True)
class ScheduleRecipe:
    """Linear warm-up, then a decay to `final` times the learning rate at the last step."""

    warmup: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final: float = 0.0


@dataclass(frozen=True)
class CheckpointRecipe:
    """Save every so many steps, `asynchronous` while training goes on; keep the newest few."""

    every: int = 1000
    keep: int = 3
    asynchronous: bool = False


@dataclass(frozen=True)
class ParallelRecipe:
    """How the processes of torchrun share the work; one process needs none of it.

    ddp: each holds everything. fsdp: weights, gradients, EMA weights and optimiser state are
    sharded. `timeout` is how many seconds one waits for the others. `peak_tflops` is what a device
    can do, for MFU; that of common GPUs is known.
    """

    mode: Literal["ddp", "fsdp"] = "ddp"
    device: str = "auto"
    checkpoint_activations: bool = False
    timeout: float = 600.0
    peak_tflops: float | None = None


@dataclass(frozen=True)
class EvaluateRecipe:
    """Measure the EMA weights on fixed pictures every so many steps."""

    every: int = 1000
    pictures: int = 64
    batch: int = 8
    size: int = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every kind of training takes; a key that a kind cannot honour is unknown to it."""

    hints: ClassVar[dict[str, str]] = {}
    """What to do about a missing or unknown key, said behind the error."""

    kind: str
    name: str
    run: str
    steps: int
    batch: int
    accumulate: int = 1
    seed: int = 0
    threads: int = 0
    clip: float = 1.0
    ema: float = 0.999
    channels_last: bool = False
    """The layout in memory that convolutions prefer; on CUDA an autoencoder always has it."""
    compile: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """That of products; weights and sums stay float32. auto: the best that the device has."""
    tensorboard: bool = True
    console_seconds: float = 30.0
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps", self.steps, "a positive number")
        require(self.batch > 0, "batch", self.batch, "a positive number")
        whole = self.accumulate > 0 and self.batch % self.accumulate == 0
        require(whole, "accumulate", self.accumulate, f"a divisor of the batch {self.batch}")
        require(self.parallel.timeout > 0, "parallel.timeout", self.parallel.timeout, "seconds > 0")
        split = self.parallel.mode == "fsdp" and self.optimizer.name == "muon"
        require(not split, "optimizer.name", "muon", "adamw or came under fsdp")
        require(self.clip > 0, "clip", self.clip, "a positive gradient norm")
        require(0 <= self.ema < 1, "ema", self.ema, "a number in [0, 1)")
        require(self.checkpoint.every > 0, "checkpoint.every", self.checkpoint.every, "1 or more")
        require(self.checkpoint.keep > 0, "checkpoint.keep", self.checkpoint.keep, "1 or more")
        require(self.evaluate.every > 0, "evaluate.every", self.evaluate.every, "1 or more")


@dataclass(frozen=True, kw_only=True)
class StartRecipe(Recipe):
    """A training of given weights, of random ones, or of given ones in another model."""

    initial: str | None = None
    model: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial is None and self.model is None:
            raise ConfigError(
                f"recipe '{self.name}' needs `initial` (a folder of weights to start from), a"
                " [model] table (random start), or both (weights of another size of picture)"
            )


@dataclass(frozen=True)
class PicturesRecipe:
    """Where the pictures are and how a training crop is drawn from them."""

    folder: str
    crop: int = 128
    white: float = 0.5
    rescale: float = 0.0
    aligned: float = 0.5


@dataclass(frozen=True)
class ReconstructionLossRecipe:
    """Weights of the terms of the autoencoder's loss; pixels are in [-1, 1].

    LPIPS needs `lpips_weights`, the folder or file that `opensana convert` makes of it.
    """

    mse: float = 1.0
    l1: float = 0.0
    gradient: float = 0.0
    lpips: float = 0.0
    lpips_weights: str | None = None
    gan: float = 0.0
    gan_adaptive: bool = True
    gan_start: int = 0


@dataclass(frozen=True)
class DiscriminatorRecipe:
    """The PatchGAN of the third phase."""

    width: int = 32
    depth: int = 3
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)


@dataclass(frozen=True)
class AutoencoderSamplesRecipe:
    """Grids of originals and reconstructions."""

    every: int = 1000
    pictures: int = 8

    def __post_init__(self) -> None:
        require(self.every > 0, "samples.every", self.every, "1 or more")


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(StartRecipe):
    """One phase of the autoencoder's training (DC-AE paper, figure 6), or its decoder alone."""

    data: PicturesRecipe
    kind: Literal["autoencoder"] = "autoencoder"
    phase: Literal["full", "latent", "refine", "decoder"] = "full"
    refine_stages: int = 2
    scaling: Literal["measured", "kept"] = "measured"
    loss: ReconstructionLossRecipe = field(default_factory=ReconstructionLossRecipe)
    discriminator: DiscriminatorRecipe = field(default_factory=DiscriminatorRecipe)
    samples: AutoencoderSamplesRecipe = field(default_factory=AutoencoderSamplesRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial is not None and self.model is not None:
            raise ConfigError(f"recipe '{self.name}': `initial` brings its own [model]; drop one")
        mode = self.parallel.mode
        require(mode == "ddp", "parallel.mode", mode, "ddp for an autoencoder, which fits a device")
        require(self.accumulate == 1, "accumulate", self.accumulate, "1 for an autoencoder")
        total = self.loss.mse + self.loss.l1 + self.loss.gradient
        require(total > 0, "loss", total, "a positive sum of the mse, l1 and gradient weights")
        weights = self.loss.lpips_weights
        require(
            (self.loss.lpips > 0) == (weights is not None),
            "loss.lpips_weights",
            weights,
            "the weights of LPIPS where loss.lpips is positive, and left out where it is 0; make"
            " them with opensana convert --preset lpips_vgg16",
        )
        if self.phase == "decoder":
            wanted = "'kept' in phase 'decoder': the encoder and its latents do not change"
            require(self.scaling == "kept", "scaling", self.scaling, wanted)
            require(self.initial is not None, "initial", None, "the autoencoder to fine-tune")


@dataclass(frozen=True)
class FeaturesRecipe:
    """Cached latents and text states; `repeat` timesteps are drawn for each sample of a step.

    `sampling`, `temperature` and `threshold` choose among a picture's captions
    (`data.captions.CaptionRule`); `expect` names keys that the cache must have been made with.
    `text_noise` disturbs each text's states by normal noise of up to so many deviations of their
    channels (an amount drawn uniformly): rare words are then not memorised.
    """

    folder: str
    dropout: float = 0.1
    text_noise: float = 0.0
    repeat: int = 1
    sampling: Rule = "power"
    temperature: float = 0.1
    threshold: float = 25.0
    expect: dict[str, str | int] = field(default_factory=dict[str, str | int])

    @property
    def rule(self) -> CaptionRule:
        return CaptionRule(self.sampling, self.temperature, self.threshold)


@dataclass(frozen=True)
class FlowRecipe:
    """How the noise level is drawn (paper 3.2): density, then the shift."""

    density: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0


@dataclass(frozen=True)
class TransformerSamplesRecipe:
    """Grids of pictures drawn for fixed prompts, decoded by the named autoencoder.

    Prompts that are no captions of the cache are encoded when a run starts; without any, captions
    of the cache are drawn.
    """

    every: int = 1000
    autoencoder: str | None = None
    prompts: tuple[str, ...] = ()
    steps: int = 20
    guidance: float = 4.5
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.every > 0, "samples.every", self.every, "1 or more")


@dataclass(frozen=True)
class LoraRecipe:
    """Adapters of `rank` on the layers whose names end in a target; all other weights are frozen.

    They add alpha / rank times their product.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    dropout: float = 0.0


@dataclass(frozen=True)
class PriorRecipe:
    """Cached features of class pictures, as many a step as of one's own (DreamBooth 3.2)."""

    folder: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CachedRecipe(Recipe):
    """What every training on cached features takes.

    `caption_norm` and `standardise_captions` count only where weights start at random.
    """

    data: FeaturesRecipe
    caption_norm: float = 0.01
    standardise_captions: bool = False
    flow: FlowRecipe = field(default_factory=FlowRecipe)
    samples: TransformerSamplesRecipe = field(default_factory=TransformerSamplesRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        noise = self.data.text_noise
        require(noise >= 0, "data.text_noise", noise, "0 or more deviations")
        require(self.data.repeat > 0, "data.repeat", self.data.repeat, "1 or more")


@dataclass(frozen=True, kw_only=True)
class TransformerRecipe(CachedRecipe, StartRecipe):
    """Flow matching of the transformer, or of adapters on a frozen one.

    With `resident` the features lie in the device's memory and noise is drawn there: for small data
    on a GPU that would wait for its loader. The numbers are then others.
    """

    kind: Literal["transformer"] = "transformer"
    resident: bool = False
    lora: LoraRecipe | None = None
    prior: PriorRecipe | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior is not None:
            weight = self.prior.weight
            require(0 < weight < inf, "prior.weight", weight, "a positive number")
        if self.lora is not None:
            rank, alpha, dropout = self.lora.rank, self.lora.alpha, self.lora.dropout
            require(rank > 0, "lora.rank", rank, "1 or more")
            require(0 < alpha < inf, "lora.alpha", alpha, "a positive number")
            require(0 <= dropout < 1, "lora.dropout", dropout, "a number in [0, 1)")
            require(len(self.lora.targets) > 0, "lora.targets", [], "names such as to_q and to_v")
            require(self.initial is not None, "initial", None, "the model that the LoRA adapts")
            mode = self.parallel.mode
            require(mode == "ddp", "parallel.mode", mode, "ddp for a LoRA, which is small")


@dataclass(frozen=True, kw_only=True)
class ConditionedFeaturesRecipe(FeaturesRecipe):
    """Cached features, and in the folder `condition` a second cache with what to follow."""

    condition: str


@dataclass(frozen=True, kw_only=True)
class ControlNetRecipe(CachedRecipe):
    """A ControlNet of the frozen transformer `initial`: copies of its first `blocks` train.

    `control` names a ControlNet to start from.
    """

    hints: ClassVar[dict[str, str]] = {
        "initial": "name the transformer that it steers",
        "model": "leave it out: `initial` brings its own",
        **dict.fromkeys(("lora", "prior"), "leave it out for a controlnet"),
    }

    data: ConditionedFeaturesRecipe
    kind: Literal["controlnet"] = "controlnet"
    initial: str
    blocks: int = 7
    control: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        mode = self.parallel.mode
        require(mode == "ddp", "parallel.mode", mode, "ddp for a controlnet, whose base is frozen")
        prompts = self.samples.prompts
        wanted = "left out: a controlnet draws samples of the cache, with their conditions"
        require(not prompts, "samples.prompts", prompts, wanted)


@dataclass(frozen=True)
class ConsistencyRecipe:
    """How the student learns from the teacher's flow (SANA-Sprint 3.1, 3.2).

    A sample's guidance is drawn from `guidance`; the share `noise` of the samples is pure noise,
    where every drawing starts. The derivative of the student counts more with each of the first
    `warmup` steps.
    """

    guidance: tuple[float, ...] = (4.0, 4.5, 5.0)
    noise: float = 0.5
    warmup: int = 4000


@dataclass(frozen=True)
class AdversaryRecipe:
    """Discriminator heads on the teacher's `blocks`, at logit-normal noise (Sprint 3.3)."""

    weight: float = 0.5
    blocks: tuple[int, ...] = (2, 8, 14, 19)
    width: int = 64
    lr: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    mean: float = -0.6
    std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe(CachedRecipe):
    """A student that draws in 1 to 4 steps what the frozen transformer `initial` draws in 20.

    `accumulate` and `data.repeat` are keys of recipes that are stored, and can only be 1.
    """

    hints: ClassVar[dict[str, str]] = {
        "initial": "name the teacher, a transformer",
        "model": "leave it out: `initial` brings its own",
        **dict.fromkeys(("lora", "prior"), "leave it out for a distillation"),
    }

    kind: Literal["distillation"] = "distillation"
    initial: str
    consistency: ConsistencyRecipe = field(default_factory=ConsistencyRecipe)
    adversary: AdversaryRecipe = field(default_factory=AdversaryRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.accumulate == 1, "accumulate", self.accumulate, "1 for a distillation")
        require(self.data.repeat == 1, "data.repeat", self.data.repeat, "1 for a distillation")
        teaching, adversary = self.consistency, self.adversary
        scales, noise, warmup = teaching.guidance, teaching.noise, teaching.warmup
        require(len(scales) > 0 and min(scales) >= 1, "consistency.guidance", scales, "1 or more")
        require(0 <= noise <= 1, "consistency.noise", noise, "a share from 0 to 1")
        require(warmup >= 0, "consistency.warmup", warmup, "a number of steps")
        require(0 <= adversary.weight < inf, "adversary.weight", adversary.weight, "0 or more")
        width = adversary.width
        wanted = f"a multiple of {HEAD_GROUPS}"
        require(width > 0 and width % HEAD_GROUPS == 0, "adversary.width", width, wanted)


@dataclass(frozen=True)
class ClipDataRecipe:
    """A prepared emoji folder, and cached text states of all its captions.

    A picture is laid on white with the chance `white`, else on a random colour, made smaller or
    larger by up to `zoom` and moved by up to `shift`, shares of its side. Each is met with
    `captions` of its captions at once.
    """

    folder: str
    text: str
    captions: int = 2
    white: float = 0.5
    zoom: float = 0.15
    shift: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Recipe):
    """A small CLIP by symmetric InfoNCE."""

    hints: ClassVar[dict[str, str]] = {
        "initial": "leave it out: a CLIP starts at random",
        "model": "give the shape of the CLIP in a [model] table",
    }

    data: ClipDataRecipe
    kind: Literal["clip"] = "clip"
    model: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.accumulate == 1, "accumulate", self.accumulate, "1: a batch is contrasted")
        require(self.data.captions > 0, "data.captions", self.data.captions, "1 or more")


AnyRecipe = (
    AutoencoderRecipe | TransformerRecipe | ControlNetRecipe | DistillationRecipe | ClipRecipe
)
KINDS: dict[str, type[AnyRecipe]] = {
    "autoencoder": AutoencoderRecipe,
    "controlnet": ControlNetRecipe,
    "distillation": DistillationRecipe,
    "transformer": TransformerRecipe,
    "clip": ClipRecipe,
}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe file and apply `a.b=value` overrides; ConfigError names what is wrong."""
    path = Path(path)
    try:
        kind = tomllib.loads(path.read_text(encoding="utf-8")).get("kind", "")
    except FileNotFoundError as error:
        raise ConfigError(f"no recipe at {path}; try a file of recipes/emoji/") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    if kind not in KINDS:
        raise ConfigError(
            f"{path}: kind is {kind!r}; it must be one of {', '.join(KINDS)}"
            + near(str(kind), list(KINDS))
        )
    return load_toml(path, KINDS[kind], overrides)


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """Raise a ConfigError that says what was wrong, got and wanted."""
    if not condition:
        raise ConfigError(f"`{name}` is {value!r}; it must be {wanted}")
