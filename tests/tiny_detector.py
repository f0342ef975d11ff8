"""Object detectors of transformers with tiny random weights, made without any download."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny_clip import tokenizer, transformers

CLASSES = {0: "N/A", 1: "cat", 2: "dog", 3: "mouse"}
NAMED: dict[str, Any] = {
    "id2label": CLASSES,
    "label2id": {name: number for number, name in CLASSES.items()},
}
SIDE = 32
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def yolos() -> Any:
    config = transformers.YolosConfig(
        image_size=[SIDE, SIDE],
        patch_size=8,
        intermediate_size=16,
        num_detection_tokens=6,
        **SIZES,
        **NAMED,
    )
    return transformers.YolosForObjectDetection(config)


def detr() -> Any:
    layers = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    hidden = {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")}
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"]
        ),
        d_model=16,
        num_queries=6,
        **layers,
        **heads,
        **hidden,
        **NAMED,
    )
    return transformers.DetrForObjectDetection(config)


def owl() -> Any:
    words = tokenizer(marks=True)
    text = SIZES | {"vocab_size": len(words), "intermediate_size": 16}
    text |= {"max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.OwlViTConfig(
        text_config=text | {"pad_token_id": 1},
        vision_config=SIZES | {"intermediate_size": 16, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    return transformers.OwlViTForObjectDetection(config)


PROCESSORS = {
    yolos: transformers.YolosImageProcessorPil,
    detr: transformers.DetrImageProcessorPil,
    owl: transformers.OwlViTImageProcessorPil,
}


def save_detector(folder: Path, build: Any) -> Path:
    torch.manual_seed(0)
    build().save_pretrained(folder)
    processor = PROCESSORS[build](size={"height": SIDE, "width": SIDE})
    if build is owl:
        processor = transformers.OwlViTProcessor(processor, tokenizer(marks=True))
    processor.save_pretrained(folder)
    return folder
