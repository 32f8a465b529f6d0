"""The store on an object store: objects appear whole, nothing is renamed or appended."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from archipelago.pipeline.errors import IntegrityError, LockedError
from archipelago.pipeline.store import Folder, Holder, RunFolder
from archipelago.pipeline.store.lease import Lease


class Upload(io.BytesIO):
    """An object that appears when its upload is completed."""

    def __init__(self, done: Callable[[bytes], None]):
        super().__init__()
        self._done = done

    def close(self) -> None:
        if not self.closed:
            self._done(self.getvalue())
        super().close()


class ObjectStore(pafs.FileSystemHandler):
    """Keys and bytes; no folders, no rename, no append. `down` makes every call fail."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.down = False

    def _up(self) -> None:
        if self.down:
            raise OSError("the store cannot be reached")

    def get_type_name(self) -> str:
        return "objects"

    def normalize_path(self, path: str) -> str:
        return path

    def _info(self, path: str) -> pafs.FileInfo:
        if path in self.objects:
            return pafs.FileInfo(path, pafs.FileType.File, size=len(self.objects[path]))
        folder = any(key.startswith(f"{path}/") for key in self.objects)
        return pafs.FileInfo(path, pafs.FileType.Directory if folder else pafs.FileType.NotFound)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self._up()
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self._up()
        assert selector.allow_not_found and not selector.recursive
        start = f"{selector.base_dir}/"
        keys = [key for key in self.objects if key.startswith(start)]
        return [
            self._info(start + name) for name in {key[len(start) :].split("/")[0] for key in keys}
        ]

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self._up()
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.PythonFile(io.BytesIO(self.objects[path]), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        self._up()
        return pa.PythonFile(Upload(lambda data: self.objects.update({path: data})), mode="w")

    def delete_file(self, path: str) -> None:
        self._up()
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)

    def delete_dir(self, path: str) -> None:
        self._up()
        for key in [key for key in self.objects if key.startswith(f"{path}/")]:
            del self.objects[key]

    def _refuse(self, *arguments: Any) -> Any:
        raise AssertionError("object stores cannot do this")

    create_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    move = copy_file = open_input_file = open_append_stream = _refuse


@pytest.fixture
def objects() -> ObjectStore:
    return ObjectStore()


def folder(objects: ObjectStore) -> Folder:
    return Folder("bucket/run", pafs.PyFileSystem(objects))


def open_run(objects: ObjectStore) -> RunFolder:
    return RunFolder("bucket/run", filesystem=pafs.PyFileSystem(objects))


def test_a_run_lives_in_an_object_store(objects: ObjectStore) -> None:
    run = open_run(objects)
    facts = {"backbone": {"name": "x"}, "stream": {"tasks": ["a"]}}
    with run.lock(settle_s=0):
        run.open_run({"seed": 0}, facts)
        card = b'{"tasks": [{"name": "a b"}], "neighbours": []}'
        ref = run.groups.write(0, "a b", {"group.safetensors": b"g", "task.json": card})
        version = run.models.publish([ref])
        run.journal.append("stage-done", stage=0, sha256=ref.sha256, manifest=version)
    run.reference("finetune").open_run({"seed": 0}, facts)
    assert sorted(objects.objects) == [
        "bucket/run/groups/000-a b/COMMIT",
        "bucket/run/groups/000-a b/group.safetensors",
        "bucket/run/groups/000-a b/task.json",
        "bucket/run/journal/000001-stage-done.json",
        "bucket/run/models/001.json",
        "bucket/run/references/finetune/run.json",
        "bucket/run/run.json",
    ]
    again = open_run(objects)
    assert again.completed_stages() == {0: ref}
    assert again.models.latest().groups == (ref,)
    assert list(again.references()) == ["finetune"]
    objects.objects["bucket/run/groups/000-a b/task.json"] = b"[]"
    with pytest.raises(IntegrityError, match=r"task\.json"):
        again.groups.verify(ref)
    again.groups.delete(ref)
    assert again.groups.list() == [] and again.folder.list("groups") == []


def test_a_writer_stopped_before_commit_leaves_no_group(objects: ObjectStore) -> None:
    objects.objects["bucket/run/groups/000-a/group.safetensors"] = b"half"
    objects.objects["bucket/run/groups/000-a/probe.safetensors"] = b"half"
    run = open_run(objects)
    assert run.groups.list() == []
    ref = run.groups.write(0, "a", {"group.safetensors": b"whole"})
    assert run.groups.list() == [ref]
    assert run.groups.files(ref).keys() == {"group.safetensors"}
    assert "bucket/run/groups/000-a/probe.safetensors" not in objects.objects


def foreign(objects: ObjectStore, expires: float) -> Holder:
    holder = Holder(host="far", pid=7, machine="elsewhere", expires=expires)
    folder(objects).write("LOCK", holder.dump())
    return holder


def test_a_live_lease_is_refused_by_name(objects: ObjectStore) -> None:
    foreign(objects, time.time() + 60)
    with pytest.raises(LockedError, match="in use by far:7 "), open_run(objects).lock():
        pass
    assert Holder.parse(objects.objects["bucket/run/LOCK"]).host == "far"


def test_an_expired_lease_is_taken_over_after_the_skew(objects: ObjectStore) -> None:
    foreign(objects, time.time() - 1)
    with pytest.raises(LockedError):
        Lease(folder(objects), ttl_s=0.3, settle_s=0, skew_s=5).acquire()
    lease = Lease(folder(objects), ttl_s=0.3, settle_s=0, skew_s=0.5)
    lease.acquire()
    lease.check()
    lease.release()
    assert "bucket/run/LOCK" not in objects.objects


def test_a_lease_of_a_dead_process_of_this_machine_does_not_block(objects: ObjectStore) -> None:
    dead = Holder(pid=2**22 + 1, expires=time.time() + 600)  # above any pid the kernel gives
    folder(objects).write("LOCK", dead.dump())
    with open_run(objects).lock(settle_s=0):
        pass


def test_waiting_until_a_lease_expires(objects: ObjectStore) -> None:
    foreign(objects, time.time() + 0.5)
    lease = Lease(folder(objects), ttl_s=1, settle_s=0, skew_s=0)
    lease.acquire(wait_s=10)
    lease.release()


def test_a_held_lease_is_renewed_beyond_its_time(objects: ObjectStore) -> None:
    run = open_run(objects)
    with run.lock(ttl_s=0.6, settle_s=0):
        time.sleep(1.5)
        assert Holder.parse(objects.objects["bucket/run/LOCK"]).expires > time.time()
        with pytest.raises(LockedError), open_run(objects).lock():
            pass
        run.journal.append("run-started")


def test_the_last_claim_wins(objects: ObjectStore) -> None:
    first = Lease(folder(objects), settle_s=0.6)
    refused: list[LockedError] = []

    def claim() -> None:
        try:
            first.acquire()
        except LockedError as error:
            refused.append(error)

    thread = threading.Thread(target=claim)
    thread.start()
    time.sleep(0.2)
    foreign(objects, time.time() + 60)  # read before the first claim was there, written after it
    thread.join()
    assert len(refused) == 1 and "far:7" in str(refused[0])


def test_a_lost_lease_stops_every_writer(objects: ObjectStore) -> None:
    run, told = open_run(objects), threading.Event()
    with run.lock(ttl_s=0.6, settle_s=0, on_lost=told.set):
        run.journal.append("run-started")
        thief = foreign(objects, time.time() + 60)
        with pytest.raises(LockedError, match="no longer leased"):
            run.journal.append("stage-done")
        assert told.wait(5)
        with pytest.raises(LockedError):
            run.groups.write(0, "a", {"group.safetensors": b""})
        with pytest.raises(LockedError):
            run.models.publish([])
    assert [event["event"] for event in run.journal.events()] == ["run-started"]
    assert Holder.parse(objects.objects["bucket/run/LOCK"]) == thief, "not ours to remove"


def test_the_renewing_thread_notices_a_loss_by_itself(objects: ObjectStore) -> None:
    told = threading.Event()
    lease = Lease(folder(objects), ttl_s=0.3, settle_s=0, on_lost=told.set)
    lease.acquire()
    del objects.objects["bucket/run/LOCK"]
    assert told.wait(5)
    lease.release()


def test_an_outage_shorter_than_the_lease_is_survived(objects: ObjectStore) -> None:
    lost: list[bool] = []
    lease = Lease(folder(objects), ttl_s=3, settle_s=0, on_lost=lambda: lost.append(True))
    lease.acquire()
    objects.down = True
    lease.check()
    time.sleep(1.3)  # one renewal fails
    objects.down = False
    time.sleep(1.2)
    lease.check()
    lease.release()
    assert not lost


def test_an_outage_longer_than_the_lease_loses_it(objects: ObjectStore) -> None:
    told = threading.Event()
    lease = Lease(folder(objects), ttl_s=0.5, settle_s=0, on_lost=told.set)
    lease.acquire()
    objects.down = True
    assert told.wait(5)
    objects.down = False
    with pytest.raises(LockedError):
        lease.check()
    lease.release()
