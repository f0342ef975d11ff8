"""Names and pictures that point elsewhere: no file outside is read, and nothing is fetched."""

import base64
import io
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from PIL import Image

from tests.serve.gradient import Server, serving

SECRET = "what nobody may read"
events: list[tuple[str, Any]] | None = None
"""Files that are opened and addresses that are looked up or connected to, while it is a list."""


def _note(event: str, values: tuple[Any, ...]) -> None:
    if events is None:
        return
    if event == "open":
        events.append((event, values[0]))
    elif event in ("socket.connect", "socket.sendto"):
        events.append((event, values[1]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        events.append((event, values[0]))


sys.addaudithook(_note)


@contextmanager
def noted() -> Iterator[list[tuple[str, Any]]]:
    global events
    events = found = []
    try:
        yield found
    finally:
        events = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Beside its folder lies a secret, and a link in it leads there."""
    root = tmp_path_factory.mktemp("outside")
    (root / "secret").write_text(SECRET)
    (root / "0.png").write_text(SECRET)
    with serving(root / "serve") as found:
        (root / "serve" / "jobs" / "link").symlink_to(root, target_is_directory=True)
        # Whatever is imported or read once is there now.
        found.wait(found.submit()["id"])
        assert found.client.get("/").status_code == 200
        yield found


TARGETS = ("secret", "0.png", "0", "etc/passwd", "jobs.sqlite3", "image")
UPS = (
    "..",
    "../..",
    "../../..",
    "../" * 12 + ".",
    "link",
    "link/..",
    "./jobs/..",
    "....//",
    "/",
    "//",
    "~",
    "C:",
)
FORMS = (
    lambda text: text,
    lambda text: text.replace("/", "\\"),
    lambda text: quote(text, safe=""),
    lambda text: quote(quote(text, safe=""), safe=""),
    lambda text: text.replace(".", "%2e"),
    lambda text: text.replace("/", "%c0%af"),
    lambda text: text + "%00.png",
    lambda text: "file://" + text,
    lambda text: "\\\\localhost\\c$\\" + text,
    lambda text: text.replace("..", "‥"),
)  # fmt: skip
PAYLOADS = [form(f"{up}/{target}") for form, up, target in product(FORMS, UPS, TARGETS)]
ADDRESSES = (
    "/v1/jobs/{}", "/v1/jobs/{}/images/0", "/v1/jobs/JOB/images/{}", "/v1/jobs/JOB/inputs/{}",
    "/v1/jobs/{}/inputs/image", "/v1/jobs/{}/events", "/v1/images/{}/content",
    "/v1/images/{}-0/content", "/v1/models/{}", "/page/{}", "/{}",
)  # fmt: skip
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/jobs", {"prompt": "x", "image": "{}"}),
    ("/v1/jobs", {"prompt": "x", "solver": "{}"}),
    ("/v1/images/generations", {"prompt": "x", "model": "{}"}),
    ("/v1/images/edits", {"prompt": "x", "image": "{}"}),
    ("/sdapi/v1/png-info", {"image": "{}"}),
    ("/sdapi/v1/img2img", {"prompt": "x", "init_images": ["{}"]}),
    ("/sdapi/v1/options", {"sd_model_checkpoint": "{}"}),
)


def filled(value: Any, payload: str) -> Any:
    if isinstance(value, dict):
        return {name: filled(one, payload) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, payload) for one in value]
    return payload if value == "{}" else value


def check_refused(answer: httpx2.Response, where: str) -> None:
    assert 400 <= answer.status_code < 500, (where, answer.status_code)
    assert SECRET not in answer.text and "root:" not in answer.text


def outside(found: list[tuple[str, Any]], server: Server) -> list[Any]:
    """Files that are not the server's own."""
    folder = str(server.service._store._folder)
    paths = [str(path) for event, path in found if event == "open" and isinstance(path, str | Path)]
    return [path for path in paths if not path.startswith(folder) or ".." in path or "link" in path]


def test_no_name_leads_out_of_the_folder(server: Server) -> None:
    assert len(PAYLOADS) > 500
    job = server.submit()["id"]
    server.wait(job)
    host = server.url.rpartition("/")[2]
    address = ("127.0.0.1", int(host.rpartition(":")[2]))
    with socket.create_connection(address, timeout=10) as found, noted() as seen:
        reader = found.makefile("rb")
        for number, payload in enumerate(PAYLOADS):
            # As bytes, since a client's library would tidy the path up.
            path = ADDRESSES[number % len(ADDRESSES)].replace("JOB", job).format(payload)
            target = quote(path, safe="/%:\\~$")
            found.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            check_raw(reader, target)
    assert not outside(seen, server)


def check_raw(reader: io.BufferedReader, target: str) -> None:
    status = int(reader.readline().split()[1])
    headers = {}
    while (line := reader.readline()) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = reader.read(int(headers["content-length"])).decode()
    assert status in (400, 403, 404), (target, status, body)
    assert SECRET not in body and "root:" not in body


def test_no_name_in_a_body_leads_out_of_the_folder(server: Server) -> None:
    with noted() as seen:
        for number, payload in enumerate(PAYLOADS[::4]):
            path, body = BODIES[number % len(BODIES)]
            check_refused(server.post(path, **filled(body, payload)), f"{path} {payload}")
    assert not outside(seen, server)


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


URLS = (
    "http://127.0.0.1:{port}/a.png", "HTTP://LOCALHOST:{port}/a.png", " \n http://[::1]:{port}/",
    "https://127.0.0.1:{port}/a.png", "http://2130706433:{port}/", "http://0x7f.1:{port}/a.png",
    "//127.0.0.1:{port}/a.png", "\\\\127.0.0.1\\share\\a.png", "http:/127.0.0.1:{port}/a.png",
    "http:\\\\127.0.0.1:{port}\\a.png", "ftp://127.0.0.1:{port}/a", "gopher://127.0.0.1:{port}/_GET",
    "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/",
    "http://example.com/a.png", "file:///etc/passwd", "file:/etc/passwd", "/etc/passwd",
    "data:text/html,<img src=http://127.0.0.1:{port}>", "data:,http://127.0.0.1:{port}/",
    "blob:http://127.0.0.1:{port}/1", "javascript:fetch('http://127.0.0.1:{port}')",
)  # fmt: skip
FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/jobs", {"image": "{}"}),
    ("/v1/jobs", {"image": picture(), "mask": "{}"}),
    ("/v1/jobs", {"control_image": "{}"}),
    ("/v1/images/edits", {"image": "{}"}),
    ("/v1/images/edits", {"image": ["{}"]}),
    ("/v1/images/edits", {"images": [{"image_url": "{}"}]}),
    ("/v1/images/edits", {"image": picture(), "mask": "{}"}),
    ("/v1/images/edits", {"image": picture(), "mask": {"image_url": "{}"}}),
    ("/sdapi/v1/img2img", {"init_images": ["{}"]}),
    ("/sdapi/v1/img2img", {"init_images": [picture()], "mask": "{}"}),
    ("/sdapi/v1/png-info", {"image": "{}"}),
)


def test_no_url_is_fetched(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as canary, noted() as seen:
        canary.setblocking(False)
        lure = canary.getsockname()[1]
        for (path, body), url in product(FIELDS, URLS):
            body = filled(body, url.format(port=lure))
            if path != "/sdapi/v1/png-info":
                body |= {"prompt": "x"}
            answer = server.post(path, **body)
            check_refused(answer, f"{path} {url}")
        for url in URLS:
            sent = {"prompt": (None, "x"), "image": (None, url.format(port=lure))}
            check_refused(server.client.post("/v1/images/edits", files=sent), url)
        with pytest.raises(BlockingIOError):
            canary.accept()
    addresses = [address for event, address in seen if event != "open"]
    assert all(address in (("127.0.0.1", port), "127.0.0.1") for address in addresses)
    assert not outside(seen, server)
