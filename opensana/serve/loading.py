"""Loading: the painter of a model, in whatever process it is to draw."""

from typing import Any

from opensana.pipeline import Sana
from opensana.serve.previews import load_previewer
from opensana.serve.sana_painter import SanaPainter


def load_painter(options: dict[str, Any], *, exact: bool) -> SanaPainter:
    """`options` are the keywords of `Sana.load`."""
    sana = Sana.load(**options)
    return SanaPainter(sana, previewer=load_previewer(sana), exact=exact)
