"""Objects in a picture, found by any object detector of transformers."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from opensana.device import resolve_device
from opensana.errors import DataError, RequestError
from opensana.metrics.library_models import fingerprint, load, published_name
from opensana.weights.locate import locate_library

RENAMED = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
"""GenEval's names of classes that COCO, and so most detectors, calls otherwise."""
HOW_TO_GET = (
    "a detector is a folder in the layout of transformers, such as a copy of "
    "facebook/detr-resnet-50 or google/owlv2-base-patch16-ensemble from the hub"
)


class Found(NamedTuple):
    """A box by its edges in pixels, with the detector's confidence."""

    score: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self[1:]


Objects = dict[str, list[Found]]
"""By name of the class, the most confident first."""


class ObjectDetector:
    """A detector with classes of its own (DETR and alike), or one that takes names (OWL-ViT)."""

    def __init__(self, folder: str | Path, *, device: str = "auto") -> None:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES as TAKE_NAMES,
        )

        if not Path(folder).expanduser().is_dir():
            raise RequestError(f"there is no folder {folder}; {HOW_TO_GET}")
        place = locate_library(folder)
        self.name = f"{published_name(str(folder))}@{fingerprint(place)}"
        kind = AutoConfig.from_pretrained(place, local_files_only=True).model_type
        self.open = kind in TAKE_NAMES
        if self.open and not kind.startswith("owl"):
            raise RequestError(f"{kind} reads its classes as one text; use OWL-ViT or OWLv2")
        loader = "AutoModelForZeroShotObjectDetection" if self.open else CLOSED
        self.device = resolve_device(device)
        self.model, self.processor = load(place, loader)
        self.model.to(self.device, torch.float32).eval()

    def check(self, names: Sequence[str]) -> None:
        """DataError for a class that the detector does not know."""
        known = set() if self.open else set(self.model.config.id2label.values())
        for name in names:
            if not self.open and not {name, RENAMED.get(name)} & known:
                shown = ", ".join(sorted(known)[:8])
                raise DataError(
                    f"{self.name} does not know {name!r}; its {len(known)} classes are {shown} ..."
                )

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, names: Sequence[str], threshold: float) -> Objects:
        """Objects of these classes above a confidence."""
        sizes = [(picture.height, picture.width)]
        if self.open:
            texts = [[f"a photo of a {name}" for name in names]]
            inputs = self.processor(text=texts, images=picture, return_tensors="pt")
            found = self.processor.post_process_grounded_object_detection(
                self.model(**inputs.to(self.device)), threshold=threshold, target_sizes=sizes
            )[0]
            labels = [names[int(label)] for label in found["labels"]]
        else:
            spoken = {RENAMED.get(name, name): name for name in names} | {n: n for n in names}
            inputs = self.processor(images=picture, return_tensors="pt")
            found = self.processor.post_process_object_detection(
                self.model(**inputs.to(self.device)), threshold=threshold, target_sizes=sizes
            )[0]
            classes: Any = self.model.config.id2label
            labels = [spoken.get(classes[int(label)]) for label in found["labels"]]
        objects: dict[str, list[Found]] = defaultdict(list)
        for label, score, box in zip(
            labels, found["scores"].tolist(), found["boxes"].tolist(), strict=True
        ):
            if label is not None:
                objects[label].append(Found(score, *box))
        return {name: sorted(places, reverse=True) for name, places in objects.items()}


CLOSED = "AutoModelForObjectDetection"
