"""Loading: the painter of a model, in whatever process it is to draw."""

from dataclasses import fields, replace
from pathlib import Path

from opensana.models.options import LoadOptions
from opensana.models.with_loras import WithLoras, check_options
from opensana.pipeline import Sana
from opensana.serve.painting.loras import LoraFolder, check_folder
from opensana.serve.painting.merged import MergedModels
from opensana.serve.painting.previews import load_previewer
from opensana.serve.painting.sana_painter import SanaPainter


def load_painter(
    options: LoadOptions,
    *,
    exact: bool,
    loras: Path | None = None,
    lora_bytes: int | None = None,
) -> SanaPainter:
    """Of the model that the options name, and of LoRAs in a folder: see `MergedModels`.

    A model in a folder is called like the folder.
    """
    if loras is not None:  # what is wrong with them is said before the wait
        check_options(options)
        check_folder(loras)
    keywords = {field.name: getattr(options, field.name) for field in fields(LoadOptions)}
    model, merged = keywords.pop("model"), None
    sana = Sana.load(model, **keywords)
    if Path(model).expanduser().exists():  # clients are not told where it lies
        name = Path(model).expanduser().resolve().name
        sana = replace(sana, info=replace(sana.info, name=name))
    if loras is not None:
        base = WithLoras(sana, options)
        merged = MergedModels(base, LoraFolder(loras, base.check), most_bytes=lora_bytes)
    return SanaPainter(sana, previewer=load_previewer(sana), exact=exact, merged=merged)


def whole_paths(options: LoadOptions) -> LoadOptions:
    """Options that name the same files in a process with another current folder."""

    def whole(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(whole, value))
        if isinstance(value, str | Path) and Path(value).expanduser().exists():
            return str(Path(value).expanduser().resolve())
        return value

    names = ("model", "transformer", "lora", "controlnet")
    return replace(options, **{name: whole(getattr(options, name)) for name in names})
