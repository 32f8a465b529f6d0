"""Leases on object stores: whose clock counts, and who is first where two claim at once."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import threading
import time
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from archipelago.pipeline.errors import LockedError
from archipelago.pipeline.store import Folder, Holder, RunFolder
from archipelago.pipeline.store.conditional import S3Objects, conditional
from archipelago.pipeline.store.lease import CLAIM, Lease
from archipelago.pipeline.store.lock import LOCK
from tests.unit.test_store_remote import ObjectStore

HOUR = 3600.0


class TimedStore(ObjectStore):
    """It also says when an object was written, by a clock that is `ahead_s` of this machine's."""

    ahead_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, float] = {}

    def _info(self, path: str) -> pafs.FileInfo:
        info = super()._info(path)
        if info.type != pafs.FileType.File:
            return info
        # An upload is first seen when it is asked about: its time is that of its bytes.
        data = self.objects[path]
        seen = self.written.setdefault(f"{path} {hash(data)}", time.time() + self.ahead_s)
        return pafs.FileInfo(path, info.type, size=info.size, mtime_ns=int(seen * 1e9))


@pytest.fixture(params=["no times", "times", "another year"])
def folder(request: pytest.FixtureRequest) -> Folder:
    store = ObjectStore() if request.param == "no times" else TimedStore()
    if request.param == "another year":
        store.ahead_s = -8760 * HOUR  # type: ignore[attr-defined]
    return Folder("bucket/run", pafs.PyFileSystem(store))


def test_renewing_counts_and_no_clock_of_a_machine(folder: Folder) -> None:
    """A holder that is behind is alive, one that is ahead is over when it stops renewing."""
    stop, held, wrong = threading.Event(), threading.Event(), [-HOUR]
    far = Holder(host="far", pid=7, machine="elsewhere")

    def hold() -> None:
        while not stop.is_set():
            claim = dataclasses.replace(far, expires=time.time() + wrong[0])
            folder.write(LOCK, claim.dump())
            held.set()
            stop.wait(0.1)

    for error_s in (-HOUR, HOUR):
        wrong[0] = error_s
        stop.clear()
        held.clear()
        holder = threading.Thread(target=hold)
        holder.start()
        try:
            assert held.wait(60)
            for wait_s in (0.0, 2.5):
                with pytest.raises(LockedError, match="in use by far:7"):
                    Lease(folder, ttl_s=1.6, settle_s=0, skew_s=0.2).acquire(wait_s)
        finally:
            stop.set()
            holder.join()
        lease = Lease(folder, ttl_s=1.6, settle_s=0, skew_s=0.2)
        lease.acquire(wait_s=20)
        lease.check()
        lease.release()


def test_a_lease_that_was_left_long_ago_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TimedStore()
    folder = Folder("bucket/run", pafs.PyFileSystem(store))
    for expires in (time.time() - HOUR, time.time() + HOUR, time.time() + 30):
        store.ahead_s = -HOUR
        folder.write(LOCK, Holder(host="far", pid=7, machine="elsewhere", expires=expires).dump())
        folder.modified(LOCK)
        store.ahead_s = 0
        monkeypatch.setattr(Lease, "_rests", lambda *_: pytest.fail("waited"))
        lease = Lease(folder, settle_s=0)
        lease.acquire()
        lease.release()


def claim_at_once(folder: Folder, count: int, settle_s: float) -> tuple[list[Lease], list[str]]:
    """Who has the lease, and what the others were told, if all look before one of them writes."""
    together, mutex = threading.Barrier(count), threading.Lock()
    held: list[Lease] = []
    told: list[str] = []

    class Simultaneous(Lease):
        met = False

        def _is_over(self, other: Holder) -> bool:
            raise AssertionError("nobody has the lease yet")

        def _read(self) -> Holder | None:
            found = super()._read()
            if not self.met:
                self.met = True
                together.wait(10)
            return found

    def claim() -> None:
        lease = Simultaneous(folder, settle_s=settle_s)
        try:
            lease.acquire()
        except LockedError as error:
            with mutex:
                told.append(str(error))
        else:
            with mutex:
                held.append(lease)

    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return held, told


def test_the_first_by_the_stores_times_has_the_lease() -> None:
    folder = Folder("bucket/run", pafs.PyFileSystem(TimedStore()))
    held, told = claim_at_once(folder, 5, settle_s=0.5)
    assert len(held) == 1 and len(told) == 4
    assert all(f"in use by {held[0].holder} since" in text for text in told)
    held[0].check()
    held[0].release()
    assert folder.list() == []


def test_a_late_claim_never_replaces_a_lease() -> None:
    """It looked while nobody had it, and comes to claiming when another has it."""
    folder = Folder("bucket/run", pafs.PyFileSystem(TimedStore()))
    first = Lease(folder, settle_s=0)

    class Late(Lease):
        def _is_first(self) -> bool:
            assert super()._is_first()
            return True

        @contextlib.contextmanager
        def _claimed(self) -> Iterator[None]:
            if self._ahead_s is not None and not folder.exists(LOCK):
                first.acquire()
            with super()._claimed():
                yield

    with pytest.raises(LockedError, match="in use by"):
        Late(folder, settle_s=0).acquire()
    first.check()
    first.release()


def test_a_claimant_that_was_killed_does_not_block() -> None:
    store = TimedStore()
    folder = Folder("bucket/run", pafs.PyFileSystem(store))
    store.ahead_s = -HOUR
    folder.write(f"{CLAIM}0", Holder(host="far", machine="elsewhere").dump())
    folder.modified(f"{CLAIM}0")
    store.ahead_s = 0
    lease = Lease(folder, settle_s=0)
    lease.acquire()
    lease.release()
    assert folder.list() == []


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> Iterator[Folder]:
    name = f"bucket-{abs(hash(request.node.name))}"
    boto3.client(
        "s3",
        endpoint_url=f"http://{server}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    ).create_bucket(Bucket=name)
    options = f"endpoint_override={server}&scheme=http&region=us-east-1"
    yield Folder(f"s3://key:secret@{name}/runs/a%20b?{options}")


def test_s3_writes_on_a_condition(bucket: Folder) -> None:
    bucket.write("probe", b"there")
    objects = conditional(bucket, "probe")
    assert objects is not None and objects.tag("x") is None
    first = objects.put("x", b"1", None)
    assert first is not None and objects.tag("x") == first
    assert objects.put("x", b"2", None) is None and objects.put("x", b"2", '"no"') is None
    assert objects.put("y", b"2", first) is None
    assert bucket.read("x") == b"1"
    second = objects.put("x", b"2", first)
    assert second not in (None, first) and bucket.read("x") == b"2"
    assert objects.put("x", b"2", first) == second, "its own write, whose answer was lost"


def test_of_many_that_claim_at_once_one_has_the_lease_in_s3(bucket: Folder) -> None:
    held, told = claim_at_once(bucket, 5, settle_s=0)
    assert len(held) == 1 and len(told) == 4
    assert all(f"in use by {held[0].holder} since" in text for text in told)
    held[0].check()
    held[0].release()
    assert bucket.list() == []


def test_a_renewal_never_replaces_another_lease_in_s3(bucket: Folder) -> None:
    lost = threading.Event()

    class Stopped(Lease):
        def _is_ours(self) -> bool:  # what was seen before the other came
            return True

    lease = Stopped(bucket, ttl_s=0.6, settle_s=0, on_lost=lost.set)
    lease.acquire()
    other = Holder(host="far", pid=7, machine="elsewhere", expires=time.time() + 60)
    bucket.write(LOCK, other.dump())
    assert lost.wait(10)
    with pytest.raises(LockedError):
        lease.check()
    lease.release()
    assert Holder.parse(bucket.read(LOCK)) == other


def test_a_run_in_s3_with_and_without_the_client(
    bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    puts = []
    put = S3Objects.put
    monkeypatch.setattr(S3Objects, "put", lambda *a: puts.append(a[1]) or put(*a))
    for name in ("boto3", "nothing"):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda n, *a, hide=name: None if n == hide else found(n, *a),
        )
        puts.clear()
        run = RunFolder(bucket.uri)
        with run.lock(ttl_s=0.9, settle_s=0):
            run.journal.append("run-started")
            with pytest.raises(LockedError, match="in use by"), RunFolder(bucket.uri).lock():
                pass
            time.sleep(1.5)
            run.journal.append("stopped")
        assert (LOCK in puts) == (name != "boto3")
        assert not bucket.exists(LOCK) and bucket.list(CLAIM) == []


def test_an_s3_store_that_ignores_conditions_is_not_trusted(
    bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archipelago.pipeline.store import conditional as module

    client = module._client(bucket.place[0])
    whole = client.put_object
    monkeypatch.setattr(module, "_client", lambda _: client)
    bucket.write("probe", b"there")

    def ignores(IfNoneMatch: str = "", IfMatch: str = "", **rest: object) -> object:
        return whole(**rest)

    monkeypatch.setattr(client, "put_object", ignores)
    assert conditional(bucket, "probe") is None

    def lacks(**rest: object) -> object:
        answer = {"ResponseMetadata": {"HTTPStatusCode": 501}, "Error": {"Code": "NotImplemented"}}
        raise client.exceptions.ClientError(answer, "PutObject")

    monkeypatch.setattr(client, "put_object", lacks)
    assert conditional(bucket, "probe") is None
