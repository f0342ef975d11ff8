"""What A1111's API answers to txt2img and img2img: pictures, the body again, and `info`.

`info` is a JSON string, which clients parse for the seeds and the settings of each picture.
"""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from opensana.drawing.picture import SAMPLER_NAMES
from opensana.serve.api.a1111_body import NEUTRAL, Img2Img, Txt2Img
from opensana.serve.api.formats import settings_of
from opensana.serve.jobs.job import JobRecord

HEADER = "x-opensana-warnings"
LONGEST_HEADER = 4000
PRIVATE = {"url", "auth"}
"""Of a body, what is not sent back; nor is what A1111 does not know."""


def answer(
    record: JobRecord, pngs: Sequence[bytes], body: Txt2Img, model: str, warnings: Sequence[str]
) -> dict[str, Any]:
    """The body of the answer; `pngs` are those of the record's pictures that are drawn."""
    parameters = body.model_dump(include=set(type(body).model_fields) | set(NEUTRAL) - PRIVATE)
    if isinstance(body, Img2Img) and not body.include_init_images:
        parameters |= {"init_images": None, "mask": None}
    images = [base64.b64encode(png).decode() for png in pngs] if body.send_images else []
    info = _info(record, [_settings(png) for png in pngs], body, model) | {
        "warnings": list(warnings)
    }
    # What comes back may hold NaN, which is no JSON.
    parameters = json.loads(json.dumps(parameters), parse_constant=lambda name: None)
    return {"images": images, "parameters": parameters, "info": json.dumps(info)}


def headers(warnings: Sequence[str]) -> dict[str, str]:
    """The warnings once more, as a JSON list, where there are any."""
    return {HEADER: json.dumps(list(warnings))[:LONGEST_HEADER]} if warnings else {}


def _info(record: JobRecord, texts: list[str], body: Txt2Img, model: str) -> dict[str, Any]:
    request, drawn = record.request, [one for one in record.images if one.done]
    count, seeds = len(drawn), [one.seed for one in drawn]
    solver = request.solver
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": request.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": record.images[0].width,
        "height": record.images[0].height,
        "sampler_name": solver and SAMPLER_NAMES[solver],
        "cfg_scale": request.guidance,
        "steps": request.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": str(int(record.created)),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "job_id": record.id,
    }


def _settings(png: bytes) -> str:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return settings_of(image)
