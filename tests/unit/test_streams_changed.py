"""Checks between decoding and learning: changed data, few images, prompts that read the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from archipelago.actors.preflight import check_data
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.fitting import task_record
from archipelago.pipeline.model.tokens import tokenizer_of
from archipelago.pipeline.settings import BackboneSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import Domain, PreparedDomain
from archipelago.pipeline.streams.changed import check_unchanged
from archipelago.pipeline.streams.coverage import check_coverage
from archipelago.pipeline.streams.prompts import check_prompts, same_prompts
from tests.helpers import parquet_domain, png
from tests.unit.test_streams_cache import listed, prepare
from tests.unit.test_streams_readers import facts, stream

TOKENS = tokenizer_of(BackboneSettings(name="clip-tiny"))


def prepared(root: Path) -> list[PreparedDomain]:
    return prepare(stream(root / "data"), root)


def card(*domains: PreparedDomain) -> dict[str, Any]:
    """What a stage's task.json says of its data."""
    return {"name": domains[0].name, "tasks": [task_record(d).card() for d in domains]}


def test_data_as_it_was_learned_is_taken(tmp_path: Path) -> None:
    parquet_domain(tmp_path / "data", "flowers")
    parquet_domain(tmp_path / "data", "tools")
    before = prepared(tmp_path)
    check_unchanged([card(before[0])], prepared(tmp_path), "/run")
    check_unchanged([card(*before)], prepared(tmp_path), "/run")
    check_unchanged([card(before[0])], prepared(tmp_path)[1:], "/run")  # not in this stream


def test_data_that_changed_since_is_refused_by_name(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path / "data", "flowers")
    parquet_domain(tmp_path / "data", "tools")
    before = prepared(tmp_path)
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.slice(0, 30), folder / "train.parquet")
    facts(folder, splits=None)
    for cards in ([card(each) for each in before], [card(*before)]):
        with pytest.raises(UserError, match=r"flowers: its train images are others, 36 and now 30"):
            check_unchanged(cards, prepared(tmp_path), "/my run")
    with pytest.raises(UserError, match=r"jobs/forget\.py 'run_dir=/my run' task=flowers"):
        check_unchanged([card(before[0])], prepared(tmp_path), "/my run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["aster", "flowers 0", "flowers 1", "flowers 2"]}, "class 'aster' was added"),
        ({"classes": ["flowers 1", "flowers 0", "flowers 2"]}, "in another order"),
        ({"classes": ["flowers 0", "flowers 1", "lily"]}, "'lily' was added, class 'flowers 2' is"),
        ({"templates": ["a drawing of a {}."]}, "its templates are others"),
    ],
)
def test_another_class_list_is_told(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = parquet_domain(tmp_path / "data", "flowers")
    (before,) = prepared(tmp_path)
    facts(folder, **changes)
    with pytest.raises(UserError, match=rf"flowers: .*{words}"):
        check_unchanged([card(before)], prepared(tmp_path), "/run")


def test_a_run_is_asked_before_it_learns(tmp_path: Path) -> None:
    """`check_data` reads the cards of the stages that are done."""
    folder = parquet_domain(tmp_path / "data", "flowers")
    domains = prepared(tmp_path)
    run = RunFolder(tmp_path / "run")
    told = json.dumps({**card(*domains), "schema": 2, "neighbours": []}).encode()
    files = {"group.safetensors": b"x", "task.json": told}
    settings = load(["method=trge"])
    with run.lock():
        ref = run.groups.write(0, "flowers", files)
        run.journal.append("stage-done", stage=0, task="flowers", sha256=ref.sha256)
        check_data(run, settings, domains, reference=False)
        facts(folder, templates=["{}!"])
        with pytest.raises(UserError, match="flowers: its templates are others"):
            check_data(run, settings, prepared(tmp_path), reference=False)
        run.journal.append("forgotten", stage=0, task="flowers")
        check_data(run, settings, prepared(tmp_path), reference=False)


def test_one_image_a_class_is_refused_where_some_are_held_out(tmp_path: Path, caplog: Any) -> None:
    parquet_domain(tmp_path / "data", "one", classes=8, train=1)
    parquet_domain(tmp_path / "data", "two", classes=8, train=2)
    one, two = prepared(tmp_path)
    with pytest.raises(UserError, match="one: 8 training images, one a class at most, leave none"):
        check_coverage([one], 0.1, 0, holds_out=True)
    check_coverage([one, two], 0.1, 0, holds_out=False)
    check_coverage([two], 0.1, 0, holds_out=True)
    assert "no usable training image" not in caplog.text
    (lacking,) = prepare([listed([png((1, 2, 3))] * 3, [0] * 3)], tmp_path / "listed")
    check_coverage([lacking], 0.1, 0, holds_out=True)
    assert "no usable training image of 'y'; 3 test" not in caplog.text
    assert "listed: no usable training image of 'y': nothing is learned about it" in caplog.text


def named(*classes: str, templates: tuple[str, ...] = ("a photo of a {}.",)) -> Domain:
    domain = listed([png((1, 2, 3))], [0])
    return dataclasses.replace(domain, classes=classes, templates=templates)


LONG = "a well preserved specimen of " + " and ".join(f"feature number {i}" for i in range(12))


def test_a_class_list_that_reads_the_same_is_refused() -> None:
    halls = [f"{LONG} from the {side} hall" for side in ("east", "north", "south")]
    with pytest.raises(UserError, match=r"listed: .* \(cut at 32 tokens\): .*east hall.* = "):
        check_prompts([named(*halls)], TOKENS)
    with pytest.raises(UserError, match=r"\(it knows no case\): 'Polish' = 'polish'"):
        check_prompts([named("Polish", "polish")], TOKENS)


def test_pairs_that_read_the_same_are_told(caplog: Any) -> None:
    check_prompts([named("Polish", "polish", "TURKEY", "Turkey", "crane")], TOKENS)
    assert "'Polish' = 'polish'; 'TURKEY' = 'Turkey'" in caplog.text and "crane" not in caplog.text
    caplog.clear()
    check_prompts([named("a  b", "a &amp; b", "a & b", "c")], TOKENS)
    assert "'a &amp; b' = 'a & b'" in caplog.text
    caplog.clear()
    check_prompts([named("cat", "dog", "cats")], TOKENS)
    assert not caplog.text


def test_one_template_that_tells_apart_is_enough() -> None:
    halls = [f"{side} {LONG}" for side in ("east", "north")]
    assert same_prompts(halls, [LONG + " {}"], TOKENS) == [[0, 1]]
    assert same_prompts(halls, [LONG + " {}", "{}"], TOKENS) == []
