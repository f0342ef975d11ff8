"""The cost of pictures as nested figures, and as the tables that the command prints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opensana.evaluate.cost.catalogue import Painter
from opensana.evaluate.cost.roofline import Limits, bound
from opensana.evaluate.cost.sheet import Sheet

HALF = 2
"""Bytes a number where no device says another format: bfloat16."""


def figures(
    painters: Mapping[str, Painter],
    sizes: Sequence[int],
    *,
    device: Limits | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Of every model at every size; an operation is half a multiply-accumulate (MAC)."""
    itemsize = device.dtype.itemsize if device else HALF
    found: dict[str, Any] = {}
    for name, painter in painters.items():
        at: dict[int, dict[str, Any]] = {}
        for size in sizes:
            at[size] = {
                "forward": _of(painter.forward(size), itemsize, device),
                "decode": _of(painter.decode(size), itemsize, device),
                "picture": _of(painter.picture(size, steps=steps), itemsize, device),
            }
        found[name] = {
            "parameters": painter.forward(sizes[0]).parameters,
            "decoder_parameters": painter.decode(sizes[0]).parameters,
            "steps": steps or painter.steps,
            "forward_passes_a_step": painter.passes,
            "text_tokens": painter.text_tokens,
            "sizes": at,
        }
    described: dict[str, Any] = {"bytes_a_number": itemsize, "models": found}
    if device is not None:
        described["device"] = {
            "name": device.name,
            "dtype": str(device.dtype).removeprefix("torch."),
            "operations_per_second": device.peak,
            "bytes_per_second": device.bandwidth,
        }
    return described


def _of(sheet: Sheet, itemsize: int, device: Limits | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "macs": sheet.macs,
        "operations": 2 * sheet.macs,
        "bytes": sheet.numbers * itemsize,
    }
    if device is not None:
        least = bound(sheet, device)
        found |= {"seconds": least.seconds, "waiting_for_memory": least.waiting}
    return found


def tables(described: Mapping[str, Any]) -> list[tuple[str, list[list[Any]]]]:
    """Titles, and rows of cells whose first row names the columns."""
    models = described["models"]
    sizes = list(next(iter(models.values()))["sizes"])

    def rows(part: str, cell: Callable[[dict[str, Any]], str]) -> list[list[Any]]:
        head: list[Any] = ["", "parameters", "steps", *(f"{size} px" for size in sizes)]
        return [head] + [
            [
                name,
                f"{model['parameters'] / 1e9:.3f} B",
                f"{model['steps']} x {model['forward_passes_a_step']}",
                *(cell(model["sizes"][size][part]) for size in sizes),
            ]
            for name, model in models.items()
        ]

    found = [
        ("TMACs of one forward pass", rows("forward", lambda c: f"{c['macs'] / 1e12:.4g}")),
        (
            "TMACs of a picture: steps x forward passes, and its decoding",
            rows("picture", lambda c: f"{c['macs'] / 1e12:.5g}"),
        ),
        (
            f"GB that its products read and write, {described['bytes_a_number']} bytes a number",
            rows("picture", lambda c: f"{c['bytes'] / 1e9:.4g}"),
        ),
    ]
    if "device" in described:
        device = described["device"]
        title = (
            f"least seconds of a picture on {device['name']}, {device['dtype']}: "
            f"{device['operations_per_second'] / 1e12:.4g} T operations/s, "
            f"{device['bytes_per_second'] / 1e12:.4g} TB/s"
        )
        found.append((title, rows("picture", lambda c: f"{c['seconds']:.3g}")))
    return found
