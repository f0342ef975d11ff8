"""Tiny random models of transformers, made and saved without any download."""

from pathlib import Path

import pytest
import torch

from tests.tiny_clip import (
    IMAGE,
    SIZES,
    SPECIAL,
    VISION,
    image_processor,
    save_clip,
    tokenizer,
    transformers,
)

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand random weights that says words."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    words = tokenizer()
    text = transformers.LlamaConfig(
        vocab_size=len(words),
        num_hidden_layers=1,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=1,
        **SIZES,
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_id=SPECIAL.index(IMAGE),
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # loud enough for a picture to change the words
            parameter.mul_(8)
        model.lm_head.weight[: len(SPECIAL)] = 0
    model.save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor(),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP whose texts have 12 tokens at most."""
    return save_clip(tmp_path_factory.mktemp("models") / "tiny-clip")
