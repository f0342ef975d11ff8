"""Requests that are wrong in every way: one shape of error, no secrets, and the server lives on.

Those that the schema speaks of are made by schemathesis, the others by hypothesis.
Also tests `serve/api/schema.py`.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.serve.gradient import serving
from tests.serve.processes import ROOT, running

LEAKS = ("Traceback", 'File "', "site-packages", ".py", str(ROOT), "/tmp/")
BOUNDARY = "b"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Sent:
    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def check(answer: httpx2.Response) -> None:
    """It is refused, in OpenAI's shape, and tells nothing of the server."""
    assert 400 <= answer.status_code < 500, answer.text
    check_shape(answer)


def check_shape(answer: httpx2.Response) -> None:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, answer.text
    assert isinstance(error["message"], str) and 0 < len(error["message"]) <= 2000
    assert not [leak for leak in LEAKS if leak in answer.text], answer.text


def png(width: int = 64, height: int = 64, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb() -> bytes:
    """A PNG that says it is 50,000 x 50,000."""
    data = bytearray(png())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(data)


NO_NUMBER = st.sampled_from(
    [
        float("nan"), float("inf"), 1e308, -1, "4x", True, [], {}, [[1]], {"a": 1}, 10**4000, "NaN",
        0.5,
    ]
)  # fmt: skip
NO_TEXT = st.sampled_from([0, -1, 1.5, True, [], {}, [["x"]], {"x": None}])
NO_PICTURE = st.sampled_from(
    [
        "", "no base64", "A", "AAAA", "data:image/png;base64,", "data:image/png,AAAA", "\ud800",
        "=" * 9, text(b"GIF89a" + bytes(99)), text(png()[:60]), text(png()[:-20]), text(bomb()),
        text(b"<svg/>"), "x" * 1000, "http://127.0.0.1/a.png", "/etc/passwd",
        7, [], {"image_url": 3}, True,
    ]
)  # fmt: skip
NO_SIZE = st.sampled_from(
    ["0x0", "1e9x1e9", "64", "-64x64", "64x64x64", "64X64", "x", " 64x64", "٦٤x٦٤", "33x33", 64]
)
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "/v1/jobs": {
        "prompt": NO_TEXT | st.sampled_from([None, "", " \n", "\ud800", "x" * 40_000]),
        "negative_prompt": NO_TEXT | st.just("\udfff"),
        "width": NO_NUMBER | st.sampled_from([0, 33, 10**9]),
        "height": NO_NUMBER | st.sampled_from([0, 33, 10**9]),
        "steps": NO_NUMBER | st.sampled_from([0, 201, 10**9]),
        "guidance": st.sampled_from([float("nan"), 1e308, -1, "4", True, [], {}]),
        "seed": NO_NUMBER | st.just(2**63),
        "images": NO_NUMBER | st.sampled_from([0, 17, None]),
        "solver": NO_TEXT | st.sampled_from(["", "magic", "Euler"]),
        "strength": NO_NUMBER,
        "binned": st.sampled_from([1, "yes", None, []]),
        "image": NO_PICTURE,
        "mask": NO_PICTURE,
        "control_image": NO_PICTURE,
        "control_scale": NO_NUMBER | st.none(),
        "loras": NO_TEXT.filter(lambda value: value != [])
        | st.sampled_from([[{}], [{"name": 3}], [{"name": "x", "scale": float("nan")}], [3], "x"]),
        "unknown": st.integers() | st.text(),
        "\ud800": st.integers(),
    },
    "/v1/images/generations": {
        "prompt": NO_TEXT | st.sampled_from([None, "", "\ud800", "x" * 40_000]),
        "n": NO_NUMBER | st.sampled_from([0, 17]),
        "size": NO_SIZE,
        "model": NO_TEXT | st.sampled_from(["gpt-image-1", "\ud800", "../x"]),
        "response_format": NO_TEXT | st.just("b64"),
        "output_format": NO_TEXT | st.sampled_from(["gif", "PNG"]),
        "output_compression": NO_NUMBER | st.just(101),
        "stream": st.sampled_from([1, "true", []]),
        "partial_images": NO_NUMBER | st.just(4),
        "quality": NO_TEXT | st.just("high"),
        "background": NO_TEXT | st.just("transparent"),
        "seed": NO_NUMBER,
        "steps": NO_NUMBER | st.just(0),
        "guidance_scale": st.sampled_from([float("nan"), 1e308, -1, "4", True, []]),
        "width": NO_NUMBER | st.just(33),
        "solver": NO_TEXT | st.just("magic"),
        "lora": st.sampled_from([3, "x", [{}], [{"name": None}], {"name": "x"}]),
        "unknown": st.integers() | st.text(),
    },
    "/v1/images/edits": {
        "image": NO_PICTURE,
        "images": st.lists(NO_PICTURE, min_size=2, max_size=3),
        "mask": NO_PICTURE | st.sampled_from([text(png()), text(png(32, 32, "RGBA"))]),
        "n": NO_NUMBER | st.just(0),
        "size": NO_SIZE,
        "strength": NO_NUMBER.filter(lambda value: value != 0.5),
        "input_fidelity": NO_TEXT | st.just("high"),
    },
    "/sdapi/v1/txt2img": {
        "prompt": NO_TEXT | st.sampled_from([None, "", "\ud800", "a <lora:x:much>"]),
        "steps": st.sampled_from([0, -2, 1e308, "many", [], {}, 10**4000, float("nan")]),
        "width": st.sampled_from([0, -2, 1e308, "many", [], {}, 10**6]),
        "seed": st.sampled_from([-2, 2**63, "many", [], 1.5]),
        "cfg_scale": st.sampled_from([-1, 1e308, "many", [], float("nan")]),
        "batch_size": st.sampled_from([0, -1, 10**6, 10**3000, "many", None]),
        "n_iter": st.sampled_from([0, -1, 10**6, 10**3000, "many", None]),
        "styles": st.sampled_from([3, "x", [3]]),
        "override_settings": st.sampled_from([3, "x", []]),
    },
    "/sdapi/v1/img2img": {
        "init_images": st.sampled_from([None, [], 3, "x"]) | st.lists(NO_PICTURE, max_size=2),
        "mask": NO_PICTURE.filter(lambda value: value != ""),
        "denoising_strength": st.sampled_from([-1, 2, "much", [], 1e308]),
    },
    "/sdapi/v1/png-info": {"image": NO_PICTURE | st.none()},
    "/sdapi/v1/options": {
        "sd_model_checkpoint": st.sampled_from(["xl", 3, [1], {"a": 1}, "\ud800"])
    },
}
BASE: dict[str, dict[str, Any]] = {
    "/v1/images/edits": {"prompt": "x", "image": text(png())},
    "/sdapi/v1/img2img": {"prompt": "x", "init_images": [text(png())]},
    "/sdapi/v1/png-info": {"image": text(png())},
    "/sdapi/v1/options": {},
}


@st.composite
def wrong_fields(draw: st.DrawFn) -> Sent:
    """A body of which one field or several are wrong."""
    path = draw(st.sampled_from(sorted(FIELDS)))
    names = draw(st.lists(st.sampled_from(sorted(FIELDS[path])), min_size=1, max_size=3))
    body = BASE.get(path, {"prompt": "x"}) | {name: draw(FIELDS[path][name]) for name in names}
    return Sent("POST", path, json.dumps(body).encode())


@st.composite
def no_json(draw: st.DrawFn) -> Sent:
    """A body that is no JSON, or none of an object."""
    whole = json.dumps({"prompt": "x" * 50}).encode()
    deep = st.integers(1, 100_000).map(lambda depth: b'{"prompt":' + b"[" * depth)
    content = draw(
        st.binary(max_size=200)
        | st.integers(0, len(whole) - 1).map(lambda end: whole[:end])
        | deep
        | st.sampled_from(
            [b"[]", b"3", b"null", b'"x"', b"\xff\xfe{}", b"{'prompt': 1}", whole + b"x"]
        )
    )
    path = draw(st.sampled_from([path for path in sorted(FIELDS) if path != "/sdapi/v1/options"]))
    return Sent("POST", path, content)


@st.composite
def no_form(draw: st.DrawFn) -> Sent:
    """A form that is broken, or holds what it may not."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n'
    names = st.sampled_from(
        [b"request", b"image", b"mask", b"n", b"x", b"", b"image[]", b"\xff", b"lora[][name]"]
    )
    contents = st.binary(max_size=60) | st.just(png()) | st.just(b"{}")
    parts = draw(st.lists(st.tuples(st.booleans(), names, contents), max_size=5))
    body = b"".join(
        file % (name, b"../a.png", content) if is_file else part % (name, content)
        for is_file, name, content in parts
    )
    end = draw(st.sampled_from([b"--b--\r\n", b"", b"--b", b"--c--\r\n"]))
    kind = draw(
        st.sampled_from(
            [FORM["content-type"], "multipart/form-data", "multipart/form-data; boundary="]
        )
    )
    path = draw(st.sampled_from(["/v1/jobs", "/v1/images/edits"]))
    return Sent("POST", path, body + end, {"content-type": kind})


JOB = "job_" + "0" * 24
ADDRESSES = (
    "/v1/jobs/{}", "/v1/jobs/{}/images/0", f"/v1/jobs/{JOB}/images/{{}}",
    f"/v1/jobs/{JOB}/inputs/{{}}", "/v1/jobs/{}/events", "/v1/images/{}/content", "/v1/models/{}",
    "/page/{}", "/sdapi/v1/x{}",
    "/v1/jobs?limit=x{}", "/v1/jobs?limit=-{}1", "/v1/images/x-0/content?output_format={}x",
    "/v1/images/x-0/content?output_compression={}x", f"/v1/jobs/{JOB}/events?previews=x{{}}",
    "/sdapi/v1/progress?skip_current_image=x{}",
)  # fmt: skip


@st.composite
def no_address(draw: st.DrawFn) -> Sent:
    junk = "".join(f"%{byte:02x}" for byte in draw(st.binary(min_size=1, max_size=30)))
    path = draw(st.sampled_from(ADDRESSES)).format(junk)
    return Sent(draw(st.sampled_from(["GET", "GET", "DELETE", "PUT"])), path)


MALFORMED = st.one_of(wrong_fields(), wrong_fields(), no_json(), no_form(), no_address())


def flood(client: httpx2.Client, count: int) -> Counter[int]:
    """Statuses of so many malformed requests; each is checked."""
    tally = Counter[int]()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(MALFORMED)
    def one(sent: Sent) -> None:
        answer = client.request(sent.method, sent.path, content=sent.content, headers=sent.headers)
        tally[answer.status_code] += 1
        check(answer)

    one()
    return tally


def test_malformed_requests_are_refused_in_one_shape(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        tally = flood(server.client, 250)
        assert len(server.client.get("/v1/jobs").json()["data"]) == 0
        server.wait(server.submit()["id"])
    assert sum(tally.values()) >= 200


def schemathesis(url: str, examples: int, folder: Path) -> int:
    """How many requests it made of the schema; its failures are those of the test.

    It keeps notes in a folder.
    """
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["run", f"{url}/openapi.json", "--mode", "all", "--max-examples", str(examples)]
    command += ["--phases", "coverage,fuzzing", "--seed", "1", "--continue-on-failure"]
    command += ["--checks", CHECKS, "--no-shrink", "--generation-database", "none", "--no-color"]
    variables = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.serve.one_shape",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (count,) = re.findall(r"(\d+) generated", done.stdout)
    return int(count)


CHECKS = ",".join(
    (
        "not_a_server_error", "status_code_conformance", "content_type_conformance",
        "response_schema_conformance", "negative_data_rejection", "unsupported_method", "one_shape",
    )
)  # fmt: skip


@pytest.mark.slow
def test_ten_thousand_malformed_requests_leave_a_server_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    with running(tmp_path / "jobs") as server:
        flood(server.client, 500)
        memory, files = server.memory, server.files
        made = schemathesis(server.url, 60, tmp_path)
        tally = flood(server.client, 9000)
        figures = server.figures()
        refused = sum(
            value
            for (name, *labels), value in figures.items()
            if name == "sana_requests_total" and any(label[0] == "4" for label in labels)
        )
        growth = server.memory - memory
        print(
            f"\n{made} of the schema, {dict(tally)}; {refused:.0f} refused, {growth >> 20} MiB more"
        )
        assert refused >= 10_000 and growth < 50 * 2**20 and server.files <= files + 5
        large = server.client.post("/v1/jobs", content=bytes(100 * 2**20), headers=JSON)
        assert large.status_code == 413
        assert server.client.post("/v1/jobs", json={"prompt": "good"}).status_code == 202
    log = server.log.read_text()
    assert "failure" not in log and all(json.loads(line) for line in log.splitlines())
