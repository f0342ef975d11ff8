"""A local VLM: any image-text-to-text model of transformers.

Decoding is greedy, so a picture always gets the same words. A model's own code is never run, and
weights are safetensors.
"""

from itertools import islice
from typing import Any

import torch
from PIL import Image

from opensana.device import resolve_device, resolve_dtype
from opensana.errors import OpensanaError
from opensana.label.captioner import (
    Answers,
    CaptionSource,
    Failure,
    Pictures,
    Settings,
    shrunk,
    single_line,
)
from opensana.metrics.library_models import fingerprint, load, published_name
from opensana.weights.locate import locate_library

Batch = list[tuple[str, Image.Image]]


class LocalCaptioner:
    """Captions pictures in batches; a batch that fails is retried picture by picture."""

    def __init__(self, name: str, settings: Settings) -> None:
        folder = locate_library(name)
        self.source = CaptionSource(
            published_name(name), fingerprint(folder), settings.prompt, settings.recorded
        )
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.model, self.processor = load(folder, "AutoModelForImageTextToText", "generate")
        self.model.to(self.device, resolve_dtype(self.device, stored=self.model.dtype)).eval()
        self.processor.tokenizer.padding_side = "left"
        self.chats = bool(getattr(self.processor, "chat_template", None))

    def __call__(self, pictures: Pictures) -> Answers:
        remaining = iter(pictures)
        while batch := list(islice(remaining, self.settings.batch)):
            yield from self._answers(batch)

    def _answers(self, batch: Batch) -> Answers:
        try:
            texts = self.describe([image for _, image in batch])
        except torch.OutOfMemoryError as error:
            raise OpensanaError(
                f"{self.source.captioner} ran out of memory with {len(batch)} pictures at once; "
                "try a smaller --batch"
            ) from error
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            if len(batch) > 1:
                for single in batch:
                    yield from self._answers([single])
            else:
                yield batch[0][0], Failure(f"{type(error).__name__}: {error}"[:300])
            return
        for (key, _), text in zip(batch, texts, strict=True):
            yield key, single_line(text)

    @torch.inference_mode()
    def describe(self, images: list[Image.Image]) -> list[str]:
        """Generate the text for each picture."""
        small = [shrunk(image, self.settings.largest_side) for image in images]
        inputs = self._inputs(small).to(self.device, self.model.dtype)
        tokens = self.model.generate(
            **inputs, max_new_tokens=self.settings.max_tokens, do_sample=False, num_beams=1
        )
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(tokens, skip_special_tokens=True)

    def _inputs(self, images: list[Image.Image]) -> Any:
        """Process pictures and prompt, with the chat template if there is one."""
        if not self.chats:
            prompts = [self.settings.prompt] * len(images)
            return self.processor(images=images, text=prompts, padding=True, return_tensors="pt")
        words = {"type": "text", "text": self.settings.prompt}
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, words]}]
            for image in images
        ]
        return self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
