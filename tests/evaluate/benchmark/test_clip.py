"""CMMD and the CLIP score by a CLIP of transformers, from its folder to the figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.evaluate.benchmark.judges import open_judges
from opensana.evaluate.benchmark.run import Options, evaluate_benchmark
from tests.tiny_clip import save_clip, transformers

PROMPTS = ["a red square", "a green square on white paper", "a blue square " * 9]
"""The last one is longer than the context."""


def picture(seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, first in (("real", 0), ("drawn", 10)):
        (tmp_path / name / "imgs" / "c").mkdir(parents=True)
        for i in range(len(PROMPTS)):
            picture(first + i).save(tmp_path / name / "imgs" / "c" / f"{i}.png")
        meta = {str(i): {"category": "c", "prompt": text} for i, text in enumerate(PROMPTS)}
        (tmp_path / name / "meta_data.json").write_text(json.dumps(meta))
    return str(tmp_path / "real"), str(tmp_path / "drawn")


def test_figures_are_those_of_transformers(folders: tuple[str, str], tmp_path: Path) -> None:
    real, drawn = folders
    clip = save_clip(tmp_path / "tiny-clip")
    judges = open_judges(None, str(clip), device="cpu")
    found = evaluate_benchmark(Options("", drawn, real), tmp_path / "to", judges, device="cpu")
    assert set(found["figures"]) == {"cmmd", "clip_score"}
    assert found["figures"]["cmmd"]["protocol"].startswith("tiny-clip@sha256:")

    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    images = [[picture(first + i) for i in range(3)] for first in (0, 10)]
    with torch.inference_mode():
        inputs = processor(
            text=PROMPTS,
            images=images[1],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=12,
        )
        answer = model(**{k: v for k, v in inputs.items() if k != "token_type_ids"})
        cosines = (answer.text_embeds * answer.image_embeds).sum(1)
        others = processor(images=images[0], return_tensors="pt")
        reference = torch.nn.functional.normalize(model.get_image_features(**others).pooler_output)
    assert found["figures"]["clip_score"]["value"] == pytest.approx(
        100 * float(cosines.mean()), abs=1e-3
    )

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        """Of CMMD: Gaussian of width 10, over all pairs."""
        distances = torch.cdist(x.double(), y.double()).square()
        return float(torch.exp(-distances / (2 * 10**2)).mean())

    x, y = answer.image_embeds, reference
    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert found["figures"]["cmmd"]["value"] == pytest.approx(expected, rel=1e-3)
