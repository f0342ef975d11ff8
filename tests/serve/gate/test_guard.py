"""Keys, hosts, origins, sizes and request ids.

Also tests `serve/gate/keys.py`, `serve/errors.py`, `serve/logs.py`, `serve/metrics.py`,
`serve/app.py`.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from opensana.errors import ConfigError, NumericsError
from opensana.serve import run
from opensana.serve.gate.keys import Keys, read_keys
from opensana.serve.jobs.limits import Limits
from tests.serve.gradient import Gradient, Server, Sheet, serving

SECRET, OTHER = "k" * 20, "o" * 20


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, keys=Keys([("ann", SECRET), ("bob", OTHER)])) as server:
        yield server


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def basic(secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"any:{secret}".encode()).decode()}


WRONG = [
    {}, bearer("wrong"), {"authorization": "Bearer"}, basic("wrong"), {"authorization": "Basic %%"},
    {"authorization": SECRET}, {"authorization": "Digest x"},
]  # fmt: skip


@pytest.mark.parametrize("headers", WRONG)
def test_no_key_and_a_wrong_one_are_refused_in_one_shape(
    locked: Server, headers: dict[str, str]
) -> None:
    for path in ("/v1/jobs", "/metrics", "/openapi.json", "/nowhere"):
        response = locked.client.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("headers", [bearer(SECRET), basic(SECRET), bearer(OTHER)])
def test_a_key_is_a_token_and_a_password(locked: Server, headers: dict[str, str]) -> None:
    assert locked.client.get("/v1/jobs", headers=headers).status_code == 200


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time, and as digests: neither place nor length of a key shows."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    keys = Keys([("ann", SECRET), ("bob", OTHER), ("eve", "e" * 99)])
    for secret in (SECRET, "e" * 99, "k", ""):
        compared.clear()
        keys.find(f"Bearer {secret}".encode())
        assert len(compared) == 3 and {len(text) for pair in compared for text in pair} == {32}


def test_health_needs_no_key(locked: Server) -> None:
    assert locked.client.get("/healthz").status_code == 200
    assert locked.client.get("/readyz").status_code == 200


def test_a_key_sees_its_own_jobs_alone(locked: Server) -> None:
    body = {"prompt": "mine"}
    job = locked.client.post("/v1/jobs", json=body, headers=bearer(SECRET)).json()
    path = f"/v1/jobs/{job['id']}"
    for method, where in (
        ("GET", path), ("GET", path + "/events"), ("GET", path + "/images/0"),
        ("POST", path + "/cancel"), ("DELETE", path),
    ):  # fmt: skip
        assert locked.client.request(method, where, headers=bearer(OTHER)).status_code == 404
    assert locked.client.get("/v1/jobs", headers=bearer(OTHER)).json()["data"] == []


def test_prompts_and_keys_are_in_no_log(locked: Server, capfd: pytest.CaptureFixture[str]) -> None:
    body = {"prompt": "a very private wish", "steps": 1}
    locked.client.post("/v1/jobs", json=body, headers=bearer(SECRET))
    locked.client.get("/v1/jobs?x=private", headers=bearer(OTHER))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {"request"} <= {line["event"] for line in lines}
    text = json.dumps(lines)
    assert not [word for word in ("private", SECRET, OTHER) if word in text]


def test_another_site_s_requests_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        own = {"origin": server.url, "sec-fetch-site": "same-origin"}
        foreign = [
            {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"},
        ]  # fmt: skip
        body = {"prompt": "x"}
        assert server.client.post("/v1/jobs", json=body, headers=own).status_code == 202
        for headers in foreign:
            response = server.client.post("/v1/jobs", json=body, headers=headers)
            assert response.json()["error"]["code"] == "cross_site"
        answer = server.client.get("/v1/jobs", headers={"origin": "http://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_name_that_points_here_from_elsewhere_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:7860", 200)):
            assert server.client.get("/v1/jobs", headers={"host": host}).status_code == status


def test_a_body_that_is_too_large_is_refused_whatever_it_says(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(body_bytes=10_000)) as server:
        said = server.client.post("/v1/jobs", content=b"x" * 20_000)
        chunks = (b"x" * 1000 for _ in range(20))
        unsaid = server.client.post("/v1/jobs", content=chunks)
        for response in (said, unsaid):
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "too_large"
        server.wait(server.submit()["id"])


def test_a_request_keeps_its_id(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        given = server.client.get("/healthz", headers={"x-request-id": "abc-1"})
        assert given.headers["x-request-id"] == "abc-1"
        bad = server.client.get("/healthz", headers={"x-request-id": "a b"})
        assert bad.headers["x-request-id"] not in ("", "a b")


class Faulty(Gradient):
    """Fails as the prompt says, and tells the prompt to the log."""

    def step(self, canvases: Sequence[Sheet]) -> list[Exception | None]:
        prompts = [one.plan.request.prompt for one in canvases]
        if any("broken" in prompt for prompt in prompts):
            raise ValueError(f"cannot draw {prompts}")
        outcomes = super().step(canvases)
        nan = NumericsError("the latent stopped being finite")
        return [nan if "nan" in one else good for one, good in zip(prompts, outcomes, strict=True)]


def test_counters_equal_the_client_s_own_tally(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tally = Counter[tuple[str, str]]()
    limits = Limits(rate=12)
    with serving(tmp_path, Faulty(), limits=limits) as server:

        def ask(method: str, path: str, route: str = "", **options: Any) -> Any:
            answer = server.client.request(method, path, **options)
            tally[route or path, str(answer.status_code)] += 1
            return answer

        ids: list[str] = []
        for prompt, state in (("private", "completed"), ("private nan", "failed")) * 2:
            body = {"prompt": prompt, "images": 2, "steps": 2}
            ids.append(ask("POST", "/v1/jobs", json=body).json()["id"])
            server.wait(ids[-1], state)
        for prompt in ("private", "private broken", "private nan"):
            ask("POST", "/v1/images/generations", json={"prompt": prompt, "n": 3})
            ask("POST", "/sdapi/v1/txt2img", json={"prompt": prompt, "width": 64, "height": 64})
        for body in ({"prompt": "private", "width": 1}, {"prompt": ""}, {"private": 1}):
            ask("POST", "/v1/jobs", json=body)
        ask("GET", "/v1/jobs/private", "/v1/jobs/{id}")
        ask("GET", f"/v1/jobs/{ids[0]}/images/0", "/v1/jobs/{id}/images/{index}")
        ask("GET", f"/v1/jobs/{ids[0]}/images/7", "/v1/jobs/{id}/images/{index}")
        ask("GET", "/private", "none")
        ask("DELETE", f"/v1/jobs/{ids[0]}", "/v1/jobs/{id}")
        ask("PUT", "/v1/jobs")
        for _ in range(4):
            last = ask("POST", "/v1/jobs", json={"prompt": "private"}).json()
            if "id" in last:
                server.wait(last["id"])
        text = server.client.get("/metrics").text
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    found = {(one.name, *one.labels.values()): one.value for one in samples}
    seen = {
        (one.labels["route"], one.labels["code"]): one.value
        for one in samples
        if one.name == "sana_requests_total"
    }
    seen.pop(("/metrics", "200"), None)
    # `wait` asks as often as it must.
    asked = seen.pop(("/v1/jobs/{id}", "200"))
    assert asked >= 4 and seen == {key: value for key, value in tally.items() if value}
    assert tally["/v1/jobs", "429"] == 2 and tally["/v1/images/generations", "500"] == 2
    assert found["sana_jobs_total", "completed"] == 2 + 2 + 2
    assert found["sana_jobs_total", "failed"] == 2 + 4
    assert found["sana_images_total",] == 2 * 2 + 3 + 1 + 2
    assert found["sana_nan_total",] == 2 + 2
    assert found["sana_rejected_total", "rate_limited"] == 2
    assert found["sana_queue_depth",] == 0
    log = capfd.readouterr().err
    assert "cannot draw" in log and "private" not in log


def test_an_address_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# people\nann: {SECRET}\n")
    with run.bind("0.0.0.0", 0) as everywhere, run.bind("127.0.0.1", 0) as here:
        with pytest.raises(ConfigError, match="--keys"):
            run.keys_for(everywhere, None, insecure=False)
        assert not run.keys_for(everywhere, None, insecure=True)
        assert not run.keys_for(here, None, insecure=False)
        assert run.keys_for(everywhere, file, insecure=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key"), ("ann", "name:key"), ("a b:" + SECRET, "name:key"), ("ann:short", "16"),
        (f"ann:{SECRET}\nann:{OTHER}", "there already"),
    ],
)  # fmt: skip
def test_a_file_of_keys_that_is_wrong_says_where(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_keys(file)
