"""FLUX's blocks beside a picture of 0.6B, in the same minute: benchmarks/flux.py."""

from benchmarks.flux import PRESET, SIZES, TINY_SIZE, compare
from benchmarks.gpu.measuring import attempt
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import random_sana
from opensana.runtime.compiled import compile_blocks


def run(setting: Setting, note: Note) -> None:
    model = random_sana(PRESET, setting.device, setting.dtype, tiny=setting.tiny)
    for size in (TINY_SIZE,) if setting.tiny else SIZES:
        note(
            f"{size}",
            attempt(setting, lambda size=size: compare(setting, model, size, compiled=False)),
        )
    if not setting.tiny:  # last: how long compiling takes is not known
        compile_blocks(model.transformer)
        for size in SIZES:
            found = attempt(setting, lambda size=size: compare(setting, model, size, compiled=True))
            note(f"{size}_compiled", found)
