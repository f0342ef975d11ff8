"""`opensana convert`: published weights in another layout to a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit


@dataclass(frozen=True)
class Convert(Command):
    """Turn an official .pth or an original DC-AE file into a folder that opensana loads."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A file, or hf://owner/repository/file on the hub."""
    destination: Annotated[Positional[Path], arg(metavar="DESTINATION")]
    """The folder to write."""
    preset: Annotated[str, arg(metavar="NAME")]
    """What the file holds, such as Sana_1600M_1024px, dc_ae_f32c32_sana_1_0, lpips_alexnet,
    lpips_vgg16 or inception_fid."""
    base: Annotated[str | None, arg(metavar="MODEL")] = None
    """A whole model that gives the parts which the file lacks, so that the result can draw."""
    shift: float | None = None
    """The solver's shift; left out, that of the published model."""
    ema: bool = False
    """Take the averaged weights of the file."""
    heads: Annotated[str | None, arg(metavar="FILE")] = None
    """For lpips_alexnet and lpips_vgg16, beside torchvision's network: the linear heads of LPIPS
    0.1."""

    def run(self) -> None:
        from opensana.models.convert import convert

        folder = convert(
            self.source,
            self.destination,
            preset=self.preset,
            base=self.base,
            shift=self.shift,
            ema=self.ema,
            heads=self.heads,
        )
        emit(str(folder))
