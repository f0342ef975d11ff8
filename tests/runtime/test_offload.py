"""Parts on the device in their turns: where they are at each moment, their bytes, and what is told.

No GPU is needed: the stand-in for one is the CPU, to which weights are copied all the same, or
`meta`, which has no numbers.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensana.cli import main
from opensana.drawing.batches import batches_of
from opensana.drawing.decoding import FREE_SHARE
from opensana.errors import ConfigError, OutOfMemory
from opensana.models import open as opening
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime import offload as module
from opensana.runtime.offload import ALIGNMENT, Turns
from opensana.runtime.quantize import Quantization, quantize
from opensana.transformer.controlnet import ControlNet
from tests import tiny

CPU, META = torch.device("cpu"), torch.device("meta")
REQUEST = Request("a cat", negative_prompt="a dog", seed=3, steps=2, images=5)


def offloaded(mode: str, sana: Sana | None = None, device: torch.device = CPU) -> Sana:
    """A tiny model whose parts have turns on a stand-in for a device."""
    sana, turns = sana or tiny.sana(), Turns(device)
    for network in filter(None, (sana.transformer, sana.controlnet, sana.autoencoder)):
        turns.add(network, stays=mode == "text")
    turns.add(sana.text.model, stays=False)
    return replace(sana, turns=turns)


def there(sana: Sana) -> set[str]:
    """Which of the three parts are on the device."""
    assert sana.turns is not None
    parts = {"text": sana.text.model, "transformer": sana.transformer, "vae": sana.autoencoder}
    return {name for name, one in parts.items() if one and sana.turns.is_there(one)}


def pixels(sana: Sana, request: Request = REQUEST) -> list[bytes]:
    return [picture.image.tobytes() for picture in sana.draw(request)]


def moments(sana: Sana, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """What works, and what is on the device then; a list that grows."""
    seen: list[tuple[str, set[str]]] = []

    def watched(name: str, act: Any) -> Any:
        def run(*given: Any, **more: Any) -> Any:
            if not seen or seen[-1] != (name, there(sana)):
                seen.append((name, there(sana)))
            return act(*given, **more)

        return run

    monkeypatch.setattr(sana.text, "_encode", watched("text", sana.text._encode))
    for network, name in ((sana.transformer, "velocity"), (sana.transformer, "prepare_text")):
        monkeypatch.setattr(network, name, watched("transformer", getattr(network, name)))
    monkeypatch.setattr(sana.autoencoder, "decode", watched("vae", sana.autoencoder.decode))
    return seen


@pytest.mark.parametrize("mode", ["text", "all"])
def test_pictures_are_the_same_bit_for_bit_and_parts_are_where_they_should_be(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pixels(tiny.sana())
    sana = offloaded(mode)
    seen = moments(sana, monkeypatch)
    assert pixels(sana) == expected
    alone: dict[str, set[str]] = {name: {name} for name in ("text", "transformer", "vae")}
    both = {"transformer", "vae"}
    # Five pictures are two batches.
    order = ["text", "transformer", "vae", "transformer", "vae"]
    if mode == "all":
        assert seen == [(name, alone[name]) for name in order]
        assert there(sana) == set()
    else:
        where = [alone["text"], alone["transformer"], both, both, both]
        assert seen == list(zip(order, where, strict=True))
        assert there(sana) == both
        seen.clear()
        pixels(sana)
        assert seen[0] == ("text", {"text", *both}) and seen[1] == ("transformer", both)


def test_an_edit_begins_with_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    [start] = tiny.sana().generate("a cat", seed=1, steps=2)
    request = Request("a dog", seed=2, steps=2, strength=0.5)
    expected = tiny.sana().generate(request, image=start.image)[0].image.tobytes()
    sana, seen = offloaded("all"), []
    encode = sana.autoencoder.encode
    monkeypatch.setattr(
        sana.autoencoder, "encode", lambda x: (seen.append(there(sana)), encode(x))[1]
    )
    assert sana.generate(request, image=start.image)[0].image.tobytes() == expected
    assert seen == [{"vae"}] and there(sana) == set()


def test_a_controlnet_shares_the_turn_of_its_transformer() -> None:
    def controlled() -> Sana:
        sana = tiny.sana()
        network = ControlNet.of(sana.transformer, 1).eval().requires_grad_(False)
        tiny.randomise(network, 7)
        return replace(sana, controlnet=network)

    [start] = tiny.sana().generate("a cat", seed=1, steps=2)
    expected = controlled().generate(REQUEST, control_image=start.image)
    sana, seen = offloaded("all", controlled()), []

    def watch(*_: object) -> None:
        assert sana.turns is not None and sana.controlnet is not None
        seen.append(there(sana) == {"transformer"} and sana.turns.is_there(sana.controlnet))

    found = sana.generate(REQUEST, watch, control_image=start.image)
    assert [x.image.tobytes() for x in found] == [x.image.tobytes() for x in expected]
    assert seen and all(seen)
    assert sana.turns is not None and sana.controlnet is not None
    assert not sana.turns.is_there(sana.controlnet)


@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_quantised_weights_come_and_go_too(scheme: str) -> None:
    def quantised() -> Sana:
        sana = tiny.sana()
        quantize(sana.transformer, Quantization.named(scheme))
        return sana

    assert pixels(offloaded("all", quantised())) == pixels(quantised())


@pytest.mark.parametrize("mode", ["text", "all"])
def test_after_an_error_in_the_middle_it_draws_as_before(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sana = offloaded(mode)
    expected = pixels(sana)

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        sana.generate(REQUEST, fail)
    assert mode == "text" or there(sana) == set()
    with monkeypatch.context() as broken:
        broken.setattr(sana.autoencoder, "decode", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            sana.generate(REQUEST)
    drawing = sana.draw(REQUEST)
    next(drawing)
    drawing.close()
    assert mode == "text" or there(sana) == set()
    assert pixels(sana) == expected


def test_a_device_that_is_too_small_is_one_line_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sana = offloaded("all")
    expected = pixels(sana)
    copied = module.Guest._copied

    def too_small(guest: Any) -> Tensor:
        if guest._name == "Transformer":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copied(guest)

    with monkeypatch.context() as small:
        small.setattr(module.Guest, "_copied", too_small)
        with pytest.raises(OutOfMemory, match="enough memory on cpu for the Transformer, which"):
            sana.generate(REQUEST)
    assert there(sana) == set()
    assert pixels(sana) == expected


# ------------------------------------------------------------------ bytes


def storages(network: nn.Module) -> dict[int, int]:
    """Bytes of memory that hold a network's numbers, by address."""
    held = [*network.parameters(), *network.buffers()]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}


def test_the_host_holds_weights_once_in_one_piece() -> None:
    sana = tiny.sana()
    plain = {n: x.clone() for n, x in sana.transformer.state_dict().items()}
    counted = sum(x.nbytes for x in plain.values())
    sana = offloaded("all", sana)
    [(address, size)] = storages(sana.transformer).items()
    assert counted <= size <= counted + ALIGNMENT * len(plain)
    pixels(sana)
    assert storages(sana.transformer) == {address: size}, "it is the same piece after its turns"
    found = sana.transformer.state_dict()
    assert all(torch.equal(found[name], x) for name, x in plain.items())


def test_tied_tensors_layouts_and_formats_are_kept() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(8, 8), nn.Linear(8, 8))
    first = network[0].weight
    first.data = first.data.contiguous(memory_format=torch.channels_last)
    network[2].weight = network[1].weight
    network.register_buffer("whole", torch.arange(5, dtype=torch.int8))
    network.register_buffer("eighth", torch.randn(7).to(torch.float8_e4m3fn))
    before = {name: x.clone() for name, x in network.state_dict().items()}
    turns = Turns(CPU)
    turns.add(network, stays=False)
    for act in (lambda: turns.begin(network), turns.end):
        act()
        assert network[1].weight is network[2].weight
        first: Any = network[0].weight
        assert first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
        for name, x in network.state_dict().items():
            assert x.dtype == before[name].dtype
            assert torch.equal(x.float(), before[name].float())


def test_a_network_that_is_dropped_takes_its_piece_along() -> None:
    sana = offloaded("all")
    assert sana.turns is not None
    sana.drop_text_encoder(["a cat"], ["a dog", ""])
    assert sana.text.model is None and there(sana) == set()
    gc.collect()
    assert len(sana.turns._guests) == 2
    assert pixels(sana) == pixels(tiny.sana())


def test_what_decoding_finds_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 20
    sana = offloaded("all")
    assert sana.turns is not None
    sizes = {name: sana.turns._guests[one].bytes for name, one in (
        ("text", sana.text.model), ("transformer", sana.transformer), ("vae", sana.autoencoder)
    )}  # fmt: skip
    assert sana.room_in_decoding(free) == free - sizes["vae"]
    sana.begin(sana.transformer)
    assert sana.room_in_decoding(free) == free + sizes["transformer"] - sizes["vae"]
    sana.begin(sana.autoencoder)
    assert sana.room_in_decoding(free) == free
    sana = offloaded("text")
    assert sana.room_in_decoding(free) == free - sizes["transformer"] - sizes["vae"]
    sana.begin(sana.text.model)
    left = free + sizes["text"] - sizes["transformer"] - sizes["vae"]
    assert sana.room_in_decoding(free) == left
    assert sana.room_in_decoding(0) == max(0, left - free)
    assert tiny.sana().room_in_decoding(free) == free


def test_the_batch_is_chosen_by_what_offload_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit once the autoencoder is there, not as many as fit before."""
    heard: list[int] = []

    def watched(model: Any, job: Any, *, memory: int) -> Any:
        heard.append(memory)
        return batches_of(model, job, memory=memory)

    monkeypatch.setattr("opensana.pipeline.batches_of", watched)
    monkeypatch.setattr("opensana.drawing.decoding.free_memory", lambda _: 1 << 24)
    for sana in (offloaded("all"), offloaded("text")):
        sana.draw(REQUEST)
        assert heard.pop() == int(FREE_SHARE * sana.room_in_decoding(1 << 24))


# ------------------------------------------------------------------ CUDA's locked memory


class Runtime:
    """Stands in for CUDA's runtime."""

    def __init__(self, answer: int) -> None:
        self.answer, self.locked = answer, dict[int, int]()

    def cudaHostRegister(self, address: int, size: int, _flags: int) -> int:
        if not self.answer:
            self.locked[address] = size
        return self.answer

    def cudaHostUnregister(self, address: int) -> None:
        del self.locked[address]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Runtime]:
    """CUDA's runtime as one that locks, or does not; the device is never asked for anything."""

    def use(answer: int) -> Runtime:
        runtime = Runtime(answer)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(module, "_forget_error", lambda: None)
        return runtime

    return use


def test_the_piece_is_locked_as_it_lies_and_no_longer_than_it_lives(
    cuda: Callable[[int], Runtime],
) -> None:
    runtime, network = cuda(0), tiny.transformer()
    turns = Turns(torch.device("cuda"))
    turns.add(network, stays=False)
    assert runtime.locked == storages(network)
    del network, turns
    gc.collect()
    assert runtime.locked == {}


def test_memory_that_cannot_be_locked_is_said(cuda: Callable[[int], Runtime]) -> None:
    runtime = cuda(1)
    with pytest.warns(UserWarning, match="could not be locked for the GPU"):
        Turns(torch.device("cuda")).add(tiny.transformer(), stays=False)
    assert runtime.locked == {}


# ------------------------------------------------------------------ loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.sana(instruction="none").save(tmp_path / "tiny")


@pytest.mark.parametrize(("mode", "scheme"), [("text", None), ("all", None), ("all", "w4")])
def test_a_loaded_model_waits_on_the_host(
    mode: Any, scheme: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "resolve_device", torch.device)
    monkeypatch.setattr(opening, "slower_here", lambda *_: None)
    sana = Sana.load(folder, device="meta", dtype="bfloat16", offload=mode, quantize=scheme)

    def kinds() -> list[str]:
        parts: Any = (sana.text.model, sana.transformer, sana.autoencoder)
        return ["".join({x.device.type for x in (*p.parameters(), *p.buffers())}) for p in parts]

    assert sana.device == META and kinds() == ["cpu"] * 3
    assert sana.transformer.dtype == torch.bfloat16
    sana.begin(sana.text.model)
    assert kinds() == ["meta", "cpu", "cpu"]
    sana.begin(sana.transformer)
    assert kinds() == ["cpu", "meta", "cpu"]
    sana.begin(sana.autoencoder)
    assert kinds() == ["cpu", "meta" if mode == "text" else "cpu", "meta"]
    sana.end()
    assert kinds() == ["cpu", *(["meta"] * 2 if mode == "text" else ["cpu"] * 2)]
    saved = sana.save(folder.parent / "again") if scheme is None and mode == "all" else None
    assert saved is None or pixels(Sana.load(saved, device="cpu", dtype="float32"))


def test_a_text_encoder_elsewhere_has_no_turns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "resolve_device", torch.device)
    sana = Sana.load(folder, device="meta", text_device="cpu", dtype="bfloat16", offload="all")
    assert sana.turns is not None and len(sana.turns._guests) == 2
    sana.begin(sana.text.model)
    assert sana.text.device == CPU


def test_what_cannot_be_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="a GPU with a memory of its own, got cpu; leave it out"):
        Sana.load(folder, device="cpu", offload="text")
    assert main(["generate", "x", "-m", str(folder), "--device", "cpu", "--offload", "all"]) == 2
    assert "offload all moves parts between" in capsys.readouterr().err
    assert main(["serve", "-m", str(folder), "--offload", "text"]) == 2
    assert "--offload text is for generate" in capsys.readouterr().err
    monkeypatch.setattr(opening, "resolve_device", torch.device)
    with pytest.raises(ConfigError, match="leave compile out, or offload the text alone"):
        Sana.load(folder, device="meta", offload="all", compile=True)


def test_on_a_cpu_the_command_frees_the_text_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["generate", "x", "-m", str(folder), "--device", "cpu", "--steps", "1", "--seed", "1"]
    for more in ([], ["--offload", "text"]):
        assert main([*line, *more, "-o", f"{len(more)}.png"]) == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "2.png").read_bytes()
