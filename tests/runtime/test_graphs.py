"""CUDA graphs of steps, recorded and replayed by a stand-in on the CPU: recorder.py."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opensana.drawing.inputs import Inputs
from opensana.drawing.job import Job
from opensana.drawing.solving import Prepared, encode, graph_note, job_noises, solve
from opensana.errors import ConfigError
from opensana.models.options import LoadOptions, check_graph
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime import graphs as module
from opensana.runtime.fused import fuse
from opensana.runtime.graphs import KEPT, TEXT_LENGTHS, Drawing, Graphs
from opensana.transformer.attention import KeysValues
from opensana.transformer.conditioning import kept_positions
from opensana.transformer.controlnet import ControlNet
from opensana.transformer.model import PreparedText
from tests import tiny
from tests.runtime import recorder

pytestmark = pytest.mark.usefixtures("one_thread")
PLACED = replace(tiny.TRANSFORMER, interpolation_scale=1.0)
CAT = Request("a cat", negative_prompt="a dog", seed=1, steps=3)


class OnGpu(Sana):
    """A model on the CPU that says it is on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    monkeypatch.setattr(module, "cuda", recorder)
    with torch.inference_mode():
        yield Graphs()


def there(sana: Sana, graphs: Graphs) -> Sana:
    return OnGpu(**{**vars(sana), "graphs": graphs})


def texts_of(sana: Sana, job: Job) -> list[Prepared]:
    """As on a GPU: the model of these tests only says that it is on one."""
    return encode(Sana(**vars(sana)), job)


def both(sana: Sana, request: Request, job: Job | None = None) -> tuple[Tensor, Tensor]:
    """The latents by graphs, and by the same steps launched one by one."""
    job = job or sana.job(request)
    texts = texts_of(sana, job)
    found = [
        solve(one, job, texts, job_noises(Sana(**vars(sana)), job))
        for one in (sana, replace(sana, graphs=None))
    ]
    return found[0], found[1]


def fused(sana: Sana) -> Sana:
    fuse(sana.transformer)
    return sana


@pytest.mark.parametrize("blocks", ["plain", "fused"])
def test_drawings_share_a_graph_and_are_the_same_bits(blocks: str, graphs: Graphs) -> None:
    sana = tiny.sana(instruction="none")
    sana = there(fused(sana) if blocks == "fused" else sana, graphs)
    requests = [
        CAT,
        replace(CAT, prompt="a bee", seed=5),
        replace(CAT, negative_prompt="ants", guidance=2.5, steps=2),
        replace(CAT, solver="euler", steps=4),
        CAT,
    ]
    made = [both(sana, request) for request in requests]
    assert all(torch.equal(*pair) for pair in made) and len(graphs) == 1
    assert torch.equal(made[0][0], made[-1][0])
    assert len({float(found.sum()) for found, _ in made}) == len(requests) - 1


def test_other_shapes_have_graphs_of_their_own_and_the_oldest_go(graphs: Graphs) -> None:
    sana = there(fused(tiny.sana(instruction="none")), graphs)
    counts = []
    for request in (
        CAT,
        replace(CAT, images=3),
        replace(CAT, prompt="a cat and a dog of the same size"),
        replace(CAT, guidance=1.0),
        replace(CAT, width=128),
        CAT,
    ):
        assert torch.equal(*both(sana, request))
        counts.append(len(graphs))
    assert counts == [1, 2, 3, 4, KEPT, KEPT]
    graphs.forget()
    assert len(graphs) == 0


def test_a_long_text_is_masked(graphs: Graphs) -> None:
    sana = there(tiny.sana(instruction="none"), graphs)
    long = replace(CAT, prompt="a very long sentence about cats")
    [text, _] = texts_of(sana, sana.job(long))
    assert isinstance(text, PreparedText) and isinstance(text.blocks[0], KeysValues)
    assert text.mask is not None and text.mask.shape == (1, 32)
    assert torch.equal(*both(sana, long))
    assert torch.equal(*both(sana, replace(long, prompt=long.prompt[:-4], seed=3)))
    assert len(graphs) == 1


def test_sprint_and_positions(graphs: Graphs) -> None:
    sprint = there(tiny.sprint(instruction="none"), graphs)
    assert torch.equal(*both(sprint, Request("a cat", seed=1, steps=3)))
    placed = replace(tiny.sana(instruction="none"), transformer=tiny.transformer(PLACED))
    assert torch.equal(*both(there(placed, graphs), CAT))
    assert len(graphs) == 2
    [*_, last] = graphs._kept.values()
    base = kept_positions(2, 2, 16, base=2, interpolation=1.0, device=torch.device("cpu"))
    assert base.data_ptr() in {x.data_ptr() for x in last.outside}, "not freed while it is read"


def test_control(graphs: Graphs) -> None:
    sana = tiny.sana(instruction="none")
    control = ControlNet.of(sana.transformer, 1).eval().requires_grad_(False)
    tiny.randomise(control, 7)
    sana = there(replace(sana, controlnet=control), graphs)
    for count, (colour, scale) in enumerate((("red", 1.0), ("blue", 1.0), ("red", 0.5))):
        image = Image.new("RGB", (64, 64), colour)
        job = sana.job(CAT, Inputs(control_image=image, control_scale=scale))
        assert torch.equal(*both(sana, CAT, job))
        assert len(graphs) == max(1, count), "the scale is part of a graph, the image is not"


def test_weights_that_moved_are_recorded_anew(graphs: Graphs) -> None:
    sana = there(fused(tiny.sana(instruction="none")), graphs)
    assert torch.equal(*both(sana, CAT))
    layer: Any = sana.transformer.proj_out
    layer.weight = nn.Parameter(2 * layer.weight, requires_grad=False)
    assert torch.equal(*both(sana, CAT)) and len(graphs) == 2


def test_a_drawing_that_another_has_overtaken_reads_its_own_text(graphs: Graphs) -> None:
    sana = there(tiny.sana(instruction="none"), graphs)
    job, other = sana.job(CAT), replace(CAT, prompt="a bee", negative_prompt="no ant", seed=8)
    texts, expected = texts_of(sana, job), both(sana, CAT)[1]

    def meanwhile(step: int, total: int, x: Tensor) -> None:
        assert torch.equal(*both(sana, other))

    noises = job_noises(Sana(**vars(sana)), job)
    assert torch.equal(solve(sana, job, texts, noises, on_step=meanwhile), expected)
    assert len(graphs) == 1


def test_what_was_given_and_returned_stays(graphs: Graphs) -> None:
    network = tiny.transformer()
    moments = network.moment(torch.tensor([900.0, 500.0]))
    texts = [network.fold(network.prepare_text(torch.randn(1, 3, tiny.TEXT_WIDTH))) for _ in "ab"]
    latents = [torch.randn(1, 8, 2, 2) for _ in "xy"]
    drawings = [Drawing(graphs, network, moments, text) for text in texts]
    calls = [(0, 0, 0), (1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 1)]
    found = [drawings[text](latents[x], place) for text, x, place in calls]
    for velocity, (text, x, place) in zip(found, calls, strict=True):
        expected = network.velocity(latents[x], moments.row(place), texts[text])
        assert torch.equal(velocity, expected)


@pytest.mark.parametrize("blocks", ["plain", "fused"])
def test_padding_of_texts_does_not_count(blocks: str, graphs: Graphs) -> None:
    sana = tiny.sana(instruction="none")
    sana = fused(sana) if blocks == "fused" else sana
    job = sana.job(replace(CAT, prompt="a cat of nine tails"))
    x, timesteps = torch.randn(2, 8, 2, 2), torch.tensor([700.0, 300.0])
    made = [encode(one, job) for one in (sana, replace(sana, graphs=graphs))]
    for given, padded in zip(*made, strict=True):
        assert isinstance(given, PreparedText) and isinstance(padded, PreparedText)
        [short, *_], [long, *_] = given.separate, padded.separate
        assert short.keys.shape != long.keys.shape and len(long.keys) == 1
        expected, found = (sana.transformer.velocity(x, timesteps, t) for t in (given, padded))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert TEXT_LENGTHS[-1] >= 300


def test_large_steps_are_launched_one_by_one_which_is_said(graphs: Graphs) -> None:
    sana = there(tiny.sana(instruction="none"), graphs)
    job = sana.job(replace(CAT, width=2048, height=2048))
    assert graph_note(sana, job, 1) is None
    assert "16384 tokens are not" in (graph_note(sana, job, 2) or "")
    assert graph_note(replace(sana, graphs=None), job, 99) is None


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        (LoadOptions(), "cpu", "this runs on cpu"),
        (LoadOptions(compile=True), "cuda", "leave compile out"),
        (LoadOptions(quantize="w8"), "cuda", "leave quantize out"),
        (LoadOptions(offload="all"), "cuda", "bound to where weights are"),
    ],
)
def test_what_has_no_graph_is_refused(options: LoadOptions, device: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_graph(options, torch.device(device))
