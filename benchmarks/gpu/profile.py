"""Which kernels a guided step and a decoding spend their time in, and how long the device idles."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.eight_bits import guided_step
from benchmarks.gpu.measuring import short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import (
    autoencoder_config,
    random_autoencoder,
    random_transformer,
    transformer_config,
)
from benchmarks.timing import finished

SHOWN, CALLS = 15, 3


def run(setting: Setting, note: Note) -> None:
    config = transformer_config("sana_600m_1024", tiny=setting.tiny)
    with torch.inference_mode():
        network = random_transformer(config, setting.device, setting.dtype)
        note("guided_step", kernels(setting.device, guided_step(network)))
        del network
        decoder = random_autoencoder(
            autoencoder_config(tiny=setting.tiny), setting.device, setting.dtype
        )
        side = config.sample_size
        latent = torch.zeros(
            1, config.in_channels, side, side, device=setting.device, dtype=setting.dtype
        )
        note("decode", kernels(setting.device, lambda: decoder.decode(latent)))


def kernels(device: torch.device, call: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds of a call by kernel, launches, and the share of time without any kernel."""
    call, on_device = finished(device, call), device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    call()
    begun = time.perf_counter()
    for _ in range(CALLS):
        call()
    taken = 1000 * (time.perf_counter() - begun) / CALLS
    with profile(activities=activities) as profiler:
        call()
    # The operations that launch kernels are listed with their time too: kernels alone count.
    kind = DeviceType.CUDA if on_device else DeviceType.CPU
    attribute = "self_device_time_total" if on_device else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if event.device_type == kind]
    spent = sorted(((getattr(e, attribute) / 1000, e.key, e.count) for e in events), reverse=True)
    top = {key[:80]: [short(ms), count] for ms, key, count in spent[:SHOWN] if ms > 0}
    found = {"ms": short(taken), "kernels_ms_and_count": top}
    if on_device:
        busy = sum(ms for ms, _, _ in spent)
        launches = sum(count for _, _, count in spent)
        found |= {"launches": launches, "idle_share": short(max(0.0, 1 - busy / taken))}
    return found
