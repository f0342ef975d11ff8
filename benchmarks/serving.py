"""Pictures a second of the server's worker, and how long a short job waits behind a long one.

    python -m benchmarks.serving [--model emoji-256] [--pictures 32]

Clients wait for each picture and ask for the next, each with a prompt of its own. One at a time is
the same server with --batch 1. Both sides alternate in one process; ratios are of medians. The
short job has the model's own size and steps, the long one a picture of twice the side in 200 steps.
The last line is JSON.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.timing import machine
from opensana import Request, Sana
from opensana.serve.gate.keys import LOCAL
from opensana.serve.jobs.limits import Limits
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.store import Store
from opensana.serve.painting.sana_painter import SanaPainter
from opensana.serve.service import Service

CLIENTS = (1, 2, 4, 8)
SHORT_JOBS = 20
WORDS = ("apple", "house", "cat in a hat", "moon over a lake", "small blue car", "tree", "sad face")


@contextmanager
def service(sana: Sana, batch: int) -> Iterator[Service]:
    with TemporaryDirectory() as folder:
        limits = Limits(queue=2**60)
        found = Service(SanaPainter(sana), Store(Path(folder)), limits=limits, batch=batch)
        found.start()
        try:
            yield found
        finally:
            found.close()


async def draw(one: Service, prompt: str) -> float:
    """Seconds from asking to the picture on disk."""
    start = time.perf_counter()
    record = await one.submit(Order(request=Request(prompt)), LOCAL)
    done = await one.result(record.id, LOCAL)
    assert done.state == "completed", done.error
    return time.perf_counter() - start


async def rate(one: Service, clients: int, pictures: int) -> float:
    """Pictures a second."""
    numbers = iter(range(pictures))

    async def client() -> None:
        for number in numbers:
            await draw(one, f"{WORDS[number % len(WORDS)]} {number} {time.time()}")

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return pictures / (time.perf_counter() - start)


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


async def behind(one: Service, side: int) -> tuple[float, float]:
    """The 95th percentile of a short job's seconds, alone and behind a long one."""
    alone = [await draw(one, f"apple {time.time()}") for _ in range(SHORT_JOBS)]
    request = Request("a house", width=side, height=side, steps=200)
    long = await one.submit(Order(request=request), LOCAL)
    waited = list[float]()
    for _ in range(SHORT_JOBS):
        waited.append(await draw(one, f"apple {time.time()}"))
        assert not one.job(long.id, LOCAL).is_finished, "the long job was too short"
    one.cancel(long.id, LOCAL)
    return p95(alone), p95(waited)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="emoji-256")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sana = Sana.load(options.model)
    rates: dict[str, list[float]] = {}
    with service(sana, 1) as single, service(sana, 8) as mixed:
        asyncio.run(rate(mixed, 8, 8))
        for _ in range(options.rounds):
            for name, one, clients in [("one at a time, 8 clients", single, 8)] + [
                (f"mixed, {count} clients", mixed, count) for count in CLIENTS
            ]:
                found = asyncio.run(rate(one, clients, options.pictures))
                rates.setdefault(name, []).append(found)
        alone, waited = asyncio.run(behind(mixed, 2 * sana.native_size))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    base = medians["one at a time, 8 clients"]
    for name, found in medians.items():
        print(f"{name:<26} {found:6.2f} pictures/s  {found / base:5.2f} times")
    print(f"short job, p95: {alone:.3f} s alone, {waited:.3f} s behind a long one")
    result = {"pictures_per_second": medians, "short_p95_s": {"alone": alone, "behind": waited}}
    print(json.dumps({**machine(), **result}))


if __name__ == "__main__":
    main()
