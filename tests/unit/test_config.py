"""Settings: files, then the command line; every mistake is one line that names the key."""

from __future__ import annotations

import importlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from pydantic import BaseModel

from archipelago.pipeline import config, handbook
from archipelago.pipeline.benchmark.presets import PRESETS
from archipelago.pipeline.config import flatten, load, redacted, validate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifiers import identifiers
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams.registry import PROTOCOL

REQUIRED = {
    "stream": {
        name: ["stream.root=/data"]
        for name in ("parquet", "folder", "pascal", "torchvision", *PRESETS)
    },
    "backbone": {
        "local-dir": ["backbone.name=local-dir:/models/clip"],
        "hf-hub": ["backbone.name=hf-hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K"],
    },
}
FREE = {"options", "descriptions"}  # sections without fixed keys
OPTIONS = [(group, name) for group in config.known_groups() for name in handbook.options(group)]


def composed(group: str, option: str) -> dict[str, Any]:
    """What a file of `conf/` gives, with what it inherits from files of its own group."""
    given = yaml.safe_load((handbook.CONF / group / f"{option}.yaml").read_text())
    bases = [base for base in given.pop("defaults", []) if isinstance(base, str)]
    values = [given if base == "_self_" else composed(group, base) for base in bases or ["_self_"]]
    return OmegaConf.to_container(OmegaConf.merge(*values))  # type: ignore[return-value]


def refusal(*overrides: str) -> str:
    """The one line with which `overrides` are refused."""
    with pytest.raises(UserError) as caught:
        load(list(overrides))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_the_documented_command_line() -> None:
    settings = load(
        [
            "stream=parquet",
            "stream.root=/data/domains",
            "stream.order=[a,b,c]",
            "method=trge",
            "identifier=prototype",
            "run_dir=/data/run",
            "seed=0",
            "training.steps=10",
            "experts.rank=8",
            "evaluation.references=[finetune,lora_per_task]",
        ]
    )
    assert settings.stream.reader == "parquet"
    assert settings.stream.order == ["a", "b", "c"]
    assert (settings.training.steps, settings.experts.rank) == (10, 8)
    assert settings.evaluation.references == ["finetune", "lora_per_task"]


def test_defaults_are_those_of_the_settings() -> None:
    """One truth: what `conf/` says by default is what the typed settings say."""
    from_files = flatten(load(["method=trge"]))
    bare = Settings.model_validate(
        {
            "stream": {"reader": "rendered", "options": {"set": "atlas"} | PROTOCOL},
            "backbone": {"name": "clip-tiny"},
            "method": {"name": "trge"},
            "identifier": {"name": "prototype"},
        }
    )
    assert from_files == flatten(bare)
    options = load().method.options
    assert method_class("archipelago").Options().model_dump() == options


def test_a_method_may_bring_its_experts() -> None:
    ours = load(["method=trge_ase"]).experts
    assert (ours.count, ours.active, ours.shared_count, ours.rank) == (16, 3, 1, 4)
    assert ours.shared == "adaptive"
    plain = load(["method=trge_ase", "experts.preset=fine", "experts.shared=none"]).experts
    assert (plain.count, plain.active, plain.shared_count, plain.rank) == (64, 16, 0, 1)
    assert load(["method=trge_ase", "experts=default"]).experts == load([]).experts
    assert "rank=8 contradicts preset=coarse" in refusal("method=trge_ase", "experts.rank=8")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_gives_every_value_of_its_section(group: str, option: str) -> None:
    """Nothing is hidden: a file of `conf/` shows each value that can be changed there."""
    given = composed(group, option)
    section = Settings.model_fields[group].annotation
    if group == "identifier":
        section = identifiers.get(option).Settings

    def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= keys(inner, f"{prefix}{name}.")
            elif name not in FREE:
                found.add(prefix + name)
        return found

    assert isinstance(section, type)
    shown = {k for k in flatten(given) if not k.startswith("options.") and k not in FREE}
    assert all(given[name] == {} for name in FREE & set(given) - {"options"})
    assert shown == keys(section)


@pytest.mark.parametrize("name", ["folder", "hf", "parquet", "pascal", "scenes", "torchvision"])
def test_a_reader_s_options_are_those_of_its_file(name: str) -> None:
    module = importlib.import_module(f"archipelago.pipeline.streams.readers.{name}")
    given = composed("stream", name)
    dense = name in ("pascal", "scenes")
    assert given["options"] == module.OPTIONS | ({} if dense else PROTOCOL)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stepz=1", ["training.stepz: unknown key", "did you mean training.steps?"]),
        ("trainng.steps=1", ["trainng.steps: unknown key", "did you mean training.steps?"]),
        ("steps=1", ["steps: unknown key", "did you mean training.steps?"]),
        ("+training.stepz=1", ["training.stepz: unknown key"]),
        ("experts.zzz=1", ["experts.zzz: unknown key", "experts has preset, count, rank"]),
        ("zzz=1", ["zzz: unknown key", "run_dir, seed, stream"]),
        ("training.steps.x=1", ["training.steps.x: unknown key"]),
        ("experts.shared=naive", ["experts: shared=naive needs a preset or shared_count"]),
        (
            "method.neighbours={cont: 3}",
            ["neighbours.cont: unknown key", "neighbours.count?"],
        ),
        ("hydra.run.dir=x", ["hydra.run.dir: unknown key"]),
        (
            "stream=parqet",
            ["stream=parqet: unknown", "atlas, cil-cifar100", "did you mean parquet?"],
        ),
        ("training=fast", ["training=fast: unknown", "choose one of default"]),
        ("method={name: trge}", ["method=", "choose one of archipelago, ase"]),
        ("cluster=local@x", ["cluster=local@x"]),
        ("training.steps=abc", ["training.steps=abc: expected a whole number"]),
        ("training.steps=1.5", ["training.steps=1.5: expected a whole number"]),
        ("training.steps='3'", ['training.steps="3": expected a whole number']),
        ("training.steps=true", ["training.steps=true: expected a whole number"]),
        ("training.steps=null", ["training.steps=null: expected a whole number"]),
        ("training.steps=", ['training.steps="": expected a whole number']),
        ("training.steps=0", ["training.steps=0: expected more than 0"]),
        ("training.flip=1", ["training.flip=1: expected true or false"]),
        ("training.crop=[0.5]", ["training.crop.1: expected a value"]),
        ("training.crop=0.5", ["training.crop=0.5: expected a list"]),
        ("training.learning_rate=fast", ["training.learning_rate=fast: expected a number"]),
        ("training.learning_rate=nan", ["training.learning_rate=nan: expected a finite number"]),
        ("experts.scale=inf", ["experts.scale=inf: expected a finite number"]),
        ("experts.first_block=hlf", ["experts.first_block=hlf", "a whole number or 'half'"]),
        ("experts.text=true", ["experts.text=true: expected 'on' or 'off'"]),
        ("method.unseen.acceptance=2", ["method.unseen.acceptance: unknown key"]),
        ("identifier.signature=mean", ["identifier.signature: unknown key"]),
        ("identifier.drver=vllm", ["identifier.drver: unknown", "did you mean identifier.driver?"]),
        (
            "identifier.driver=vllm",
            ["identifier.driver belongs to identifier=cascade or mllm, and this is", "=prototype"],
        ),
        ("identifier.descriptions.pets=x", ["identifier.descriptions belongs to identifier="]),
        ("identifier.name=mlm", ["identifier.name=mlm: unknown", "did you mean mllm?"]),
        ("identifier.evidence=K", ["identifier.evidence=K: expected 'both', 'E', 'J'"]),
        ("serving.abstain=1", ["serving.abstain=1: expected less than 1"]),
        ("method.neighbours=3", ["method.neighbours=3: expected a section"]),
        ("stream.order=a", ["stream.order=a: expected a list"]),
        ("stream.order=[1]", ["stream.order.0=1: expected text"]),
        ("run_dir=5", ["run_dir=5: expected text"]),
        ("training.steps=1,2", ["a run takes one value for training.steps"]),
        ("~tracking", ["~tracking", "tracking=value"]),
        ("training", ["'training': not understood; write key=value"]),
        ("run_dir=a (1)&b", ["not understood", "quote"]),
        ("=3", ["'=3'", "key=value"]),
        ("", ["''", "key=value"]),
        ("--help", ["'--help'", "key=value"]),
        ("run_dir=${nope}", ["run_dir: ", "nope"]),
        ("stream=parquet", ["stream.root: must be given, as stream.root=..."]),
        ("backbone=local-dir", ["backbone.name: must be given"]),
    ],
)
def test_mistakes_are_refused_by_name(override: str, words: list[str]) -> None:
    message = refusal(override)
    for word in words:
        assert word in message


def test_two_wrong_values_are_both_named() -> None:
    message = refusal("experts.text=maybe", "seed=-1")
    assert "seed=-1: expected at least 0" in message
    assert "experts.text=maybe: expected 'on' or 'off'" in message


def test_a_wrong_value_is_not_printed_at_length() -> None:
    assert len(refusal("training.steps=" + "x" * 500)) < 200


def test_the_last_override_wins_and_values_beat_files() -> None:
    assert load(["training.steps=5", "training.steps=6"]).training.steps == 6
    # A value stays when a group is chosen after it: files first, then the command line.
    settings = load(["identifier.evidence=J", "identifier=oracle"])
    assert (settings.identifier.name, settings.identifier.evidence) == ("oracle", "J")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("stream.options.split=0.2", "stream.options.split", 0.2),
        ("+stream.options.split=0.2", "stream.options.split", 0.2),
        ("method.options.a.b=x", "method.options.a.b", "x"),
        ("training.learning_rate=1", "training.learning_rate", 1.0),
        ("training.learning_rate=1e-3", "training.learning_rate", 0.001),
        ("training.crop=[0.5,0.9]", "training.crop", [0.5, 0.9]),
        ("experts.first_block=3", "experts.first_block", 3),
        ("experts.text=off", "experts.text", "off"),
        ("method.unseen.lambda_max=0.5", "method.unseen.lambda_max", 0.5),
        ("run_dir=s3://bucket/runs/a", "run_dir", "s3://bucket/runs/a"),
        ("run_dir=/a folder/run", "run_dir", "/a folder/run"),
        ("tracking=off", "tracking.enabled", False),
        ("tracking.uri=postgresql://u:p@h:5432/db", "tracking.uri", "postgresql://u:p@h:5432/db"),
        ("method.neighbours={count: 3}", "method.neighbours.count", 3),
    ],
)
def test_values_arrive_as_meant(override: str, key: str, value: Any) -> None:
    assert flatten(load([override]))[key] == value


def test_no_global_state_stays_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = (Path.cwd(), dict(os.environ))
    load()
    refusal("run_dir=${nope}")
    assert not GlobalHydra.instance().is_initialized()
    assert (Path.cwd(), dict(os.environ)) == before
    assert list(tmp_path.iterdir()) == []


def test_threads_do_not_disturb_each_other() -> None:
    results: dict[int, int] = {}

    def run(steps: int) -> None:
        results[steps] = load([f"training.steps={steps}"]).training.steps

    threads = [threading.Thread(target=run, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: n for n in range(1, 5)}


def test_flatten_names_leaves_by_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [1, 2],
        "e": None,
    }


def test_what_is_stored_validates_to_the_same_settings() -> None:
    settings = load(["training.crop=[0.5,0.9]", "stream.order=[a,b]"])
    stored = json.loads(json.dumps(redacted(settings)))
    assert validate(stored) == settings


def test_unknown_keys_of_stored_settings_are_named() -> None:
    stored = redacted(load())
    stored["training"]["stepz"] = 3
    with pytest.raises(UserError, match=r"training\.stepz: unknown key; did you mean"):
        validate(stored)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("postgresql://me:hunter2@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:hun@ter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun/ter2@host/db", "postgresql://me:***@host/db"),
        ("s3://key:hunter2@bucket/runs", "s3://key:***@bucket/runs"),
        ("https://hunter2@host/mlflow", "https://***@host/mlflow"),
        ("https://host/x?api_key=hunter2&a=1", "https://host/x?api_key=***&a=1"),
        ("http://host:5000", "http://host:5000"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("/plain/path@1:2", "/plain/path@1:2"),
    ],
)
def test_secrets_in_addresses_are_hidden(given: str, stored: str) -> None:
    settings = load([f'tracking.uri="{given}"'])
    assert settings.tracking.uri == given
    assert redacted(settings)["tracking"]["uri"] == stored


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "api_key", "secretKey", "password", "PASSWD", "access-key"]
)
def test_values_of_secret_keys_are_hidden(key: str) -> None:
    settings = load(["stream=hf", f"stream.options.{key}=hunter2", "stream.options.inner.a=seen"])
    assert redacted(settings)["stream"]["options"][key] == "***"
    assert "hunter2" not in json.dumps(redacted(settings))
    assert redacted(settings)["stream"]["options"]["inner"]["a"] == "seen"


def test_secrets_in_lists_are_hidden() -> None:
    assert redacted({"uris": ["s3://a:b@c"], "tokens": ["x"], "n": 3}) == {
        "uris": ["s3://a:***@c"],
        "tokens": ["***"],
        "n": 3,
    }


def test_comments_state_trade_offs() -> None:
    """Most values of the default files explain themselves on their line."""
    for group in config.known_groups():
        for file in (handbook.CONF / group).glob("*.yaml"):
            text = file.read_text()
            assert text.startswith("# "), f"{group}/{file.name} has no heading"
            assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["training.crop=[0.9,0.2]"], "crop"),
        (["training.crop=[-1,2]"], "crop"),
        (["training.crop=[nan,1.0]"], "training.crop=nan"),
        (["stream.options.x=[1,[inf]]"], "stream.options.x=inf"),
        (["method.unseen.lambda_max=5"], "method.unseen.lambda_max=5"),
        (["method.unseen.lambda_max=-1"], "method.unseen.lambda_max=-1"),
        (["experts.count=2", "experts.active=5"], "active=5"),
        (["training.learning_rate=1e300"], "training.learning_rate=1e"),
        (["experts.scale=1e300"], "experts.scale=1e"),
        (["seed=4294967296"], "seed=4294967296"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(words: list[str], key: str) -> None:
    with pytest.raises(UserError) as caught:
        load(words)
    assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["s3://key:s%2Fe@b/a%20b?endpoint_override=127.0.0.1:9&scheme=http", "http://h/?a=b"]
)
def test_addresses_need_no_quotes(address: str) -> None:
    assert load([f"run_dir={address}"]).run_dir == address
