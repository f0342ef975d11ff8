"""A CLIP of transformers with tiny random weights, made and saved without any download."""

from pathlib import Path
from typing import Any

import torch
import transformers as typed_transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

transformers: Any = typed_transformers  # its types know neither sizes nor saving
IMAGE = "<image>"
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", IMAGE]
WORDS = ["a", "red", "green", "blue", "square", "on", "white", "paper", "what", "do", "you"]
WORDS += ["see", "here", "user", "assistant", ":", ".", "?"]


def tokenizer(*, marks: bool = False) -> PreTrainedTokenizerFast:
    """One token a word; with `marks` every text is put between <s> and </s>."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if marks:
        ends = [(mark, vocabulary[mark]) for mark in ("<s>", "</s>")]
        raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE],
    )


def image_processor() -> object:
    return transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VISION = SIZES | {"num_hidden_layers": 2, "image_size": 28, "patch_size": 14, "projection_dim": 16}


def save_clip(folder: Path) -> Path:
    """Its texts have 12 tokens at most."""
    words = tokenizer(marks=True)
    text = SIZES | {"vocab_size": len(words), "num_hidden_layers": 2, "projection_dim": 16}
    text |= {"max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
    torch.manual_seed(0)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    )
    model.save_pretrained(folder)
    transformers.CLIPProcessor(image_processor(), words).save_pretrained(folder)
    return folder
