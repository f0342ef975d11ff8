"""Drawing with compiled blocks: the same pictures, and what is said without a compiler."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opensana.cli import main
from opensana.errors import ConfigError
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.compiled import compile_blocks
from tests import tiny

REQUESTS = (
    Request("a cat", seed=1, steps=3, guidance=4.5),
    Request("a much longer prompt of another length", seed=1, steps=3, guidance=4.5),
    Request("a cat", negative_prompt="dogs", width=128, height=96, seed=2, steps=2, images=3),
    Request("a cat", seed=1, steps=2, guidance=1.0, solver="euler"),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of what it imports to compile
@pytest.mark.parametrize("kind", ["sana", "sprint"])
def test_compiled_blocks_draw_the_same(kind: str) -> None:
    make = tiny.sana if kind == "sana" else tiny.sprint
    plain, compiled = make(instruction="none"), make(instruction="none")
    torch.compiler.reset()
    compile_blocks(compiled.transformer)
    for request in REQUESTS:
        if kind == "sprint":
            request = replace(request, negative_prompt="", solver=None, guidance=4.5)
        expected, drawn = plain.draw_latents(request), compiled.draw_latents(request)
        assert (drawn - expected).abs().max() < 1e-4 * expected.abs().max()
    assert compiled.transformer.state_dict().keys() == plain.transformer.state_dict().keys()


def test_without_a_compiler_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="there is no 'no-such-compiler'"):
        Sana.load(folder, device="cpu", compile=True)
    capsys.readouterr()
    line = ["generate", "x", "-m", str(folder), "-o", f"{tmp_path}/x.png", "--device", "cpu"]
    assert main([*line, "--compile"]) == 2
    [_loading, said] = capsys.readouterr().err.splitlines()
    assert "install one, name yours in CXX, or leave compile out" in said


@pytest.mark.filterwarnings("ignore")
def test_a_training_step_compiles_to_one_graph() -> None:
    model = tiny.transformer().requires_grad_(True).train()
    text = model.prepare_text(torch.randn(2, 5, tiny.TEXT_WIDTH))
    # `fullgraph` is an error where a part of the model would run outside of the compiled graph.
    step = torch.compile(model.velocity, fullgraph=True, backend="aot_eager")
    x, timestep = torch.randn(2, 8, 2, 2), torch.tensor([300.0, 700.0])
    found = step(x, timestep, text)
    torch.testing.assert_close(found, model.velocity(x, timestep, text))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.transformer_blocks.parameters())
