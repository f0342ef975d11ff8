"""The Gradio page: what it draws, and the page itself where Gradio is installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import openai
import pytest
from PIL import ImageChops

from tests.serve.gradient import Gradient, gradient, serving

FILE = Path(__file__).parents[2] / "integrations" / "gradio" / "app.py"


@pytest.fixture
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gradio_app", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_so_far_then_the_picture(tmp_path: Path, app: ModuleType) -> None:
    with serving(tmp_path, Gradient(step_seconds=0.03)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        drawn = list(app.draw(client, "an apple", "", "64x96", 8, 5))
        assert len(drawn) > 1 and drawn[0][1] == "drawing"
        image, about = drawn[-1]
        assert about == "seed 5"
        assert not ImageChops.difference(image, gradient(64, 96, 5, 8)).getbbox()
        assert list(app.draw(client, "an apple", "", "auto", 0, -1))[-1][1].startswith("seed ")
        image, _ = list(app.draw(client, "an apple", "", "64x96", 8, 5, "film", 0.5))[-1]
        assert not ImageChops.difference(image, gradient(64, 96, 5, 8 + 5)).getbbox()
    assert "gradio" not in sys.modules


def test_the_page(app: ModuleType) -> None:
    pytest.importorskip("gradio")
    page = app.make_demo(openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none"))
    assert "/draw" in page.get_api_info()["named_endpoints"]
