"""Tiny random detectors of every kind against their own library's answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.errors import DataError, RequestError
from opensana.evaluate.prompts.detector import ObjectDetector
from tests.tiny_clip import transformers
from tests.tiny_detector import CLASSES, detr, owl, save_detector, yolos


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("build", [yolos, detr])
def test_detectors_with_classes_of_their_own(build: Callable[[], Any], tmp_path: Path) -> None:
    folder = save_detector(tmp_path / "tiny", build)
    detector = ObjectDetector(folder, device="cpu")
    detector.check(["cat", "computer mouse"])
    names = ["cat", "dog", "computer mouse"]
    objects = detector(picture(), names, 0.0)
    places = [place for found in objects.values() for place in found]
    assert places and set(objects) <= set(names)
    for found in objects.values():
        assert [place.score for place in found] == sorted((p.score for p in found), reverse=True)

    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        outputs = model(**processor(images=picture(), return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, 0.0, [(40, 60)])[0]
    known = [CLASSES[int(label)] != "N/A" for label in expected["labels"]]
    boxes = torch.cat([expected["boxes"], expected["scores"][:, None]], 1)[known]
    mine = torch.tensor([[*place.box, place.score] for place in places])
    rows = sorted(map(tuple, boxes.tolist()))
    torch.testing.assert_close(torch.tensor(sorted(map(tuple, mine.tolist()))), torch.tensor(rows))
    least = max(place.score for place in places)
    assert not detector(picture(), names, least), "none is above the most confident"


def test_a_detector_that_takes_names(tmp_path: Path) -> None:
    detector = ObjectDetector(save_detector(tmp_path / "tiny", owl), device="cpu")
    detector.check(["a unicorn"])
    names = ["red square", "blue square"]
    objects = detector(picture(), names, 0.0)
    assert set(objects) <= set(names) and objects
    assert sum(map(len, objects.values())) == 16, "one of each of 4 x 4 patches"


def test_unknown_classes_and_places_are_one_line(tmp_path: Path) -> None:
    detector = ObjectDetector(save_detector(tmp_path / "tiny", yolos), device="cpu")
    with pytest.raises(DataError, match="does not know 'unicorn'; its 4 classes are"):
        detector.check(["cat", "unicorn"])
    with pytest.raises(RequestError, match=r"there is no folder .*facebook/detr-resnet-50"):
        ObjectDetector(tmp_path / "none")
