"""`opensana quantize`: a model in 8 or 4 bits, and a report of what that does."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from opensana.cli.command import Command, emit, emit_json, say
from opensana.models.options import Device, Model, SchemeName, Variant

if TYPE_CHECKING:
    from opensana.transformer.model import Transformer

PARTS = ("transformer", "transformer_sprint", "text_encoder", "vae")


@dataclass(frozen=True)
class Quantize(Command):
    """Write a model in 8 or 4 bits, and what that does: report.json, report.md, report.png."""

    model: Positional[Model]
    to: Annotated[Path, arg(metavar="FOLDER")]
    """The model folder to write."""
    scheme: SchemeName
    """w8a8 multiplies in 8 bits, for speed and memory, fp8 in 8-bit floats on newer NVIDIA cards;
    w8 and w4 are for memory alone."""
    parts: Annotated[str, arg(metavar="PARTS")] = "transformer"
    """What to quantise: transformer, text (always weights in 8 bits), or both with a comma."""
    rank: Annotated[int, arg(metavar="N")] = 32
    """Of the 16-bit branch that takes the outliers of w4; 0 for none."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH")] = ()
    """A LoRA file or its folder, merged before; given again, one more is added."""
    lora_scale: Annotated[UseAppendAction[tuple[float, ...]], arg(metavar="FACTOR")] = ()
    """How much of each LoRA; left out, all of it."""
    variant: Variant = None
    device: Device = "auto"
    prompt: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PROMPT")] = ()
    """A prompt of the report's pictures; left out, four of ours."""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """Draw the report's pictures in so many steps; left out, what the model recommends."""
    kernels: bool = False
    """Time and draw with the kernels in C++, which are compiled in seconds and kept."""
    no_report: bool = False
    """Only write the model: the report loads both, and draws."""
    json: bool = False
    """Print the report as one JSON object, without its layers."""

    def run(self) -> None:
        from opensana.device import resolve_device
        from opensana.errors import ConfigError
        from opensana.models.quantised import parse_parts, write_quantised
        from opensana.runtime.quantize import Quantization, check_device
        from opensana.weights.lora import paired, read_lora

        if self.rank < 0:
            raise ConfigError(f"rank must be 0 or more, got {self.rank}")
        scheme = Quantization(self.scheme, self.rank if self.scheme == "w4" else 0)
        parts = parse_parts(self.parts)
        if not self.no_report:
            check_device(self.scheme, resolve_device(self.device))
        loras = [(read_lora(file), scale) for file, scale in paired(self.lora, self.lora_scale)]
        say(f"quantising {self.model}")
        write_quantised(self.model, self.to, scheme, parts=parts, loras=loras, variant=self.variant)
        figures = {} if self.no_report else self._report()
        if self.json:
            figures.pop("layers", None)
            emit_json({"folder": str(self.to), "bytes": self._sizes(), **figures})
        else:
            emit(str(self.to))

    def _report(self) -> dict[str, Any]:
        from opensana.evaluate.quantised import PROMPTS, compare, write_report
        from opensana.models.load import load_transformer
        from opensana.pipeline import Sana
        from opensana.weights.locate import locate
        from opensana.weights.lora import apply_loras, paired, read_lora

        say("comparing both")
        plain = Sana.load(
            self.model, device=self.device, variant=self.variant, lora=self.lora,
            lora_scale=self.lora_scale or 1.0, kernels=self.kernels,
        )  # fmt: skip

        def reference() -> "Transformer":
            folder = locate(self.model, variant=self.variant)
            network = load_transformer(folder, variant=self.variant)
            pairs = paired(self.lora, self.lora_scale)
            apply_loras(network, [(read_lora(file), scale) for file, scale in pairs])
            return network.to(plain.device, plain.transformer.dtype)

        figures = compare(
            plain, reference, self.to, prompts=self.prompt or PROMPTS, steps=self.steps,
            kernels=self.kernels,
        )  # fmt: skip
        write_report(figures, self._sizes(), self.to)
        if "faster" in figures and figures["faster"] < 1:
            before, after = (f"{1000 * s:.0f} ms" for s in figures["seconds_a_step"].values())
            say(f"{self.scheme} saves memory here, not time: a step took {before}, now {after}")
        return figures

    def _sizes(self) -> dict[str, dict[str, int]]:
        """Bytes of each part that both folders hold as safetensors, before and after."""
        from opensana.models.quantised import stored_bytes
        from opensana.weights.locate import locate

        before = locate(self.model, variant=self.variant)
        parts = [part for part in PARTS if any((self.to / part).glob("*.safetensors"))]
        return {
            part: {
                "before": stored_bytes(before / part, self.variant),
                "after": stored_bytes(self.to / part, self.variant),
            }
            for part in parts
        }
