"""What A1111's API is asked: the bodies of txt2img and img2img, each to an Order with warnings.

Its clients send every field that its web page has. Those that leave the picture as it is are
ignored; any other that cannot be done is a warning in the answer, as such clients do not expect an
error. So here it is a table of what is harmless that is kept, not one of what is refused.
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from opensana.drawing.mask import drawn_part
from opensana.drawing.picture import SAMPLER_NAMES
from opensana.errors import RequestError
from opensana.pictures.input import read_layer
from opensana.request import MOST_IMAGES, SIZE_STEP, Request, SolverName
from opensana.serve.jobs.order import LoraChoice, Order, picture_bytes

NOTHING = (None, "", False, 0, [], {})
ANYTHING = object()
"""The neutral values of a field that changes no pixel, whatever it says."""
NEUTRAL: Mapping[str, Any] = {
    "subseed": ANYTHING,  # counts with subseed_strength alone
    "subseed_strength": NOTHING,
    "seed_resize_from_h": (*NOTHING, -1),
    "seed_resize_from_w": (*NOTHING, -1),
    "eta": ANYTHING,  # of samplers that add noise, which are not here
    "s_min_uncond": NOTHING,
    "s_churn": NOTHING,
    "s_tmax": ANYTHING,  # it and the next are limits of s_churn
    "s_tmin": ANYTHING,
    "s_noise": (*NOTHING, 1),
    "scheduler": ("automatic", "Automatic", *NOTHING),
    "clip_skip": (*NOTHING, 1),
    "refiner_checkpoint": (*NOTHING, "None"),
    "refiner_switch_at": ANYTHING,
    "hr_scale": ANYTHING,  # all of hr_ counts with enable_hr alone
    "hr_upscaler": ANYTHING,
    "hr_second_pass_steps": ANYTHING,
    "hr_resize_x": ANYTHING,
    "hr_resize_y": ANYTHING,
    "hr_checkpoint_name": ANYTHING,
    "hr_sampler_name": ANYTHING,
    "hr_scheduler": ANYTHING,
    "hr_prompt": ANYTHING,
    "hr_negative_prompt": ANYTHING,
    "hr_additional_modules": ANYTHING,
    "hr_cfg": ANYTHING,
    "hr_distilled_cfg": ANYTHING,
    "firstphase_width": ANYTHING,
    "firstphase_height": ANYTHING,
    "script_args": ANYTHING,  # counts with script_name alone
    "save_images": ANYTHING,  # pictures are kept for as long as the server says
    "do_not_save_samples": ANYTHING,
    "do_not_save_grid": ANYTHING,
    "override_settings_restore_afterwards": ANYTHING,
    "image_cfg_scale": ANYTHING,  # of models that are taught to edit
    "resize_mode": (*NOTHING, 1),  # init images are scaled and cut, which is 1
    "mask_blur": ANYTHING,  # the edge of a mask is blended by a width of its own
    "mask_blur_x": ANYTHING,
    "mask_blur_y": ANYTHING,
    "mask_round": ANYTHING,
    "inpainting_fill": (*NOTHING, 1, 2),  # what lies under the mask is noise in any case
    "inpaint_full_res_padding": ANYTHING,  # counts with inpaint_full_res alone
    "initial_noise_multiplier": (*NOTHING, 1),
    "latent_mask": NOTHING,
    "url": ANYTHING,  # the server's address and password, which SillyTavern sends along
    "auth": ANYTHING,
}
SETTINGS: Mapping[str, Any] = {
    "sd_vae": (*NOTHING, "Automatic", "None"),
    "CLIP_stop_at_last_layers": (*NOTHING, 1),
    "samples_format": (*NOTHING, "png"),
    "sd_checkpoint_hash": ANYTHING,  # beside sd_model_checkpoint
    "eta_noise_seed_delta": NOTHING,
}
"""As NEUTRAL, of what the program calls options; others are harmless if they say nothing."""
SOLVERS: dict[str, SolverName] = {SAMPLER_NAMES[solver]: solver for solver in get_args(SolverName)}
CLIENT_NAMES = {
    "images": "batch_size",
    "guidance": "cfg_scale",
    "strength": "denoising_strength",
    "solver": "sampler_name",
    "image": "init_images",
    "lora": "prompt",
}
"""How A1111's clients call fields of an Order, for errors."""
LORA = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?[^<>]*>")
NUMBER = re.compile(r"\s*-?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})\s*")
WEIGHTS = re.compile(r"\([^()]+:\s*-?[\d.]+\s*\)")
LONGEST_SHOWN = 60


def _is_given(value: object) -> object:
    return None if value in ("", -1, "-1") else value


Whole = Annotated[int | None, BeforeValidator(_is_given)]
"""A number, where "", -1 and null are as left out."""
Count = Annotated[int, Field(ge=1, le=MOST_IMAGES)]


class Txt2Img(BaseModel):
    """The body of `POST /sdapi/v1/txt2img`: what counts here, and whatever else comes with it."""

    model_config = ConfigDict(extra="allow")

    prompt: str = ""
    negative_prompt: str | None = None
    seed: Whole = None
    steps: Whole = None
    cfg_scale: float | None = None
    width: Whole = None
    height: Whole = None
    batch_size: Count = 1
    n_iter: Count = 1
    sampler_name: str | None = None
    sampler_index: str | None = None
    styles: list[str] | None = None
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool = True
    force_task_id: str | None = None


class Img2Img(Txt2Img):
    """The body of `POST /sdapi/v1/img2img`."""

    init_images: list[str] | None = None
    mask: str | None = None
    inpainting_mask_invert: int = 0
    inpaint_full_res: bool = False
    include_init_images: bool = False


@dataclass(frozen=True)
class Asked:
    """What is drawn, and what of the body is not done."""

    order: Order
    warnings: tuple[str, ...]


def asked(body: Txt2Img, capabilities: Mapping[str, Any]) -> Asked:
    """RequestError for what can be no picture at all: an empty prompt, a damaged image."""
    warnings = list(_unsupported(body, capabilities["model"]))
    prompt, loras = _split_loras(body.prompt)
    if WEIGHTS.search(prompt):
        warnings.append("weights in the prompt such as (word:1.2) are read as plain text")
    image, mask = _pictures(body) if isinstance(body, Img2Img) else (None, None)
    request = Request(
        prompt,
        negative_prompt=body.negative_prompt or "",
        width=_rounded("width", body.width, warnings),
        height=_rounded("height", body.height, warnings),
        steps=body.steps,
        guidance=body.cfg_scale,
        seed=body.seed,
        images=body.batch_size * body.n_iter,
        solver=_solver(body, capabilities["solvers"], warnings),
        strength=_strength(body, warnings) if image is not None else None,
    )
    order = Order(request=request, image=image, mask=mask, loras=loras)
    return Asked(order, tuple(warnings))


def unsupported_settings(settings: Mapping[str, Any], model: str) -> Iterator[str]:
    """A line for each option that would change a picture and cannot be done."""
    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            if value not in (*NOTHING, model):
                yield f"sd_model_checkpoint {_shown(value)}: this server draws with {model}"
        elif not _is_neutral(value, SETTINGS.get(name, NOTHING)):
            yield _not_done(name, value)


def _unsupported(body: Txt2Img, model: str) -> Iterator[str]:
    for name, value in (body.model_extra or {}).items():
        if not _is_neutral(value, NEUTRAL.get(name, NOTHING)):
            yield _not_done(name, value)
    if body.styles:
        yield _not_done("styles", body.styles)
    yield from unsupported_settings(body.override_settings or {}, model)
    for name, script in (body.alwayson_scripts or {}).items():
        arguments = script.get("args") if isinstance(script, dict) else script
        first = next(iter(arguments), None) if isinstance(arguments, list) else arguments
        if first not in NOTHING:  # its first argument turns a script on
            yield f"the script {_shown(name)} is not there; ignored"
    if isinstance(body, Img2Img) and body.mask and body.inpaint_full_res:
        yield _not_done("inpaint_full_res", True)


def _is_neutral(value: object, neutral: Any) -> bool:
    return neutral is ANYTHING or value in neutral


def _not_done(name: str, value: object) -> str:
    return f"{_shown(name)} {_shown(value)} is not supported; ignored"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    short = text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."
    return " ".join(short.split())


def _split_loras(prompt: str) -> tuple[str, tuple[LoraChoice, ...]]:
    """The prompt without its `<lora:name:weight>`, and those."""
    loras = []
    for name, weight in LORA.findall(prompt):
        if not NUMBER.fullmatch(weight or "1"):
            message = f"the weight of <lora:{name}:{weight}> must be a number; try 1"
            raise RequestError(message, field="prompt")
        loras.append(LoraChoice(name.strip(), float(weight or 1)))
    if not loras:
        return prompt, ()
    return " ".join(LORA.sub(" ", prompt).split()), tuple(loras)


def _rounded(name: str, value: int | None, warnings: list[str]) -> int | None:
    """The nearest size that can be drawn."""
    if value is None or value <= 0 or value % SIZE_STEP == 0:
        return value
    nearest = max(1, round(value / SIZE_STEP)) * SIZE_STEP
    warnings.append(f"{name} {value} is no multiple of {SIZE_STEP}; drawn with {nearest}")
    return nearest


def _solver(body: Txt2Img, known: list[str], warnings: list[str]) -> SolverName | None:
    """The solver of a sampler's name; None, the model's own, for one that is not here."""
    name = body.sampler_name or body.sampler_index
    if not name or name.lower() == "automatic":
        return None
    solver = SOLVERS.get(name)
    if solver in known:
        return solver
    here = ", ".join(SAMPLER_NAMES[one] for one in known)
    warnings.append(f"the sampler {_shown(name)} is not there; drawn with this model's ({here})")
    return None


def _strength(body: Img2Img | Txt2Img, warnings: list[str]) -> float | None:
    if body.denoising_strength == 0:
        warnings.append("denoising_strength 0 would draw nothing; drawn with the model's default")
        return None
    return body.denoising_strength


def _pictures(body: Img2Img) -> tuple[bytes, bytes | None]:
    """The picture to start from, and where to draw: white."""
    if not body.init_images:
        message = "init_images is empty; send a picture to start from, in base64"
        raise RequestError(message, field="init_images")
    if len(body.init_images) > 1:
        message = f"init_images has {len(body.init_images)} pictures; send one"
        raise RequestError(message, field="init_images")
    image = picture_bytes(body.init_images[0], "init_images")
    if not body.mask:
        return image, None
    mask = picture_bytes(body.mask, "mask")
    return image, _inverted(mask) if body.inpainting_mask_invert else mask


def _inverted(mask: bytes) -> bytes:
    drawn, _ = drawn_part(read_layer(mask, "mask"))
    buffer = io.BytesIO()
    Image.fromarray(np.where(drawn, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
