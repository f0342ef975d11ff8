"""A model that scores captions, by its folder or hub id."""

from opensana.files.writing import read_json
from opensana.metrics.clip_score import ClipScorer, Scorer
from opensana.metrics.small_clip import CLASS_NAME
from opensana.weights.locate import locate_library


def open_scorer(name: str, *, device: str = "auto") -> Scorer:
    """The model of a folder or hub id: a CLIP of transformers, or a small one trained here."""
    folder = locate_library(name)
    if read_json(folder / "config.json").get("_class_name") == CLASS_NAME:
        from opensana.metrics.small_clip_score import SmallClipScorer

        return SmallClipScorer(name, device=device)
    return ClipScorer(name, device=device)
