"""The device, and its ceilings: what products, copies and launches take at best."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring import attempt, milliseconds, short
from benchmarks.gpu.parts import Note, Setting
from opensana.device import free_memory
from opensana.evaluate.cost.roofline import measured_bandwidth

SIDE, TINY_SIDE = 8192, 64


def run(setting: Setting, note: Note) -> None:
    for name, value in description(setting.device).items():
        note(name, value)
    if not setting.tiny:
        note("copy_gb_per_second", short(measured_bandwidth(setting.device) / 1e9))
    side = TINY_SIDE if setting.tiny else SIDE
    for name, product in products(setting.device, side).items():
        note(
            f"{name}_tflops",
            attempt(setting, lambda product=product: tflops(setting, side, product)),
        )
    one = torch.zeros(1, device=setting.device)
    note("empty_launch_us", launch(setting, lambda: one.add_(1)))
    if setting.device.type == "cuda":
        note(
            "graph_node_us", attempt(setting, lambda: launch(setting, graph_of_nodes(one)) / NODES)
        )


def description(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": device.type, "free_gib": short(free_memory(device) / 2**30)}
    found = torch.cuda.get_device_properties(device)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": short(found.total_memory / 2**30),
        "free_gib": short(free_memory(device) / 2**30),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def products(device: torch.device, side: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """Products of two random matrices in each format; the first call makes the operands."""
    generator = torch.Generator(device).manual_seed(0)

    def random(dtype: torch.dtype = torch.float32) -> Tensor:
        made = torch.randn(side, side, device=device, generator=generator)
        return made.to(dtype)

    def plain(dtype: torch.dtype, precision: str = "ieee") -> Callable[[], object]:
        one, other = random(dtype), random(dtype)

        def run() -> object:
            if device.type == "cuda":
                torch.backends.cuda.matmul.fp32_precision = precision
            return one @ other

        return run

    def in_int8() -> Callable[[], object]:
        if device.type == "cpu":
            raise NotImplementedError("the CPU's int8 products are oneDNN's")
        one, other = ((30 * random()).to(torch.int8) for _ in range(2))
        return lambda: torch._int_mm(one, other.t())  # pyright: ignore

    def in_float8() -> Callable[[], object]:
        if device.type == "cpu":
            raise NotImplementedError("a CPU has no float8 products")
        one, other = (random().to(torch.float8_e4m3fn) for _ in range(2))
        scales = torch.ones(side, 1, device=device)
        return lambda: torch._scaled_mm(  # pyright: ignore
            one, other.t(), scales, scales.t(), out_dtype=torch.bfloat16
        )

    return {
        "bfloat16": lambda: plain(torch.bfloat16),
        "float16": lambda: plain(torch.float16),
        "tf32": lambda: plain(torch.float32, "tf32"),
        "float32": lambda: plain(torch.float32),
        "int8": in_int8,
        "float8": in_float8,
    }


def tflops(setting: Setting, side: int, make: Callable[[], Callable[[], object]]) -> float:
    taken = milliseconds(setting, {"product": make()}, times=3)["product"]
    return short(2 * side**3 / taken / 1e9)


NODES = 100


def launch(setting: Setting, call: Callable[[], object]) -> float:
    """Microseconds of one call among many."""
    return short(1000 * milliseconds(setting, {"launch": call}, times=200)["launch"])


def graph_of_nodes(one: Tensor) -> Callable[[], object]:
    """The replay of a CUDA graph of NODES kernels that do nothing much."""
    graph = torch.cuda.CUDAGraph()
    one.add_(1)
    with torch.cuda.graph(graph):
        for _ in range(NODES):
            one.add_(1)
    return graph.replay
