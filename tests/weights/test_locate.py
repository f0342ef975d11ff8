"""Where a model lives, and what is said when it is nowhere."""

import importlib
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import hf_raise_for_status

from opensana.errors import WeightsError
from opensana.weights import locate as module
from opensana.weights.locate import is_here, locate, locate_file, needed_files

REPOSITORY = [
    "README.md",
    "model_index.json",
    "asset/picture.png",
    "checkpoints/model.pth",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.bf16-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.bf16.json",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer.model",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.bf16.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "pretrained" / "emoji-256"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    monkeypatch.setattr(module, "PRETRAINED", tmp_path / "pretrained")
    return folder


def test_a_name_that_comes_along(pretrained: Path) -> None:
    assert locate("emoji-256") == pretrained
    with pytest.raises(WeightsError, match="did you mean 'emoji-256'"):
        locate("emoji256")
    with pytest.raises(WeightsError, match="models that come along: emoji-256"):
        locate("something")


def test_a_folder(pretrained: Path, tmp_path: Path) -> None:
    assert locate(pretrained) == pretrained
    with pytest.raises(WeightsError, match="no model_index"):
        locate(tmp_path)
    exported = tmp_path / "transformer"
    exported.mkdir()
    (exported / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=re.escape(f"did you mean {exported}?")):
        locate(tmp_path)
    (tmp_path / "model.pth").write_text("x")
    with pytest.raises(WeightsError, match="opensana convert"):
        locate(tmp_path / "model.pth")
    for path in (tmp_path / "nowhere", "./no/where", "../no"):
        with pytest.raises(WeightsError, match="no model"):
            locate(path)


def test_a_revision_belongs_to_the_hub(pretrained: Path, tmp_path: Path) -> None:
    for model in ("emoji-256", pretrained, tmp_path):
        with pytest.raises(WeightsError, match="is no model on the hub: it has no revision 'v2'"):
            locate(model, revision="v2")


def test_only_needed_files_are_fetched() -> None:
    plain = needed_files(REPOSITORY, None)
    assert "transformer/diffusion_pytorch_model-00001-of-00002.safetensors" in plain
    assert not [f for f in plain if "bf16" in f or f.endswith((".bin", ".pth", ".png", ".md"))]
    half = needed_files(REPOSITORY, "bf16")
    weights = [f for f in half if f.startswith("transformer") and ".safetensors" in f]
    assert weights == ["transformer/diffusion_pytorch_model.bf16.safetensors"]
    assert "vae/diffusion_pytorch_model.safetensors" in half
    assert "text_encoder/model-00001-of-00002.safetensors" in half
    assert not [f for f in half if f.startswith("text_encoder") and "bf16" in f]


def test_a_repository_with_one_variant_gives_that() -> None:
    only = ["vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert needed_files(only, None) == only
    assert needed_files(["config.json", "diffusion_pytorch_model.bin"], None) == ["config.json"]


def test_previews_and_a_few_step_transformer_come_along() -> None:
    only = [
        "transformer_sprint/config.json",
        "transformer_sprint/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/preview.safetensors",
    ]
    assert needed_files(only, None) == needed_files(only, "fp16") == only


# ------------------------------------------------------------------ the hub


class Hub:
    """Stands in for huggingface_hub: what it answers, what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.failure: Exception | None = None
        self.stored = True
        self.folder = tmp_path
        self.asked: list[dict] = []
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", self.list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def list_repo_files(self, name: str, *, revision: str | None = None) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return REPOSITORY

    def snapshot_download(self, name: str, **options) -> str:
        self.asked.append({"name": name, **options})
        if options.get("local_files_only") and not self.stored:
            raise errors.LocalEntryNotFoundError("nothing here")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, tmp_path)


def response(status: int) -> SimpleNamespace:
    """As much of a response as the errors of any HTTP library look at."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def test_a_hub_id_is_downloaded(hub: Hub) -> None:
    assert locate("someone/a-model", revision="v1", variant="bf16") == hub.folder
    [asked] = hub.asked
    assert (asked["name"], asked["revision"]) == ("someone/a-model", "v1")
    assert asked["allow_patterns"] == needed_files(REPOSITORY, "bf16")


FAILURES = {
    "gated": (errors.GatedRepoError, 403, "accept its terms"),
    "unknown": (errors.RepositoryNotFoundError, 404, "check the spelling"),
    "revision": (errors.RevisionNotFoundError, 404, "no such revision"),
    "unauthorised": (errors.HfHubHTTPError, 401, "hf auth login"),
    "forbidden": (errors.HfHubHTTPError, 403, "HF_TOKEN"),
    "broken": (errors.HfHubHTTPError, 500, "status 500"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_refusal_says_what_to_do(hub: Hub, name: str) -> None:
    kind, status, text = FAILURES[name]
    hub.failure = kind("refused", response=response(status))  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(WeightsError, match=text) as caught:
        locate("someone/a-model")
    assert "\n" not in str(caught.value)
    assert "someone/a-model" in str(caught.value)


@pytest.mark.parametrize("failure", [ConnectionError("no route"), OSError("name not known")])
def test_without_a_network_the_stored_copy_is_used_and_reported(
    hub: Hub, failure: Exception
) -> None:
    hub.failure = failure
    with pytest.warns(UserWarning, match="stored copy of someone/a-model"):
        assert locate("someone/a-model") == hub.folder
    hub.stored = False
    with pytest.raises(WeightsError, match="hub cannot be reached"):
        locate("someone/a-model")


def test_a_failing_http_library_counts_as_no_network(hub: Hub) -> None:
    hub.failure = module._http_error()("down")
    hub.stored = False
    with pytest.raises(WeightsError, match="hub cannot be reached"):
        locate("someone/a-model")


def test_asked_offline_means_no_warning(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert locate("someone/a-model") == hub.folder
    assert hub.asked[0]["local_files_only"]
    hub.stored = False
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        locate("someone/a-model")


def test_really_offline_there_is_one_clear_line() -> None:
    with pytest.raises(WeightsError, match="not on this machine"):
        locate("someone/a-model-that-was-never-fetched")


def test_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "one.pth"
    file.write_text("x")
    assert locate_file(file) == file
    with pytest.raises(WeightsError, match="no file"):
        locate_file(tmp_path / "two.pth")
    with pytest.raises(WeightsError, match="hf://owner/repository/file"):
        locate_file("hf://owner/repository")
    asked: list[tuple[str, str]] = []

    def fetch(name: str, path: str, **_options) -> str:
        asked.append((name, path))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert locate_file("hf://owner/repository/checkpoints/one.pth") == file
    assert asked == [("owner/repository", "checkpoints/one.pth")]


# ------------------------------------------------------------------ as huggingface_hub raises


def answer(status: int, code: str = "") -> Exception:
    """The error that huggingface_hub itself makes of a server's answer."""
    url = "https://huggingface.co/api/models/google/gemma-2-2b-it/revision/main"
    headers = {"X-Error-Code": code} if code else {}
    http = importlib.import_module(module._http_error().__module__.partition(".")[0])
    request = http.Request("GET", url)
    with pytest.raises(errors.HfHubHTTPError) as caught:
        hf_raise_for_status(http.Response(status, headers=headers, request=request))
    return caught.value


ANSWERS = {
    "gated": (403, "GatedRepo", "accept its terms at https://huggingface.co/{}.*HF_TOKEN"),
    "gated, no token": (401, "GatedRepo", "accept its terms"),
    "unknown": (404, "RepoNotFound", "check the spelling"),
    "unknown or private": (401, "RepoNotFound", "check the spelling.*HF_TOKEN"),
    "revision": (404, "RevisionNotFound", "no such revision"),
    "disabled": (403, "", "refused {} .403."),
    "too many": (429, "", "status 429.*again later"),
    "down": (503, "", "status 503.*again later"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_real_answers_of_the_hub_say_what_to_do(hub: Hub, name: str) -> None:
    status, code, text = ANSWERS[name]
    hub.failure = answer(status, code)
    model = "someone/a-model"
    with pytest.raises(WeightsError, match=text.format(model)) as caught:
        locate(model)
    assert "\n" not in str(caught.value)


def test_the_gated_text_encoder_has_an_open_copy(hub: Hub) -> None:
    hub.failure = answer(403, "GatedRepo")
    with pytest.raises(WeightsError, match="open copy Efficient-Large-Model/gemma-2-2b-it"):
        locate("google/gemma-2-2b-it")


@pytest.mark.parametrize("name", ["a--b/c", "owner/name.git", "owner/a..b"])
def test_what_can_be_no_hub_id_is_said(name: str) -> None:
    with pytest.raises(WeightsError, match="no hub id"):
        locate(name)


def test_a_published_name_gets_its_owner() -> None:
    for name in ("Sana_1600M_1024px", "sana_1600m_1024px_diffusers", "Sana_1600M_1024p"):
        with pytest.raises(WeightsError, match="'Efficient-Large-Model/Sana_1600M_1024px_diffu"):
            locate(name)
    with pytest.raises(WeightsError, match=r"'mit-han-lab/dc-ae-f32c32-sana-1\.1-diffusers'"):
        locate("dc-ae-f32c32-sana-1.1")
    with pytest.raises(WeightsError, match="no model 'something'; give a folder"):
        locate("something")


def test_a_wrong_owner_or_layout_is_put_right(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.failure = answer(404, "RepoNotFound")
    with pytest.raises(WeightsError, match="'Efficient-Large-Model/Sana_600M_512px_diffusers'"):
        locate("nvidia/Sana_600M_512px_diffusers")
    pickles = ["README.md", "checkpoints/Sana_600M_512px_MultiLing.pth"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: pickles)
    with pytest.raises(WeightsError, match="try Efficient-Large-Model/Sana_600M_512px_diffusers"):
        locate("Efficient-Large-Model/Sana_600M_512px")


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store after a real download of the needed files of REPOSITORY, and no network."""
    store = tmp_path / "models--someone--a-model"
    commit = "0" * 39 + "1"
    folder = store / "snapshots" / commit
    for file in needed_files(REPOSITORY, None):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(commit)
    entries = {file: {"size": 1, "blob_id": "0" * 40} for file in REPOSITORY}
    tree = store / "trees" / f"{commit}.json"
    tree.parent.mkdir()
    tree.write_text(json.dumps({"format_version": 1, "files": entries}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def test_offline_an_earlier_download_is_found(fetched: Path) -> None:
    """Though huggingface_hub misses the pictures and pickles that were never wanted."""
    with pytest.raises(errors.LocalEntryNotFoundError, match="incomplete"):
        huggingface_hub.snapshot_download("someone/a-model", local_files_only=True)
    assert locate("someone/a-model") == fetched
    assert is_here("someone/a-model")
    assert not is_here("someone/another")
    with pytest.raises(WeightsError, match="not on this machine"):
        locate("someone/another")
