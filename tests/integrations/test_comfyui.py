"""The ComfyUI node pack, loaded as ComfyUI does, against a stand-in for ComfyUI."""

import asyncio
import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.serve.gate.keys import LOCAL, Key, Keys
from tests.integrations.comfy_stand_in import Comfy, InterruptProcessingException, load
from tests.serve.gradient import Gradient, gradient, serving
from tests.tiny import sana

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
SECRET = "a-secret-of-some-length"


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Comfy]:
    """The nodes by their ids, and ComfyUI's state."""
    module, state = load(monkeypatch, FOLDER)

    async def nodes() -> list[Any]:
        return await (await module.comfy_entrypoint()).get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(nodes())}, state


def defaults(node: Any) -> dict[str, Any]:
    """The values of a node that was just put into a workflow."""
    inputs = node.define_schema().inputs
    return {one.id: one.options["default"] for one in inputs if "default" in one.options}


def test_a_server_is_asked(tmp_path: Path, pack: tuple[dict[str, Any], Comfy]) -> None:
    nodes, state = pack
    node = nodes["OpensanaServer"]
    asked = defaults(node) | {"width": 64, "height": 96, "seed": 5, "steps": 3, "images": 2}
    with serving(tmp_path, keys=Keys([("me", SECRET)])) as server:
        (images,) = node.execute(**asked | {"url": server.url, "key": SECRET}).args
    assert images.dtype == torch.float32 and images.shape == (2, 96, 64, 3)
    expected = np.asarray(gradient(64, 96, 6, 3))
    assert np.array_equal((images[1] * 255).round().numpy().astype(np.uint8), expected)
    assert state.progress[-1] == 1000


def test_loras_are_sent_by_name_and_weight(
    tmp_path: Path, pack: tuple[dict[str, Any], Comfy]
) -> None:
    node = pack[0]["OpensanaServer"]
    with serving(tmp_path) as server:
        asked = defaults(node) | {"url": server.url}
        node.execute(**asked | {"lora": "film:0.8, ink,"})
        (record,) = server.service.jobs(LOCAL)
        assert [(one.name, one.scale) for one in record.loras] == [("film", 0.8), ("ink", 1.0)]
        with pytest.raises(RuntimeError, match="the LoRA 'x' is not listed here"):
            node.execute(**asked | {"lora": "x"})
        with pytest.raises(RuntimeError, match="weight of the LoRA 'film:much' must be a number"):
            node.execute(**asked | {"lora": "film:much"})


def test_an_image_and_a_mask_are_sent(tmp_path: Path, pack: tuple[dict[str, Any], Comfy]) -> None:
    node = pack[0]["OpensanaServer"]
    image, mask = torch.rand(1, 64, 64, 3), torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    with serving(tmp_path) as server:
        node.execute(**defaults(node) | {"url": server.url, "image": image, "mask": mask})
        job = server.service.jobs(LOCAL)[0]
        assert set(job.inputs) == {"image", "mask"} and job.request.strength == 0.6


def test_a_mask_takes_the_size_of_its_image(
    tmp_path: Path, pack: tuple[dict[str, Any], Comfy]
) -> None:
    """Load Image gives zeros of 64 x 64 for a picture that has no mask."""
    node, image = pack[0]["OpensanaServer"], torch.rand(1, 96, 128, 3)
    half = torch.zeros(1, 48, 64)
    half[:, :, :32] = 1
    with serving(tmp_path) as server:
        asked = defaults(node) | {"url": server.url, "image": image}
        node.execute(**asked | {"mask": torch.zeros(1, 64, 64)})
        assert set(server.service.jobs(LOCAL)[0].inputs) == {"image"}
        node.execute(**asked | {"mask": half})
        job = server.service.jobs(LOCAL)[0]
        sent = Image.open(io.BytesIO(server.service.input(job.id, "mask", LOCAL)))
        assert sent.size == (128, 96)
        assert [sent.getpixel((x, 50)) for x in (63, 64)] == [255, 0]
        with pytest.raises(RuntimeError, match="mask is black"):
            node.execute(**asked | {"mask": torch.zeros(1, 96, 128)})


def test_stopping_the_workflow_cancels_the_job(
    tmp_path: Path, pack: tuple[dict[str, Any], Comfy]
) -> None:
    nodes, state = pack
    node = nodes["OpensanaServer"]
    asked = defaults(node) | {"steps": 200, "width": 64, "height": 64}
    with serving(tmp_path, Gradient(step_seconds=0.05)) as server:

        def stop() -> None:
            while not server.service.jobs(LOCAL):
                time.sleep(0.01)
            state.interrupted = True

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(InterruptProcessingException):
            node.execute(**asked | {"url": server.url})
        thread.join()
        server.wait(server.service.jobs(LOCAL)[0].id, "cancelled")


def test_what_the_server_says_is_what_the_user_reads(
    tmp_path: Path, pack: tuple[dict[str, Any], Comfy]
) -> None:
    node = pack[0]["OpensanaServer"]
    asked = defaults(node)
    with serving(tmp_path, keys=Keys([("me", SECRET)])) as server:
        with pytest.raises(RuntimeError, match="a key is needed"):
            node.execute(**asked | {"url": server.url})
        with pytest.raises(RuntimeError, match="prompt is empty"):
            node.execute(**asked | {"url": server.url, "key": SECRET, "prompt": ""})
        assert server.service.jobs(Key("me")) == []
    with pytest.raises(RuntimeError, match="no server answers"):
        node.execute(**asked | {"url": server.url})
    with pytest.raises(RuntimeError, match="begins with http"):
        node.execute(**asked | {"url": "file:///etc/passwd?"})


def test_it_draws_in_this_process(
    monkeypatch: pytest.MonkeyPatch, pack: tuple[dict[str, Any], Comfy]
) -> None:
    nodes, state = pack
    node, model = nodes["OpensanaDraw"], sana()
    monkeypatch.setattr(sys.modules[node.__module__], "_loaded", lambda name: model)
    asked = {"steps": 2, "width": 64, "height": 64, "seed": 5, "guidance": 1.0}
    (images,) = node.execute(**defaults(node) | asked).args
    drawn = np.asarray(next(iter(model.draw("a red apple", **asked))).image)
    assert np.array_equal((images[0] * 255).round().numpy().astype(np.uint8), drawn)
    state.interrupted = True
    with pytest.raises(InterruptProcessingException):
        node.execute(**defaults(node) | asked)


def test_the_example_has_the_inputs_of_its_node(pack: tuple[dict[str, Any], Comfy]) -> None:
    workflow = json.loads((FOLDER / "workflow_api.json").read_text())
    node = pack[0][workflow["1"]["class_type"]]
    assert set(workflow["1"]["inputs"]) == set(defaults(node))
