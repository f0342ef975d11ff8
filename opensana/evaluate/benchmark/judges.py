"""The networks that see the pictures, and where their weights come from."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from opensana.errors import WeightsError
from opensana.metrics import inception as inceptions
from opensana.metrics import lpips as distances
from opensana.metrics.clip_score import ClipScorer
from opensana.metrics.inception import Inception, inception_of, load_inception
from opensana.metrics.library_models import fingerprint
from opensana.metrics.lpips import Lpips, load_lpips
from opensana.metrics.open_scorer import open_scorer
from opensana.metrics.small_clip_score import SmallClipScorer
from opensana.models.convert import read_state
from opensana.weights.locate import locate

Scorer = ClipScorer | SmallClipScorer
LACKING = {
    "inception": f"no --inception: {inceptions.how_to_get()}",
    "clip": "no --clip: a CLIP of transformers, such as openai/clip-vit-large-patch14, by its "
    "folder or hub id",
    "lpips": f"no --lpips: {distances.how_to_get()}",
}
"""Why figures are left out, and where to get what they need."""
NO_JUDGE = (
    "nothing to measure with: FID, KID, precision, recall, density and coverage have "
    f"{LACKING['inception']}; CMMD and the CLIP score have {LACKING['clip']}"
)


@dataclass(frozen=True)
class Judges:
    """The networks that see the pictures; what is left out takes its figures along."""

    inception: Inception | None = None
    clip: Scorer | None = None
    lpips: Lpips | None = None
    """It compares picture by picture, and so is for reconstructions alone."""

    def names(self) -> dict[str, str]:
        """Which weights they have, to be compared with those of a run that is resumed."""
        names = {} if self.clip is None else {"clip": self.clip.name}
        for name, network in (("inception", self.inception), ("lpips", self.lpips)):
            if network is not None:
                names[name] = digest(network)
        return names


def digest(network: nn.Module) -> str:
    """Of all weights."""
    found = hashlib.sha256()
    for tensor in network.state_dict().values():
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def open_judges(
    inception: str | Path | None = None,
    clip: str | None = None,
    lpips: str | Path | None = None,
    *,
    device: str = "auto",
) -> Judges:
    """Inception from a converted folder, a safetensors file or the published .pth; CLIP; LPIPS."""
    network = scorer = compared = None
    if inception is not None:
        with _left_out("FID, rFID, KID, precision, recall, density and coverage"):
            network = _inception(Path(inception).expanduser())
    if clip is not None:
        with _left_out("CMMD and the CLIP score"):
            scorer = open_scorer(clip, device=device)
    if lpips is not None:
        with _left_out("LPIPS"):
            compared = load_lpips(lpips)
    assert scorer is None or isinstance(scorer, Scorer)
    return Judges(network, scorer, compared)


def _inception(path: Path) -> Inception:
    if path.suffix.lower() == ".pth" and path.is_file():
        return inception_of(read_state(path), where=path)
    return load_inception(path)


@contextmanager
def _left_out(figures: str) -> Iterator[None]:
    """An error of weights says what can be measured without them."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{error}; without it, all but {figures} can be measured") from error


def weights_of(model: str) -> str:
    """Which weights a model has: a training may replace those in its folder."""
    folder = locate(model)
    found = fingerprint(folder)
    if not found.startswith("sha256:"):
        return found
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    whole = " ".join([found, *(f"{part.name} {fingerprint(part)}" for part in parts)])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
