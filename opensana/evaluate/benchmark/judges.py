"""The networks that see the pictures, and where their weights come from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from opensana.errors import RequestError
from opensana.metrics import inception
from opensana.metrics.clip_score import ClipScorer
from opensana.metrics.open_scorer import open_scorer
from opensana.metrics.small_clip_score import SmallClipScorer
from opensana.models.convert import read_state

Scorer = ClipScorer | SmallClipScorer
NO_JUDGE = (
    "nothing to measure with: give --inception, --clip or both. FID, KID, precision, recall, "
    f"density and coverage need Inception ({inception.how_to_get()}); CMMD and the CLIP score "
    "need a CLIP of transformers, such as openai/clip-vit-large-patch14, or its folder"
)


@dataclass(frozen=True)
class Judges:
    """The networks that see the pictures; what is left out takes its figures along."""

    inception: inception.Inception | None
    clip: Scorer | None

    def names(self) -> dict[str, str]:
        """Which weights they have, to be compared with those of a run that is resumed."""
        names = {} if self.clip is None else {"clip": self.clip.name}
        if self.inception is not None:
            digest = hashlib.sha256()
            for tensor in self.inception.state_dict().values():
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
            names["inception"] = digest.hexdigest()[:16]
        return names


def open_judges(weights: str | Path | None, clip: str | None, *, device: str = "auto") -> Judges:
    """Inception from a converted folder, a safetensors file or the published .pth; a CLIP."""
    if weights is None and clip is None:
        raise RequestError(NO_JUDGE)
    network = None
    if weights is not None:
        path = Path(weights).expanduser()
        if path.suffix.lower() == ".pth" and path.is_file():
            network = inception.inception_of(read_state(path), where=path)
        else:
            network = inception.load_inception(path)
    scorer = None if clip is None else open_scorer(clip, device=device)
    assert scorer is None or isinstance(scorer, Scorer)
    return Judges(network, scorer)
