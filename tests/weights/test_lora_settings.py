"""peft's settings of a LoRA: patterns as peft reads them, and nothing that merging ignores."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from opensana.errors import WeightsError
from opensana.weights import lora_settings
from opensana.weights.lora import FILE, METADATA, merge_lora, read_lora
from opensana.weights.lora_settings import Patterns, read_settings
from tests import tiny
from tests.weights.test_lora import TARGETS, reference, shaken, velocity

LAYER = "transformer_blocks.0.attn1.to_q"
LAYERS = [name for name, module in tiny.transformer().named_modules() if hasattr(module, "weight")]


def lora(folder: Path, *, layer: str = LAYER, rank: int = 4, **settings: Any) -> Path:
    """A LoRA of one layer of 16 inputs and outputs, with peft's settings in its header."""
    state = {
        f"transformer.{layer}.lora_A.weight": torch.ones(rank, 16),
        f"transformer.{layer}.lora_B.weight": torch.ones(16, rank),
    }
    header = {METADATA: json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    save_file(state, folder / FILE, metadata=header)
    return folder


def strength(folder: Path, **settings: Any) -> float:
    [change] = read_lora(lora(folder, **{"r": 4, "lora_alpha": 2, **settings})).layers.values()
    return change.strength


# ------------------------------------------------------------------ patterns


@pytest.mark.parametrize(
    "pattern",
    [
        r"transformer_blocks\.0\.attn1\.to_q",
        ".*attn1.*",
        "to_q|to_k",
        r"^transformer_blocks\.\d+\.attn1\.to_q",
        "attn1.to_q",
        r"attn[12]\.to_[qk]",
        r"(?!.*attn2).*to_q",
        LAYER,
    ],
)
def test_patterns_are_regular_expressions(tmp_path: Path, pattern: str):
    assert strength(tmp_path) == 0.5
    assert strength(tmp_path, alpha_pattern={pattern: 16}) == 4.0
    assert strength(tmp_path, r=8, rank_pattern={pattern: 4}) == 0.5
    rslora = strength(tmp_path, r=8, rank_pattern={pattern: 4}, use_rslora=True)
    assert rslora == 1.0


@pytest.mark.parametrize(
    "pattern", ["o_q", "attn1", "^to_q", "^attn1.to_q", "to_Q", r"attn2\.to_q", "", "to_q|", "to_k"]
)
def test_a_part_of_a_name_is_no_match(tmp_path: Path, pattern: str):
    if pattern == "to_q|":  # an alternative that is empty does not undo the other
        assert strength(tmp_path, alpha_pattern={pattern: 16}) == 4.0
        return
    assert strength(tmp_path, alpha_pattern={pattern: 16}) == 0.5


def test_the_first_pattern_counts(tmp_path: Path):
    assert strength(tmp_path, alpha_pattern={"to_q": 8, ".*": 16}) == 2.0
    assert strength(tmp_path, alpha_pattern={".*": 16, "to_q": 8}) == 4.0


def test_patterns_are_read_as_peft_does():
    tables = [
        {"to_q|to_k": 1, r".*\.(attn1|attn2)\.to_out\.0": 2, "proj_out": 3},
        {r"^proj_out": 1, r"^transformer_blocks\.[0-9]+\.ff.*": 2, r"\w+\.1\.\S+": 3},
        {"": 1, ".": 2, "[^.]+": 3},
        {r"(?:transformer_blocks\.)?1\.attn1\.to_v": 1, r"time_embed\..*": 2, r"(?=.*v$).*": 3},
        {"to_out.0": 1, "to_out": 2, r"to_out\.\d{1,2}": 3, "linear_(1|2)": 4},
        {"patch_embed.proj": 1, "a+b": 2, r"proj$|conv_\w*": 3},
        {name: place for place, name in enumerate(LAYERS)},
    ]
    for table in tables:
        patterns = Patterns(table, where="here")
        for name in [*LAYERS, "a+b", "to_q", "x.to_q"]:
            expected = table.get(get_pattern_key(list(table), name))
            assert patterns.find(name) == expected, (table, name)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("to_q(", "'to_q\\(' is no regular expression"),
        ("(?i)TO_Q", "is no regular expression"),  # peft puts it in the middle: an error there too
        (r"\p{L}+", "is no regular expression"),
        ("(?:to_q){e<=1}", "is no regular expression"),
        ("[[:alpha:]]+", "is no regular expression"),
        ("(" * 500 + ")" * 500, "is no regular expression"),
        ("a{99999999999}", "alpha_pattern is too large"),
        ("(((a{100}){100}){100}){100}", "alpha_pattern is too large"),
        ("((.|.)+)+attn1", "takes too long to match"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
):
    monkeypatch.setattr(lora_settings, "PATTERN_SECONDS", 0.05)
    with pytest.raises(WeightsError, match=message) as caught:
        strength(tmp_path, alpha_pattern={pattern: 16})
    assert FILE in str(caught.value)


def test_a_rank_that_the_matrices_do_not_have_is_refused(tmp_path: Path):
    for settings in ({"r": 8}, {"r": 4, "rank_pattern": {".*to_q": 2}}):
        with pytest.raises(WeightsError, match=r"settings have rank \d .*the matrices have 4"):
            strength(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_pattern": {"to_q": "16"}}, "must be finite numbers"),
        ({"alpha_pattern": {"to_q": True}}, "must be finite numbers"),
        ({"alpha_pattern": {"to_k": float("inf")}}, "must be finite numbers"),
        ({"lora_alpha": None}, "must be finite numbers"),
        ({"r": 4.0}, "must be whole numbers"),
        ({"r": 0}, "must be whole numbers"),
        ({"rank_pattern": {"to_q": -1}}, "must be whole numbers"),
        ({"rank_pattern": ["to_q"]}, "must be whole numbers"),
    ],
)
def test_numbers_are_checked(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(WeightsError, match=message):
        strength(tmp_path, **settings)


# ------------------------------------------------------------------ the allow-list


def test_the_defaults_of_peft_are_honoured():
    config = LoraConfig(target_modules=["to_q"]).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    assert read_settings(json.loads(json.dumps(config)), where="here").alpha == 8


def test_whatever_peft_adds_is_switched_off_or_refused():
    known = {*lora_settings.WITHOUT_EFFECT, *lora_settings.STRENGTH, *lora_settings.HONOURED}
    others = {field.name for field in fields(LoraConfig)} - known
    assert {"use_dora", "lora_bias", "layer_replication", "modules_to_save"} < others
    for name in [*others, "a_field_of_next_year"]:
        read_settings({name: None}, where="here")
        for value in (True, 1, 0, "x", ["proj_out"], {"a": 1}):
            with pytest.raises(WeightsError, match=f"here was trained with {name} = "):
                read_settings({name: value}, where="here")


@pytest.mark.parametrize(
    "start",
    ["pissa", "pissa_niter_4", "PiSSA", "olora", "corda", "loftq", "lora_ga", "x", 1, ["gaussian"]],
)
def test_a_start_that_changes_the_weights_is_refused(tmp_path: Path, start: Any):
    with pytest.raises(WeightsError, match=r"trained with init_lora_weights = .*plain LoRA"):
        strength(tmp_path, init_lora_weights=start)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "LOHA"},
        {"peft_type": "ADALORA"},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"use_rslora": "yes"},
        {"use_rslora": 1},
        {"fan_in_fan_out": True},
        {"modules_to_save": ["proj_out"]},
        {"target_parameters": ["scale_shift_table"]},
        {"megatron_config": {"a": 1}},
        {"velora_config": {"rank": 1}},
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, settings: dict[str, Any]):
    [name] = settings
    with pytest.raises(WeightsError, match=f"was trained with {name} = ") as caught:
        strength(tmp_path, **settings)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ the same numbers as peft


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "eva", "eva_config": EvaConfig()},
        {"use_rslora": True, "rank_pattern": {"attn2.*": 2}, "alpha_pattern": {r"to_[qv]": 3}},
        {"alpha_pattern": {r"^transformer_blocks\.0\..*": 16, ".*": 1}, "lora_dropout": 0.5},
        {"rank_pattern": {r"transformer_blocks\.1\.attn1\.(to_q|to_k)": 6}, "inference_mode": True},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.filterwarnings("ignore:lora with eva initialization")
def test_a_folder_of_peft_is_merged_as_peft_merges(tmp_path: Path, settings: dict[str, Any]):
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = LoraConfig(**{"r": 4, "lora_alpha": 2, "target_modules": targets} | settings)
    try:
        model = get_peft_model(reference(tiny.transformer()), config)
    except ValueError as error:
        pytest.skip(f"this peft is older than the setting: {error}")
    shaken(model)
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_config.json").is_file()
    # Read back, since peft sorts the patterns when it writes them, and the first one counts.
    theirs = velocity(PeftModel.from_pretrained(reference(tiny.transformer()), tmp_path))
    ours = tiny.transformer()
    merge_lora(ours, read_lora(tmp_path))
    torch.testing.assert_close(velocity(ours), theirs, atol=1e-5, rtol=1e-5)
    assert (theirs - velocity(tiny.transformer())).abs().max() > 1e-3


def test_settings_without_alpha_have_that_of_peft(tmp_path: Path):
    config = {"peft_type": "LORA", "r": 4, "target_modules": list(TARGETS)}
    model = get_peft_model(reference(tiny.transformer()), LoraConfig(**config))
    shaken(model)
    state = {
        f"transformer.{key.removeprefix('base_model.model.')}": value.contiguous()
        for key, value in get_peft_model_state_dict(model).items()
    }
    header = {METADATA: json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    save_file(state, tmp_path / FILE, metadata=header)
    ours = tiny.transformer()
    merge_lora(ours, read_lora(tmp_path))
    theirs = velocity(model.merge_and_unload())
    torch.testing.assert_close(velocity(ours), theirs, atol=1e-5, rtol=1e-5)
