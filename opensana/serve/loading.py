"""Loading: the painter of a model, in whatever process it is to draw."""

from dataclasses import fields, replace
from pathlib import Path

from opensana.models.options import LoadOptions
from opensana.pipeline import Sana
from opensana.serve.previews import load_previewer
from opensana.serve.sana_painter import SanaPainter


def load_painter(options: LoadOptions, *, exact: bool) -> SanaPainter:
    """Of the model that the options name; one in a folder is called like the folder."""
    keywords = {field.name: getattr(options, field.name) for field in fields(LoadOptions)}
    model = keywords.pop("model")
    sana = Sana.load(model, **keywords)
    if Path(model).expanduser().exists():  # clients are not told where it lies
        name = Path(model).expanduser().resolve().name
        sana = replace(sana, info=replace(sana.info, name=name))
    return SanaPainter(sana, previewer=load_previewer(sana), exact=exact)


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
