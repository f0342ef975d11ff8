"""How many times as fast as its peers Sana draws: by arithmetic, measured here, and as printed.

    python -m benchmarks.headline --keep FILE [--sizes 512 1024] [--parts NAMES] [--repeats 3]
    python -m benchmarks.headline --keep FILE --repeats 0 [--plot FILE.png]

Measures one block of each network (`headline_parts`), all in turn in one process, and adds the
medians to FILE; the second form only prints what FILE has. A picture's seconds are

    steps x passes x (sum over kinds of blocks of their number x seconds) + decoding

- Decoders are measured at 512 pixels and follow their operations to other sizes.
- A peer's block that was not measured at a size follows from half the size: its attention alone is
  measured at both, with 2 of its heads, and the rest grows with the number of tokens.
- With `--clock processor` seconds are the process's own by thread, for a machine that is shared; a
  picture takes them where nothing else was measured.
- Text encoders and the embeddings around the blocks are left out.

The last line is JSON.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.headline_parts import ATTENTIONS, DECODERS, PARTS, Call, Part
from benchmarks.paper_speed import LIKELY, PEAK, PRINTED, Speed, impossible, rate
from benchmarks.timing import machine, medians, processor_seconds
from opensana.device import format_bytes
from opensana.evaluate.cost.catalogue import PAINTERS
from opensana.runtime.placing import prepare_for_inference
from opensana.train.monitor.plot import plot

SIZES = (512, 1024, 2048, 4096)
WARMED = 1024
"""Up to this size a first call is not counted; larger ones take long."""
SOME_HEADS = 2
DECODED = 512
PEERS, OURS = ("flux-dev", "sd3-medium", "pixart-sigma"), ("sana-0.6b", "sana-1.6b")
PLOTTED = ("flux-dev", "pixart-sigma")
CPU = torch.device("cpu")
CLOCKS = {"wall": time.perf_counter, "processor": processor_seconds}

Kept = dict[str, dict[str, dict[str, list[float]]]]
"""Seconds by clock, name of a part and size; one number for each time it was measured."""


def prepared(name: str, size: int) -> Call:
    torch.manual_seed(0)
    if name in ATTENTIONS:
        return ATTENTIONS[name].call(size, SOME_HEADS)
    build = PARTS[name].build if name in PARTS else DECODERS[name.removesuffix(".decoder")]
    network, call = build()
    prepare_for_inference(network.eval().requires_grad_(False), CPU, torch.float32)
    return call(size)


@torch.inference_mode()
def measured(names: list[str], size: int, repeats: int, clock: str) -> dict[str, float]:
    """Median seconds of a call of each, called in turn."""
    calls = [prepared(name, size) for name in names]
    seconds = medians(calls, repeats, warm=size <= WARMED, clock=CLOCKS[clock])
    return dict(zip(names, seconds, strict=True))


def found(kept: Kept, name: str, size: int, clock: str = "wall") -> float | None:
    times = kept.get(clock, {}).get(name, {}).get(str(size))
    return median(times) if times else None


def either(kept: Kept, name: str, size: int) -> float | None:
    return found(kept, name, size) or found(kept, name, size, "processor")


def derived(kept: Kept, name: str, size: int) -> float | None:
    """Seconds of a peer's block from half the size, where only its attention was measured at both.

    None if a part of that is missing.
    """
    attention, half = PARTS[name].attention, size // 2
    whole = found(kept, name, half)
    if attention is None or whole is None:
        return None
    for clock in CLOCKS:
        less, more = (found(kept, attention, pixels, clock) for pixels in (half, size))
        if less is not None and more is not None:
            part = ATTENTIONS[attention]
            every, growth = part.heads / SOME_HEADS, part.tokens(size) / part.tokens(half)
            return (whole - every * less) * growth + every * more
    return None


def seconds_of(kept: Kept, model: str, size: int) -> float | None:
    """Of one picture; None if some part of it is missing."""
    painter = PAINTERS[model]
    parts = [(name, part) for name, part in PARTS.items() if part.model == model]
    blocks = [_of_block(kept, name, part, size) for name, part in parts]
    decoded = found(kept, f"{painter.kind}.decoder", DECODED)
    if decoded is None or None in blocks:
        return None
    forward = sum(seconds for seconds in blocks if seconds)
    larger = painter.decode(size).macs / painter.decode(DECODED).macs
    return painter.steps * painter.passes * forward + larger * decoded


def _of_block(kept: Kept, name: str, part: Part, size: int) -> float | None:
    seconds = either(kept, name, size) or derived(kept, name, size)
    return seconds and part.count * seconds


def ratios(kept: Kept) -> Iterator[dict[str, Any]]:
    """A row for each size, peer and model of ours that was measured."""
    for size in SIZES:
        printed = PRINTED[size]
        for peer in PEERS:
            for ours in OURS:
                theirs, own = seconds_of(kept, peer, size), seconds_of(kept, ours, size)
                if theirs is None or own is None:
                    continue
                macs = [PAINTERS[model].picture(size).macs for model in (peer, ours)]
                yield {
                    "size": size,
                    "peer": peer,
                    "ours": ours,
                    "peer_seconds": round(theirs, 1),
                    "seconds": round(own, 1),
                    "arithmetic": round(macs[0] / macs[1], 1),
                    "measured": round(theirs / own, 1),
                    **(printed_ratios(printed[peer], printed[ours]) if peer in printed else {}),
                }


def printed_ratios(peer: Speed, ours: Speed) -> dict[str, float]:
    return {
        "printed_latency": round(peer.latency / ours.latency, 1),
        "printed_throughput": round(ours.throughput / peer.throughput, 1),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    heads = ("pixels", "peer", "ours", "peer here, s", "ours here, s", "ratio by arithmetic")
    heads += ("measured here", "printed, latency", "printed, throughput")
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        numbers = (f"{row[k]:,}" for k in ("peer_seconds", "seconds", "arithmetic", "measured"))
        latency, likely = row.get("printed_latency", ""), LIKELY.get((row["size"], row["ours"]))
        if likely:
            corrected = PRINTED[row["size"]][row["peer"]].latency / likely
            latency = f"{latency}, corrected {corrected:.1f}"
        names = (row["size"], row["peer"], row["ours"])
        cells = [*names, *numbers, latency, row.get("printed_throughput", "")]
        yield "| " + " | ".join(map(str, cells)) + " |"


def misprints() -> Iterator[str]:
    for size, model in impossible():
        seconds, likely = PRINTED[size][model].latency, LIKELY[size, model]
        yield (
            f"Table 14 prints {seconds} s for {model} at {size}: an A100 would do "
            f"{rate(model, size, seconds):.0f} x 10^12 operations a second, above its peak of "
            f"{PEAK:.0f}. {likely} s would be {rate(model, size, likely):.0f}."
        )


def checks(kept: Kept) -> Iterator[str]:
    """How far a block that follows from half the size is from the measured one."""
    for name in PARTS:
        for size in SIZES:
            own, other = found(kept, name, size), derived(kept, name, size)
            if own and other:
                yield f"{name} at {size}: {other / own - 1:+.1%} if it follows from {size // 2}"
    for name in (*PARTS, *ATTENTIONS):
        for size in SIZES:
            own, other = found(kept, name, size), found(kept, name, size, "processor")
            if own and other:
                yield f"{name} at {size}: {other / own - 1:+.1%} by processor time"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios to the smallest model of ours by size."""
    curves = {
        f"{peer}, {name}": [
            (float(row["size"]), row[key])
            for row in rows
            if row["peer"] == peer and row["ours"] == OURS[0] and key in row
        ]
        for peer in PLOTTED
        for name, key in (
            ("by arithmetic", "arithmetic"),
            ("measured here", "measured"),
            ("printed in the paper", "printed_latency"),
        )
    }
    label = f"seconds of a picture, relative to {OURS[0]}"
    plot(path, curves, label=label, log=True, across_label="pixels a side", legend="bottom")


def opened(path: Path) -> dict[str, Any]:
    """What was kept; figures of another machine are refused."""
    here = {key: value for key, value in machine().items() if key != "date"}
    kept = json.loads(path.read_text()) if path.is_file() else {"machine": here, "seconds": {}}
    if kept["machine"] != here:
        raise SystemExit(f"{path} was measured on {kept['machine']}; this is {here}")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description="Sana against its peers, block by block.")
    parser.add_argument("--keep", type=Path, required=True, help="what was measured so far")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES)
    names = (*PARTS, *ATTENTIONS, *(f"{kind}.decoder" for kind in DECODERS))
    parser.add_argument("--parts", nargs="+", choices=names, default=[*PARTS], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3, help="0: print what is kept")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    kept = opened(arguments.keep)
    for size in arguments.sizes if arguments.repeats else ():
        by_name = kept["seconds"].setdefault(arguments.clock, {})
        times = measured(arguments.parts, size, arguments.repeats, arguments.clock)
        for name, seconds in times.items():
            by_name.setdefault(name, {}).setdefault(str(size), []).append(round(seconds, 4))
            print(size, name, f"{seconds:.4f} s", flush=True)
        arguments.keep.write_text(json.dumps(kept, indent=1))
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{format_bytes(peak)} resident at most", flush=True)
    rows = list(ratios(kept["seconds"]))
    print("\n".join([*table(rows), "", *misprints(), *checks(kept["seconds"])]))
    if arguments.plot is not None:
        draw(rows, arguments.plot)
    results = {
        "ratios": {f"{r['size']}.{r['peer']}.{r['ours']}": r for r in rows},
        "seconds": {
            clock: {k: {s: median(v) for s, v in at.items()} for k, at in by_name.items()}
            for clock, by_name in kept["seconds"].items()
        },
    }
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
