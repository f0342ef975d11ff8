"""CLIP scores against a direct computation, and captions that are too long for the text tower.

Also tests `metrics/clip_score.py` and `metrics/library_models.py`.
"""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from opensana.cli import main
from opensana.errors import WeightsError
from opensana.label.labels import Labels
from opensana.metrics.clip_score import ClipScorer, windows
from tests.label.folders import draw

SHORT = "a red square on white paper"
LONG = (
    "a red square on white paper . a green square on white paper . what do you see here ? "
    "a blue square on a red square on a green square on white paper on white paper ."
)


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (50, 40), colour)


@cache
def by_transformers(folder: Path) -> tuple[Any, Any]:
    return (
        transformers.CLIPProcessor.from_pretrained(folder),
        transformers.CLIPModel.from_pretrained(folder),
    )


@torch.inference_mode()
def direct(folder: Path, image: Image.Image, text: str) -> float:
    """100 times the cosine, by transformers alone: the logits of CLIP are scaled cosines."""
    processor, model = by_transformers(folder)
    output = model(**processor(text=[text], images=image, return_tensors="pt"))
    return 100 * float(output.logits_per_image / model.logit_scale.exp())


def test_a_score_is_a_hundred_cosines(clip_model: Path) -> None:
    scorer = ClipScorer(str(clip_model), device="cpu")
    texts = [[SHORT, "a blue square"], ["what do you see here ?"]]
    scores = scorer([picture("red"), picture("blue")], texts)
    wanted = [direct(clip_model, picture("red"), text) for text in texts[0]]
    wanted.append(direct(clip_model, picture("blue"), texts[1][0]))
    assert [s.value for found in scores for s in found] == pytest.approx(wanted, abs=1e-4)
    assert max(wanted) - min(wanted) > 0.1
    assert all(s.windows == 1 for found in scores for s in found)


def test_a_long_caption_is_the_mean_of_its_windows(clip_model: Path) -> None:
    scorer = ClipScorer(str(clip_model), device="cpu")
    parts = scorer.windows(LONG)
    assert " ".join(parts).split() == LONG.split(), "no word is lost"
    assert parts[0] == "a red square on white paper ."
    ((score,),) = scorer([picture()], [[LONG]])
    wanted = [direct(clip_model, picture(), part) for part in parts]
    assert score.windows == len(parts) > 2
    assert score.value == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)


@pytest.mark.parametrize("limit", [3, 7, 20, 100])
def test_windows_fit_and_lose_nothing(limit: int) -> None:
    text = "One two. Three four five; six! " + "longword" * 9 + " 一二三。四五六。 end"

    def fits(part: str) -> bool:
        return len(part) <= limit

    parts = windows(text, fits)
    assert all(map(fits, parts))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(not fits(f"{a} {b}") for a, b in pairwise(parts))


def test_siglip_pads_its_texts(tmp_path: Path, clip_model: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1}
    words = transformers.AutoTokenizer.from_pretrained(clip_model)
    torch.manual_seed(0)
    config = transformers.SiglipConfig(
        text_config=sizes | {"vocab_size": len(words), "max_position_embeddings": 12},
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
    )
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    images = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    transformers.SiglipProcessor(images, words).save_pretrained(tmp_path)
    ((score,),) = ClipScorer(str(tmp_path), device="cpu")([picture()], [[SHORT]])
    inputs = words(SHORT, padding="max_length", max_length=12, return_tensors="pt")
    with torch.inference_mode():
        pixels = images(picture(), return_tensors="pt").pixel_values
        output = model(input_ids=inputs.input_ids, pixel_values=pixels)
        cosine = (output.logits_per_image - model.logit_bias) / model.logit_scale.exp()
    assert score.value == pytest.approx(100 * float(cosine), abs=1e-4)


def test_the_command_scores_own_captions_too_and_only_once(
    clip_model: Path, tmp_path: Path
) -> None:
    folder, labels = draw(tmp_path / "pictures", 20), tmp_path / "labels"
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text(LONG)
    arguments = ["label", str(folder), "--to", str(labels), "--clip", str(clip_model), "--facts"]
    assert main([*arguments, "--device", "cpu", "--limit", "12"]) == 0
    assert main([*arguments, "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in (labels / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 20
    assert {line["windows"] > 1 for line in lines} == {True}
    assert {line["scorer"].partition("@")[0] for line in lines} == {clip_model.name}
    assert len(Labels.open(labels).measured) == 20
    groups = (labels / "duplicates.jsonl").read_text().splitlines()
    assert [len(json.loads(group)["keys"]) for group in groups] == [20], "plain pictures are alike"


def test_a_model_without_a_text_tower_is_refused(vision_model: Path) -> None:
    with pytest.raises(WeightsError, match="get_text_features"):
        ClipScorer(str(vision_model), device="cpu")
