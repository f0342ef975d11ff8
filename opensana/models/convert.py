"""Official `.pth` transformers and original DC-AE files into the published layout.

The only place that reads pickled files, and only with `weights_only`: no code in them runs.
"""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.errors import ConfigError, WeightsError, near
from opensana.files.writing import read_json, write_json
from opensana.metrics import inception, lpips
from opensana.models.index import DEFAULTS, INDEX, PIPELINES, read_info
from opensana.models.presets import AUTOENCODERS, TRANSFORMERS
from opensana.models.save import write_autoencoder, write_transformer
from opensana.models.scheduler import DPM, SCM, write_scheduler
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from opensana.weights.formats import check_formats, format_of, widened
from opensana.weights.locate import locate, locate_file
from opensana.weights.published_models import MODELS, published_model
from opensana.weights.rename_tables import convert_autoencoder, convert_transformer, unwrapped
from opensana.weights.safetensors import load_into, read_safetensors, write_safetensors

Config = TransformerConfig | AutoencoderConfig
STATE_NAMES = ("state_dict", "model_state_dict", "model", "module")
BASE_PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    preset: str | None = None,
    config: Config | None = None,
    base: str | Path | None = None,
    shift: float | None = None,
    ema: bool = False,
    heads: str | Path | None = None,
) -> Path:
    """Write `destination/transformer` (with its scheduler) or `destination/vae` from one file.

    `source` is a path or `hf://owner/repository/file`. `preset` names a transformer, an
    autoencoder or a published model. `base`, a whole model, gives the parts that the file lacks,
    so that the destination can be drawn with. `ema` takes the averaged weights of a `.pth`.
    The presets `lpips_alexnet` and `lpips_vgg16` make LPIPS of torchvision's network and the file
    of its `heads`; `inception_fid` makes the Inception of published FIDs.
    """
    if preset in lpips.LPIPS_PRESETS:
        network = lpips.LPIPS_PRESETS[preset]
        return _convert_lpips(source, heads, network, Path(destination))
    if preset == inception.INCEPTION_PRESET and heads is None:
        network = inception.inception_of(read_state(locate_file(source)), where=source)
        write_safetensors(network.state_dict(), Path(destination), name="model")
        return Path(destination)
    if heads is not None:
        known = " and ".join(lpips.LPIPS_PRESETS)
        raise ConfigError(f"heads belong to the presets {known}, got {preset!r}")
    config = _config(preset, config)
    if shift is not None and isinstance(config, TransformerConfig) and config.guidance_embeds:
        raise ConfigError(f"a Sprint model has no shift, got {shift:g}; leave it out")
    module = _module(config, read_state(locate_file(source), ema=ema), source)
    destination = Path(destination)
    if isinstance(module, Autoencoder):
        write_autoencoder(module, destination / "vae")
    elif isinstance(module, Transformer):
        write_transformer(module, destination / "transformer")
        scheduler = SCM if module.config.guidance_embeds else DPM
        write_scheduler(destination, _shift(preset, shift), scheduler)
    if base is not None:
        _complete(destination, locate(base))
    return destination


def _convert_lpips(
    source: str | Path, heads: str | Path | None, network: lpips.NetworkName, destination: Path
) -> Path:
    if heads is None:
        file = lpips.HEADS[network]
        raise ConfigError(f"LPIPS is made of two files; give its linear heads ({file}) as --heads")
    parts = [read_state(locate_file(file)) for file in (source, heads)]
    module = lpips.lpips_of(lpips.joined(*parts), network, where=source)
    write_safetensors(module.state_dict(), destination, name="model")
    return destination


def _config(preset: str | None, config: Config | None) -> Config:
    if (preset is None) == (config is None):
        raise ConfigError("say what the file holds: give either a preset or a config")
    if config is not None:
        return config
    assert preset is not None
    known = published_model(preset)
    name = known.transformer if known else preset.lower().replace("-", "_").replace(".", "_")
    tables: dict[str, Config] = {**TRANSFORMERS, **AUTOENCODERS}
    if name not in tables:
        hint = near(preset, [*tables, *MODELS, *lpips.LPIPS_PRESETS, inception.INCEPTION_PRESET])
        raise ConfigError(f"no preset {preset!r}{hint}; there are: {', '.join(tables)}")
    return tables[name]


def _module(config: Config, state: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    with torch.device("meta"):
        if isinstance(config, AutoencoderConfig):
            module, converted = Autoencoder(config), convert_autoencoder(state)
        else:
            module, converted = Transformer(config), convert_transformer(state)
    load_into(module, converted, where=source)
    return module


def _shift(preset: str | None, shift: float | None) -> float:
    if shift is not None:
        return shift
    known = published_model(preset) if preset else None
    if known is not None:
        return known.shift
    return 6.0 if preset is not None and preset.endswith("4k") else 3.0


def read_state(file: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of an official `.pth`, without wrappers' names."""
    if file.suffix.lower() == ".safetensors":
        return unwrapped(read_safetensors(file))
    state = _tensors(_unpickle(file), file, ema)
    check_formats({key: format_of(tensor) for key, tensor in state.items()}, where=file)
    return unwrapped({key: widened(tensor) for key, tensor in state.items()})


def _tensors(content: Mapping[str, Any], file: Path, ema: bool) -> Mapping[str, Tensor]:
    """The table of tensors in what a `.pth` holds, beside its optimizer, its step and so on."""
    if ema:
        if "state_dict_ema" not in content:
            raise WeightsError(f"{file} holds no averaged weights (state_dict_ema)")
        content = content["state_dict_ema"]
    else:
        name = next((n for n in STATE_NAMES if isinstance(content.get(n), Mapping)), None)
        content = content[name] if name else content
    strange = [
        key
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strange or not content:
        raise WeightsError(f"{file} is not a table of tensors: {strange[:3] or 'it is empty'}")
    return content


def _unpickle(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{file} is damaged, or holds code and was refused ({reason})") from None
    except Exception as error:  # the restricted reader meets garbage with any kind of error
        raise WeightsError(f"{file} is damaged or no PyTorch file ({error})") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds a {type(content).__name__}, expected a table of tensors")
    return content


def _complete(destination: Path, base: Path) -> None:
    """Copy what the converted file does not bring, and the base's index with its defaults."""
    read_info(base)
    for name in BASE_PARTS:
        if (base / name).is_dir() and not (destination / name).exists():
            shutil.copytree(base / name, destination / name)
    index = read_json(base / INDEX)
    scheduler = read_json(destination / "scheduler" / "scheduler_config.json")["_class_name"]
    kind = next(kind for kind, schedulers in PIPELINES.items() if scheduler in schedulers)
    defaults = index.get(DEFAULTS)
    if kind != index.get("_class_name", "SanaPipeline") and isinstance(defaults, dict):
        defaults.pop("steps", None)  # the base's: a Sprint model wants other numbers than the rest
    index |= {"_class_name": kind, "scheduler": ["diffusers", scheduler]}
    write_json(destination / INDEX, index)
