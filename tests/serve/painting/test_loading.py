"""What a server calls its model, and shows of it."""

from pathlib import Path

from opensana.models.options import LoadOptions
from opensana.request import Request
from opensana.serve.jobs.order import Order
from opensana.serve.painting.loading import load_painter
from tests import tiny


def test_clients_are_not_told_where_a_model_lies(tmp_path: Path) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "secret" / "my-model")
    painter = load_painter(LoadOptions(model=folder, device="cpu"), exact=True)
    assert painter.about()["model"] == "my-model"
    plan = painter.plan(Order(request=Request("a cat", steps=1, seed=1)))
    canvases = painter.open([(plan, 0)])
    painter.step(canvases)
    assert b"secret" not in painter.finish(canvases)[0].png()
