from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archipelago.pipeline.errors import LockedError
from archipelago.pipeline.store import Folder, Journal

EVENTS = st.sampled_from(["run-started", "stage-done", "evaluated", "stopped"])


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(EVENTS, st.dictionaries(st.sampled_from("abc"), st.integers()), st.booleans()),
        max_size=12,
    )
)
def test_events_keep_their_order_through_any_reopening(steps: list) -> None:
    with tempfile.TemporaryDirectory() as place:
        journal = Journal(Folder(place))
        for expected, (event, payload, reopen) in enumerate(steps, start=1):
            if reopen:
                journal = Journal(Folder(place))
            assert journal.append(event, **payload) == expected
        for reader in (journal, Journal(Folder(place))):
            events = reader.events()
            assert [event["number"] for event in events] == list(range(1, len(steps) + 1))
            found = [
                (event["event"], {key: event[key] for key in event if key in "abc"})
                for event in events
            ]
            assert found == [(event, payload) for event, payload, _ in steps]


def test_file_names_and_payload(tmp_path: Path) -> None:
    journal = Journal(Folder(str(tmp_path)))
    journal.append("run-started", pid=3, host="a")
    journal.append("stage-done", stage=1, sha256="x", seconds={"train": 1.5, "lost": float("nan")})
    assert Folder(str(tmp_path)).list() == ["000001-run-started.json", "000002-stage-done.json"]
    last = journal.last("stage-done")
    assert last is not None and last["seconds"] == {"train": 1.5, "lost": None}
    assert last["time"].endswith("+00:00")


def test_last_matches_payload(tmp_path: Path) -> None:
    journal = Journal(Folder(str(tmp_path)))
    for stage, sha in ((0, "a"), (1, "b"), (0, "c")):
        journal.append("stage-done", stage=stage, sha256=sha)
    journal.append("evaluated", stage=0)
    assert journal.last("stage-done", stage=0)["sha256"] == "c"
    assert journal.last("stage-done", stage=1, sha256="b")["number"] == 2
    assert journal.last("stage-done", stage=2) is None
    assert journal.last("stage-done", missing=None) is None
    assert journal.last("run-done") is None


def test_a_torn_event_is_skipped_and_its_number_is_not_reused(tmp_path: Path) -> None:
    journal = Journal(Folder(str(tmp_path)))
    journal.append("run-started")
    (tmp_path / "000002-stage-done.json").write_bytes(b'{"number": 2, "event": "stage-d')
    (tmp_path / "000003-stage-done.json").write_bytes(b'{"number": 9, "event": "stage-done"}')
    (tmp_path / "notes.txt").write_bytes(b"not ours")
    assert journal.append("stopped", reason="x") == 4
    assert [event["number"] for event in Journal(Folder(str(tmp_path))).events()] == [1, 4]


def test_events_are_copies(tmp_path: Path) -> None:
    journal = Journal(Folder(str(tmp_path)))
    journal.append("prepared", counts={"train": 1})
    journal.events()[0]["counts"]["train"] = 2
    assert journal.events()[0]["counts"] == {"train": 1}


@pytest.mark.parametrize("event", ["", "Stage-Done", "stage_done", "a--b", "../x", "a b", "-a"])
def test_event_names_are_checked(tmp_path: Path, event: str) -> None:
    with pytest.raises(ValueError, match="hyphens"):
        Journal(Folder(str(tmp_path))).append(event)


def test_own_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number, time"):
        Journal(Folder(str(tmp_path))).append("stopped", time=1, number=2)


def test_guard_stops_an_append(tmp_path: Path) -> None:
    def lost() -> None:
        raise LockedError("lost")

    with pytest.raises(LockedError):
        Journal(Folder(str(tmp_path)), lost).append("stopped")
    assert Journal(Folder(str(tmp_path))).events() == []


def test_threads_and_instances_share_the_numbers(tmp_path: Path) -> None:
    def work(name: str) -> None:
        journal = Journal(Folder(str(tmp_path)))
        for index in range(10):
            journal.append(name, index=index)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = Journal(Folder(str(tmp_path))).events()
    assert [event["number"] for event in events] == list(range(1, 41))
    for i in range(4):
        mine = [event["index"] for event in events if event["event"] == f"w{i}"]
        assert mine == list(range(10))
