"""The page in a real browser, over a painter of gradients; skipped where there is no Chromium."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, PngImagePlugin

from opensana.drawing.picture import Picture
from opensana.request import Request
from opensana.serve.gate.keys import Keys
from opensana.serve.jobs.limits import Limits
from opensana.weights.lora import MergedLora, lora_provenance
from tests.serve.gradient import NATIVE, Gradient, Server, digest, serving
from tests.serve.processes import free_port, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
STEP_SECONDS = 0.15
TIMEOUT_MS = 60_000


class Slow(Gradient):
    """A model of several sizes that takes its time."""

    def about(self) -> dict[str, Any]:
        return super().about() | {"sizes": [[64, 64], [96, 64], [64, 96]]}


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    with api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "store", Slow(step_seconds=STEP_SECONDS)) as found:
        yield found


def opened(page: "Page", server: Server) -> "Page":
    """The page, ready; whatever its console complains of fails the test."""
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    return page


@pytest.fixture
def page(chromium: "Browser", server: Server) -> "Iterator[Page]":
    context = chromium.new_context(viewport={"width": 1366, "height": 860}, locale="en-GB")
    context.set_default_timeout(TIMEOUT_MS)
    found, complaints = context.new_page(), list[str]()
    found.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened(found, server)
    context.close()
    # Chromium itself logs answers of 4xx and 5xx, and broken connections.
    assert not [line for line in complaints if not line.startswith("Failed to load resource")]


def draw(page: "Page", prompt: str, **settings: str) -> None:
    page.fill("#prompt", prompt)
    for name, value in settings.items():
        page.fill(f"#{name}", value)
    page.click("#draw")


def finished(page: "Page") -> None:
    page.wait_for_selector("#view .tools")


def drop(page: "Page", data: bytes, target: str = "#stage") -> None:
    """As if a file were dropped there."""
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
            return transfer;
        }""",
        list(data),
    )
    page.dispatch_event(target, "drop", {"dataTransfer": transfer})


def png(**chunks: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_picture_is_drawn_with_previews_progress_and_its_seed(page: "Page") -> None:
    draw(page, "a gradient", steps="8")
    page.wait_for_selector("#view .preview:not([hidden])")
    assert page.get_attribute("#view .preview", "src").startswith("blob:")  # type: ignore[union-attr]
    page.wait_for_selector("#view .step:has-text('of 8')")
    page.wait_for_selector("#view .left:has-text('left')")
    finished(page)
    assert page.input_value("#seed") == "1234"
    assert "Seed 1234" in page.inner_text("#view .chips")
    page.wait_for_selector("#live:has-text('Seed 1234')", state="attached")
    assert page.locator("#history [role=option]").count() == 1


def test_cancel_ends_the_job_by_its_next_step(page: "Page", server: Server) -> None:
    draw(page, "a long one", steps="200")
    page.wait_for_selector("#view .step:has-text('of 200')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#view .ending")
    [job] = server.client.get("/v1/jobs").json()["data"]
    assert job["status"] == "cancelled" and job["images"][0]["step"] < 200
    assert page.is_hidden("#cancel")


def test_a_reload_follows_the_running_job_and_keeps_the_settings(
    page: "Page", server: Server
) -> None:
    draw(page, "a long one", steps="30")
    page.wait_for_selector("#view .preview:not([hidden])")
    opened(page, server)
    assert page.input_value("#prompt") == "a long one" and page.input_value("#steps") == "30"
    page.wait_for_selector("#view .preview:not([hidden])")
    finished(page)


def test_the_history_survives_the_end_of_the_server(
    page: "Page", server: Server, tmp_path: Path
) -> None:
    draw(page, "kept", seed="99")
    finished(page)
    page.wait_for_timeout(500)  # the copy goes into the browser
    job = server.client.get("/v1/jobs").json()["data"][0]
    assert server.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    opened(page, server)
    page.wait_for_selector("#view img[src^=blob]")
    page.fill("#prompt", "something else")
    page.click("#history [role=option]")
    assert page.input_value("#prompt") == "kept" and page.input_value("#seed") == "99"
    page.click(".toast button:has-text('Undo')")
    assert page.input_value("#prompt") == "something else"


def test_a_queue_shows_ones_own_jobs_and_each_can_be_cancelled(
    page: "Page", server: Server
) -> None:
    draw(page, "the first", steps="200")
    page.wait_for_selector("#view .progress")
    draw(page, "the second", width="96", steps="200")
    page.wait_for_selector("#queue-list .waiting:has-text('the second')")
    page.click("#queue-list .waiting button[aria-label=Cancel]")
    page.wait_for_selector("#queue", state="hidden")
    states = {
        job["request"]["prompt"]: job["status"]
        for job in server.client.get("/v1/jobs").json()["data"]
    }
    assert states == {"the first": "running", "the second": "cancelled"}


def test_a_dropped_picture_of_ours_brings_its_settings_back(page: "Page") -> None:
    seed = 2**63 - 1  # no number of JavaScript
    request = Request(
        "drawn before", negative_prompt="blur", width=96, height=64, steps=9, guidance=3.5,
        seed=seed, solver="flow_dpm",
    )  # fmt: skip
    drop(page, Picture(Image.new("RGB", (96, 64)), request, model="other").png())
    page.wait_for_selector(".toast:has-text('Settings restored')")
    assert "Drawn by other" in page.inner_text(".toast")
    values = {
        "prompt": "drawn before", "negative": "blur", "width": "96", "height": "64",
        "steps": "9", "guidance": "3.5", "seed": str(seed), "solver": "flow_dpm",
    }  # fmt: skip
    assert {name: page.input_value(f"#{name}") for name in values} == values
    page.click("#draw")
    finished(page)
    assert str(seed) in page.inner_text("#view .chips")


def lora_rows(page: "Page") -> list[list[str]]:
    """Name and weight of each row."""
    rows = page.locator("#loras li").all()
    return [
        [row.locator("select").input_value(), row.locator("[type=number]").input_value()]
        for row in rows
    ]


def test_loras_are_chosen_weighed_drawn_and_restored(page: "Page", server: Server) -> None:
    page.click("#loras-fold summary")
    page.click("#lora-add")
    assert lora_rows(page) == [["film", "1"]]
    assert page.inner_text("#loras .hint") == "Its words for prompts: film style"
    page.select_option("#loras select", "ink")
    page.fill("#loras [type=number]", "0.35")
    page.click("#lora-add")
    assert page.is_disabled("#lora-add"), "all are chosen"
    page.fill("#loras li:last-child [type=number]", "-1")
    rows = [["ink", "0.35"], ["film", "-1"]]
    assert lora_rows(page) == rows
    draw(page, "a gradient with LoRAs")
    finished(page)
    (job,) = server.client.get("/v1/jobs").json()["data"]
    assert [(one["name"], one["scale"]) for one in job["lora"]] == [("ink", 0.35), ("film", -1)]
    chips = page.inner_text("#view .chips")
    assert "ink 0.35" in chips and "film -1" in chips
    png = server.client.get(job["images"][0]["url"]).content

    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert lora_rows(page) == rows, "they are as they were after a reload"
    page.click("#view .tools [aria-label='Copy the request']")
    assert "--lora ink.safetensors --lora-scale 0.35" in page.inner_text("#copy-text")
    page.click("#copy-close")

    for _ in rows:
        page.click("#loras button")
    assert lora_rows(page) == []
    drop(page, png)
    page.wait_for_selector(".toast:has-text('Settings restored')")
    assert lora_rows(page) == rows
    page.click("#draw")
    finished(page)
    newest = server.client.get("/v1/jobs").json()["data"][0]
    assert newest["id"] != job["id"]
    assert (newest["lora"], newest["request"]) == (job["lora"], job["request"])


def test_a_dropped_picture_with_another_file_s_lora_says_so(page: "Page") -> None:
    request = Request("drawn before", width=64, height=64, steps=4, guidance=1.0, seed=1)
    facts = lora_provenance(
        [MergedLora("film", "0" * 64, 0.5), MergedLora("ink", digest("ink"), 2)]
    )
    drop(page, Picture(Image.new("RGB", (64, 64)), request, provenance=facts).png())
    page.wait_for_selector(".toast:has-text('Settings restored')")
    assert "No LoRA named film here" in page.inner_text(".toast")
    assert lora_rows(page) == [["ink", "2"]]


def test_a_prompt_s_lora_tags_of_other_programs_become_rows(page: "Page") -> None:
    text = "a cat <lora:ink:0.8>\nSteps: 12, Sampler: Euler, CFG scale: 5.5, Seed: 77, Size: 64x96"
    drop(page, png(parameters=text))
    page.wait_for_selector(".toast:has-text('Settings restored')")
    assert lora_rows(page) == [["ink", "0.8"]] and page.input_value("#prompt") == "a cat"


def test_without_loras_there_is_nothing_to_choose(chromium: "Browser", tmp_path: Path) -> None:
    with serving(tmp_path, Slow(loras=())) as server, chromium.new_context() as context:
        page = opened(context.new_page(), server)
        assert page.is_hidden("#loras-fold")


def test_a_dropped_picture_of_other_programs_brings_what_means_the_same(page: "Page") -> None:
    text = (
        "a cat, <lora:gone:0.8> a hat\nNegative prompt: dog\n"
        "Steps: 12, Sampler: Euler, CFG scale: 5.5, Seed: 77, Size: 64x96, Model: sdxl"
    )
    drop(page, png(parameters=text))
    page.wait_for_selector(".toast:has-text('Settings restored')")
    values = {"prompt": "a cat, a hat", "negative": "dog", "steps": "12", "seed": "77"}
    values |= {"width": "64", "height": "96", "guidance": "5.5", "solver": ""}  # it is the default
    assert {name: page.input_value(f"#{name}") for name in values} == values
    assert "gone" in page.inner_text(".toast")


@pytest.mark.parametrize(
    "chunks",
    [
        {"opensana": "{"},
        {"opensana": '{"format": 1, "request": {"prompt": 3}}'},
        {"opensana": '{"format": 1, "request": null}', "parameters": "no settings at all"},
        {"parameters": "Steps: 1"},
    ],
)
def test_damaged_settings_are_none_and_the_picture_becomes_the_start(
    page: "Page", chunks: dict[str, str]
) -> None:
    drop(page, png(**chunks))
    page.wait_for_selector("#start-drop .given img")
    assert "no settings" in page.inner_text(".toast")


def test_values_that_the_server_does_not_take_are_left_out_and_said(page: "Page") -> None:
    note = '{"format": 1, "request": {"prompt": "<img src=x onerror=alert(1)>", "steps": 1e9}}'
    drop(page, png(opensana=note))
    page.wait_for_selector(".toast:has-text('steps')")
    assert page.input_value("#steps") == ""
    draw(page, page.input_value("#prompt"))
    finished(page)
    assert page.inner_text("#view .said") == "<img src=x onerror=alert(1)>"


def test_a_truncated_png_is_refused_in_one_line(page: "Page") -> None:
    drop(page, png(opensana="{}")[:60])
    page.wait_for_selector("#problem:has-text('no picture')")


def test_a_mask_is_painted_undone_and_sent(page: "Page", server: Server) -> None:
    drop(page, png(), "#start-drop")
    page.click("#start-drop button:has-text('Paint a mask')")
    box = page.locator("#mask-canvas").bounding_box()
    assert box
    x, y, side = box["x"], box["y"], box["width"]
    for left in (0.2, 0.8):
        page.mouse.move(x + left * side, y + 0.5 * side)
        page.mouse.down()
        page.mouse.move(x + (left + 0.02) * side, y + 0.52 * side, steps=3)
        page.mouse.up()
    page.click("#mask-undo")
    page.click("#mask-done")
    draw(page, "only there")
    finished(page)
    job = server.client.get("/v1/jobs").json()["data"][0]
    assert job["inputs"]["image"] and job["inputs"]["mask"]
    sent = server.client.get(f"/v1/jobs/{job['id']}/inputs/mask").content
    mask = Image.open(io.BytesIO(sent)).convert("L")
    assert mask.size == (64, 64)
    assert [mask.getpixel((at, 32)) for at in (13, 51)] == [255, 0]


def test_a_phone_shows_all_in_one_column(chromium: "Browser", server: Server) -> None:
    context = chromium.new_context(
        viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, locale="en-GB"
    )
    context.set_default_timeout(TIMEOUT_MS)
    page = opened(context.new_page(), server)
    page.fill("#prompt", "small")
    page.tap("#draw")
    finished(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    bar = page.locator("#draw").bounding_box()
    assert bar and bar["y"] + bar["height"] <= 740 and bar["width"] > 240
    page.tap("#settings > summary")
    assert page.is_visible("#steps")
    page.tap("#settings > summary")
    page.tap("#view .tools button:has-text('Start from it')")
    page.wait_for_selector("#start-drop .given img")
    assert page.is_visible("#strength")
    context.close()


def test_all_can_be_done_by_keyboard(page: "Page") -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.locator("#prompt").focus()
    for words in ("first", "second"):
        page.keyboard.press("Control+a")
        page.keyboard.type(words)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(f"#view .said:has-text('{words}')")
        finished(page)
    page.wait_for_selector("#history [role=option] >> nth=1")
    page.locator("#history").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#view .said:has-text('first')")
    assert page.input_value("#prompt") == "second"
    page.keyboard.press("Enter")
    page.wait_for_selector(".toast:has-text('restored')")
    assert page.input_value("#prompt") == "first"
    page.locator("#history").focus()
    page.keyboard.press("Delete")
    page.locator("#ask-yes").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#history [role=option] >> nth=1", state="detached")
    assert page.locator("#history [role=option]").count() == 1


def test_every_control_has_a_name(page: "Page") -> None:
    draw(page, "a gradient")
    finished(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [role=option]")]
            .filter(one => !one.matches("[type=file]") && !one.closest("[hidden]"))
            .filter(one => !(one.getAttribute("aria-label") || one.textContent.trim()
                || one.getAttribute("aria-labelledby") || (one.labels && one.labels.length)))
            .map(one => one.outerHTML)"""
    )
    assert nameless == []


def test_two_pictures_are_compared_by_a_slider(page: "Page") -> None:
    draw(page, "a gradient", images="2", seed="5")
    page.wait_for_selector("#view .pick img")
    page.wait_for_selector("#view .progress", state="detached")
    page.click("#view .tile >> nth=0")
    page.click("#view .tools button:has-text('Compare')")
    assert page.inner_text("#differences") == "Seed: 5 | 6"
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert (
        page.evaluate("() => document.getElementById('pair').style.getPropertyValue('--cut')")
        == "60%"
    )


def test_a_grid_draws_each_pair_of_values(page: "Page", server: Server) -> None:
    page.fill("#prompt", "a red thing")
    page.click("#grid-open")
    page.select_option("#grid-x", "words")
    page.fill("#grid-x-values", "red, blue")
    page.select_option("#grid-y", "steps")
    page.fill("#grid-y-values", "2-3")
    page.click("#grid-draw")
    page.wait_for_selector("#grid-save")
    assert page.locator("#sheet td img").count() == 4
    jobs = [one["request"] for one in server.client.get("/v1/jobs").json()["data"]]
    drawn = {(one["prompt"], one["steps"]) for one in jobs}
    assert drawn == {(f"a {word} thing", n) for word in ("red", "blue") for n in (2, 3)}
    assert len({one["seed"] for one in jobs}) == 1
    page.fill("#grid-y-values", "many")
    page.click("#grid-draw")
    page.wait_for_selector("#grid-problem:has-text('many is no value for Steps')")


def test_a_grid_goes_on_after_a_reload(chromium: "Browser", tmp_path: Path) -> None:
    limits = Limits(queue=2 * 6 * NATIVE * NATIVE)  # so half of it is not yet sent
    painter = Slow(step_seconds=STEP_SECONDS)
    with serving(tmp_path, painter, limits=limits, batch=1) as server:
        context = chromium.new_context(locale="en-GB")
        context.set_default_timeout(TIMEOUT_MS)
        page = opened(context.new_page(), server)
        page.fill("#prompt", "a thing")
        page.click("#grid-open")
        page.fill("#grid-x-values", "5-8")
        page.select_option("#grid-y", "steps")
        page.fill("#grid-y-values", "6")
        page.click("#grid-draw")
        page.wait_for_selector("#sheet .pick")
        opened(page, server)
        page.click("#grid-open")
        assert page.input_value("#grid-x-values") == "5-8"
        assert page.input_value("#grid-y") == "steps"
        page.wait_for_selector("#grid-save")
        assert page.locator("#sheet td img").count() == 4
        jobs = server.client.get("/v1/jobs").json()["data"]
        assert sorted(one["request"]["seed"] for one in jobs) == [5, 6, 7, 8]
        opened(page, server)
        page.click("#grid-open")
        page.wait_for_selector("#grid-save")
        assert page.locator("#sheet td img").count() == 4
        assert len(server.client.get("/v1/jobs").json()["data"]) == 4
        context.close()


def test_what_a_full_queue_refuses_is_drawn_when_it_has_room(
    chromium: "Browser", tmp_path: Path
) -> None:
    limits = Limits(queue=NATIVE * NATIVE)
    with serving(tmp_path, Slow(step_seconds=STEP_SECONDS), limits=limits) as server:
        context = chromium.new_context(locale="en-GB")
        context.set_default_timeout(TIMEOUT_MS)
        page = opened(context.new_page(), server)
        draw(page, "the first", steps="12")
        page.wait_for_selector("#view .progress")
        for words in ("the second", "never"):
            draw(page, words, steps="3")
            page.wait_for_selector("#problem:has-text('The queue is full; going on in')")
        page.keyboard.press("Escape")  # ends the waiting of the last one
        page.wait_for_selector("#view .said:has-text('the second')")
        finished(page)
        assert page.is_hidden("#problem")
        prompts = [one["request"]["prompt"] for one in server.client.get("/v1/jobs").json()["data"]]
        assert prompts == ["the second", "the first"]
        context.close()


def test_the_page_goes_on_when_its_server_was_killed(chromium: "Browser", tmp_path: Path) -> None:
    port = free_port()
    context = chromium.new_context(locale="en-GB")
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    with running(tmp_path / "jobs", step=0.1, port=port) as server:
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("body[data-ready]")
        draw(page, "at work", steps="100")
        page.wait_for_selector("#view .preview:not([hidden])")
        draw(page, "in the queue", width="96", steps="100")
        page.wait_for_selector("#queue-list .waiting:has-text('in the queue')")
        server.process.kill()
        page.wait_for_selector("#connection:has-text('Connection lost')")
    with running(tmp_path / "jobs", step=0.02, port=port) as server:
        page.wait_for_selector("#connection:has-text('Connection lost')", state="detached")
        finished(page)
        assert page.inner_text("#view .said") in ("at work", "in the queue")
        page.wait_for_selector("#history [role=option] >> nth=1")
        assert {one["status"] for one in server.client.get("/v1/jobs").json()["data"]} == {
            "completed"
        }
        draw(page, "a new one", width="64", steps="3")
        page.wait_for_selector("#history [role=option] >> nth=2")
    context.close()


def test_variations_are_the_next_seeds(page: "Page", server: Server) -> None:
    draw(page, "a gradient", seed="10")
    finished(page)
    page.click("#view .tools button:has-text('Variations')")
    page.wait_for_selector("#view .pick img >> nth=3")
    job = server.client.get("/v1/jobs").json()["data"][0]
    assert [one["seed"] for one in job["images"]] == [11, 12, 13, 14]


def test_the_request_is_copied_for_a_shell_and_for_python(page: "Page") -> None:
    draw(page, 'an "apple" that isn\'t red', seed="10", steps="3")
    finished(page)
    page.click("#view .tools button[aria-label='Copy the request']")
    command = page.inner_text("#copy-text")
    assert command.startswith("opensana generate") and "isn'\\''t red" in command
    assert "--seed 10" in command and "--steps 3" in command
    page.click("#copy-curl")
    assert page.inner_text("#copy-text").startswith("curl http://127.0.0.1:")
    page.click("#copy-python")
    python = page.inner_text("#copy-text")
    compile(python, "copied", "exec")
    assert "seed=10" in python


def test_refusals_are_one_line_at_the_button_and_mark_the_field(page: "Page") -> None:
    draw(page, "a gradient", width="50")
    page.wait_for_selector("#problem:has-text('width must be a multiple of 32, got 50')")
    assert page.get_attribute("#width", "aria-invalid") == "true"
    page.fill("#width", "64")
    page.fill("#prompt", " ")
    page.click("#draw")
    page.wait_for_selector("#problem:has-text('Say what the picture should show')")
    draw(page, "a gradient")
    finished(page)
    assert page.is_hidden("#problem")


def test_a_server_that_is_gone_is_said(page: "Page", chromium: "Browser") -> None:
    page.context.set_offline(True)
    draw(page, "a gradient")
    page.wait_for_selector("#problem:has-text('The server does not answer')")
    page.context.set_offline(False)
    page.click("#draw")
    finished(page)


def test_the_language_is_the_browsers_until_it_is_switched(
    chromium: "Browser", server: Server
) -> None:
    context = chromium.new_context(locale="zh-CN")
    context.set_default_timeout(TIMEOUT_MS)
    page = opened(context.new_page(), server)
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert "绘制" in page.inner_text("#draw")
    page.click("#language")
    assert page.inner_text("#draw").startswith("Draw")
    opened(page, server)
    assert page.inner_text("#draw").startswith("Draw")
    context.close()


def test_a_download_holds_the_settings(page: "Page", tmp_path: Path) -> None:
    draw(page, "a gradient", seed="10")
    finished(page)
    with page.expect_download() as waiting:
        page.click("#view .tools button:has-text('Download')")
    assert re.fullmatch(r"opensana-10\.png", waiting.value.suggested_filename)
    path = tmp_path / "saved.png"
    waiting.value.save_as(path)
    with Image.open(path) as image:
        assert '"seed": 10' in image.info["opensana"]


def test_a_key_is_asked_for_once_by_the_browser(chromium: "Browser", tmp_path: Path) -> None:
    secret = "a-key-of-some-length"
    with serving(tmp_path, keys=Keys([("me", secret)])) as server:
        context = chromium.new_context(http_credentials={"username": "me", "password": secret})
        context.set_default_timeout(TIMEOUT_MS)
        page = opened(context.new_page(), server)
        draw(page, "a gradient")
        finished(page)
        page.wait_for_function("() => document.querySelector('#view img').naturalWidth === 64")
        page.click("#view .tools button[aria-label='Copy the request']")
        page.click("#copy-curl")
        assert '-H "Authorization: Bearer $OPENSANA_KEY"' in page.inner_text("#copy-text")
        assert secret not in page.content()
        assert "OPENSANA_KEY" in page.inner_text("#copy-note")
        for kind in ("command", "python"):  # they draw without the server
            page.click(f"#copy-{kind}")
            assert "KEY" not in page.inner_text("#copy-text")
        context.close()


RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_nothing_breaks_the_rules_of_accessibility(
    chromium: "Browser", server: Server, colours: Any, locale: str
) -> None:
    """WCAG 2.2 AA, as far as axe-core can tell: contrast, names, roles, order, sizes."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    context = chromium.new_context(
        locale=locale, color_scheme=colours, reduced_motion="reduce",
        viewport={"width": 1280, "height": 800},
    )  # fmt: skip
    context.set_default_timeout(TIMEOUT_MS)
    page = opened(context.new_page(), server)
    page.evaluate(script)

    def broken() -> list[str]:
        found = page.evaluate(
            "rules => axe.run(document, { runOnly: rules, resultTypes: ['violations'] })", RULES
        )
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]

    assert not broken()
    draw(page, "a gradient", images="2", width="50")
    page.wait_for_selector("#problem:not([hidden])")
    assert not broken()
    draw(page, "a gradient", width="64", steps="20")
    page.wait_for_selector("#view .preview:not([hidden])")
    assert not broken()
    page.keyboard.press("Escape")
    page.wait_for_selector("#view .ending")
    draw(page, "a gradient", steps="2")
    page.wait_for_selector("#history [role=option] >> nth=1")
    page.locator("#history [role=option] >> nth=0").click()
    finished(page)
    page.click("#start-fold summary")
    page.click("#more-fold summary")
    assert not broken()
    for button, close in (
        ("#grid-open", "#grid-close"),
        ("#view .tools button:has(use[href='#i-compare'])", "#compare-close"),
        ("#view .tools button:has(use[href='#i-copy'])", "#copy-close"),
    ):
        page.click(button)
        assert not broken(), button
        page.click(close)
    context.close()
