"""A real vision-language model of transformers, tiny and random, through the real command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from opensana.cli import main
from opensana.errors import WeightsError
from opensana.label.captioner import Failure, Settings
from opensana.label.labels import Labels
from opensana.label.local import LocalCaptioner
from opensana.label.opening import open_captioner
from tests.label.folders import draw

ASK = Settings(prompt="what do you see here ?", max_tokens=6, device="cpu")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def pictures(count: int = len(COLOURS)) -> list[tuple[str, Image.Image]]:
    return [(name, Image.new("RGB", (40, 30), name)) for name in COLOURS[:count]]


def by_hand(folder: Path) -> dict[str, str]:
    """What the model says of each picture alone, without opensana."""
    processor: Any = transformers.LlavaProcessor.from_pretrained(folder)
    model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    text = "user : <image> what do you see here ? assistant :"
    said: dict[str, str] = {}
    for name, image in pictures():
        inputs = processor(images=image, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        new = tokens[inputs["input_ids"].shape[1] :]
        said[name] = processor.tokenizer.decode(new, skip_special_tokens=True)
    return said


def test_batches_say_what_the_model_says_of_each_picture(vision_model: Path) -> None:
    captions = dict(LocalCaptioner(str(vision_model), ASK)(pictures()))
    assert captions == by_hand(vision_model)
    assert len(set(captions.values())) > 1, "the model must look at the picture"


def test_without_a_chat_template_the_prompt_is_the_whole_text(
    vision_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(vision_model, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    text = "user : <image> what do you see here ? assistant :"
    captions = dict(LocalCaptioner(str(folder), replace(ASK, prompt=text))(pictures()))
    assert captions == by_hand(vision_model)


def test_the_maker_tells_weights_prompt_and_settings_apart(
    vision_model: Path, tmp_path: Path
) -> None:
    first = LocalCaptioner(str(vision_model), ASK).source
    assert first.captioner == vision_model.name
    moved = shutil.copytree(vision_model, tmp_path / vision_model.name)
    assert LocalCaptioner(str(moved), ASK).source.id == first.id
    with (moved / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\0\0\x3f")
    assert LocalCaptioner(str(moved), ASK).source.id != first.id
    other = Settings(prompt="what ?", max_tokens=6, device="cpu")
    assert LocalCaptioner(str(vision_model), other).source.id != first.id


def test_a_picture_that_breaks_its_batch_fails_alone(
    vision_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = LocalCaptioner(str(vision_model), ASK)
    describe = captioner.describe

    def picky(images: list[Image.Image]) -> list[str]:
        if any(image.getpixel((0, 0)) == (0, 0, 255) for image in images):
            raise ValueError("no blue please")
        return describe(images)

    monkeypatch.setattr(captioner, "describe", picky)
    captions = dict(captioner(pictures(4)))
    assert captions["blue"] == Failure("ValueError: no blue please")
    assert [name for name, text in captions.items() if isinstance(text, str)] == [
        "red",
        "green",
        "white",
    ]


def test_the_command_captions_200_pictures(
    vision_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels = draw(tmp_path / "pictures", 200), tmp_path / "labels"
    arguments = ["label", str(folder), "--to", str(labels), "--max-tokens", "4", "--device", "cpu"]
    arguments += ["--captioner", f"hf:{vision_model}", "--batch", "50"]
    assert main([*arguments, "--limit", "120"]) == 0
    assert len((labels / "captions.jsonl").read_text().splitlines()) == 120
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (labels / "captions.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(p.stem for p in folder.iterdir())
    caption = Labels.open(labels).captions(lines[0]["key"])[0]
    assert (caption.captioner, caption.text) == (vision_model.name, lines[0]["text"])
    assert caption.settings["max_tokens"] == 4
    output = capsys.readouterr()
    assert output.out.split() == [str(labels)] * 2
    assert "pictures" in output.err and "200" not in output.err.splitlines()[0]


def test_a_model_of_another_kind_is_refused(clip_model: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read the model"):
        open_captioner(f"hf:{clip_model}", ASK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        open_captioner(f"hf:{tmp_path / 'empty'}", ASK)
    with pytest.raises(WeightsError, match="neither a folder nor a hub id"):
        open_captioner("hf:nowhere", ASK)


def test_code_that_comes_with_a_model_is_not_run(vision_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vision_model, tmp_path / "hostile")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError):
        open_captioner(f"hf:{folder}", ASK)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(vision_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vision_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        open_captioner(f"hf:{folder}", ASK)


@pytest.mark.parametrize(("family", "kernel"), [("Gemma2", "eager"), ("Llama", "sdpa")])
def test_a_softcapped_language_model_keeps_its_softcap(
    vision_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kernel: str
) -> None:
    folder = shutil.copytree(vision_model, tmp_path / "vlm")
    config = transformers.LlavaConfig.from_pretrained(folder)
    sizes = {name: getattr(config.text_config, name) for name in ("vocab_size", "hidden_size")}
    more = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    text = getattr(transformers, f"{family}Config")(**sizes, **more, intermediate_size=32)
    options: Any = {
        "vision_config": config.vision_config,
        "text_config": text,
        "image_token_id": config.image_token_id,
    }
    config = transformers.LlavaConfig(**options)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    # What the library takes by itself differs between its versions.
    monkeypatch.setattr(transformers.Gemma2PreTrainedModel, "_supports_sdpa", True)
    model = LocalCaptioner(str(folder), ASK).model
    assert model.model.language_model.config._attn_implementation == kernel
