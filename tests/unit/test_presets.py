"""Protocols of the literature on tiny stand-ins of the same layout."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from archipelago.pipeline.benchmark.presets import (
    PRESETS,
    SETS,
    check_sets,
    deviations,
    name_deviations,
)
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams import open_stream
from tests.helpers import parquet_domain

ORDER_II = [
    "stanfordcars",
    "food",
    "mnist",
    "oxfordpet",
    "flowers",
    "sun397",
    "aircraft",
    "caltech101",
    "dtd",
    "eurosat",
    "cifar100",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven sets with the protocol's templates and, of CIFAR100, its number of classes."""
    root = tmp_path_factory.mktemp("mtil")
    for name, (_, template) in SETS.items():
        classes = 100 if name == "cifar100" else 3
        folder = parquet_domain(root, name, classes=classes, train=18, test=1, size=8)
        about = json.loads((folder / "domain.json").read_text())
        (folder / "domain.json").write_text(json.dumps(about | {"templates": [template]}))
    return root


def _stream(preset: str, root: Path, *words: str) -> StreamSettings:
    return load([f"stream={preset}", f"stream.root={root}", *words]).stream


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_opens_its_sets_in_its_order(preset: str, root: Path) -> None:
    settings = _stream(preset, root)
    check_sets(preset, settings, 0)
    domains = open_stream(settings, 0)
    names = [domain.name for domain in domains]
    wanted = {
        "mtil": list(SETS),
        "mtil-ii": ORDER_II,
        "mtil-5shot": list(SETS),
        "xtail": [name for name in SETS if name != "cifar100"],
        "cil-cifar100": [f"cifar100-{step:02d}" for step in range(1, 11)],
    }
    assert names == wanted[preset]
    shots = {"mtil-5shot": 5, "xtail": 16}.get(preset)
    assert settings.options["shots"] == shots
    if preset == "cil-cifar100":
        assert {len(domain.classes) for domain in domains} == {10}


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_steps_of_cifar100(root: Path, steps: int) -> None:
    domains = open_stream(_stream("cil-cifar100", root, f"stream.options.steps={steps}"), 0)
    assert len(domains) == steps and {len(d.classes) for d in domains} == {100 // steps}
    assert len({name for domain in domains for name in domain.classes}) == 100


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    for name in SETS:
        if name not in ("dtd", "mnist"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "domain.json").write_text("{}")
            (tmp_path / name / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"^stream=mtil: .* lacks dtd, mnist; each is a folder"):
        check_sets("mtil", _stream("mtil", tmp_path), 0)


def test_what_is_not_the_protocol_s_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    domains = {domain.name: domain for domain in open_stream(_stream("mtil", root), 0)}
    assert deviations(domains["cifar100"]) == []
    assert deviations(domains["dtd"]) == ["3 classes, not 47"]
    with caplog.at_level(logging.WARNING, logger="archipelago"):
        name_deviations("mtil", [domains["dtd"], domains["cifar100"]])
    assert [record.getMessage() for record in caplog.records] == [
        "stream=mtil: dtd has 3 classes, not 47"
    ]


def test_training_at_full_scale() -> None:
    whole, few = load(["training=mtil"]).training, load(["training=few-shot"]).training
    assert (whole.steps, whole.batch_size, whole.warmup, whole.crop) == (1000, 64, 100, (0.9, 1.0))
    assert whole.label_smoothing == 0.2 and not whole.flip and whole.weight_decay == 0.0
    assert few == whole.model_copy(update={"steps": 500})
