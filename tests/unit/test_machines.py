"""Odd machines: what the operating system refuses, temporary folders, addresses, proxies, ports."""

from __future__ import annotations

import errno
import getpass
import os
import resource
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray

from archipelago.actors import bringup, cluster, local_ray
from archipelago.actors.arguments import load_settings
from archipelago.actors.environment import be_somebody
from archipelago.actors.exits import exit_codes
from archipelago.actors.loopback import is_loopback, spare_loopback, url_of
from archipelago.actors.os_errors import MENDS, in_words
from archipelago.jobs import sequence, sync
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.store import Folder
from tests.helpers import TINY, parquet_domain
from tests.running import IN_PROCESS

WORDS = [*TINY, *IN_PROCESS, "identifier=prototype", "method=gda_per_task", "stream=parquet"]


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    parquet_domain(root, "ants", classes=2, train=4, test=2)
    return root


def a_file(where: Path) -> Path:
    (where / "run").write_text("mine")
    return where / "run"


def below_a_file(where: Path) -> Path:
    return a_file(where) / "deeper" / "run"


def long_name(where: Path) -> Path:
    return where / ("n" * 300)


def long_path(where: Path) -> Path:
    return where.joinpath(*["n" * 200] * 30)


def links_in_a_circle(where: Path) -> Path:
    (where / "a").symlink_to(where / "b")
    (where / "b").symlink_to(where / "a")
    return where / "a" / "run"


def link_to_nowhere(where: Path) -> Path:
    (where / "run").symlink_to(where / "gone" / "run")
    return where / "run"


def in_the_kernel(where: Path) -> Path:
    return Path("/proc/archipelago/run")


@pytest.mark.parametrize(
    "place",
    [
        a_file,
        below_a_file,
        long_name,
        long_path,
        links_in_a_circle,
        link_to_nowhere,
        in_the_kernel,
    ],
)
def test_a_run_folder_that_cannot_be_is_refused_in_one_line(
    place: Callable[[Path], Path], domains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = place(tmp_path)
    assert sequence.main([*WORDS, f"stream.root={domains}", f"run_dir={run_dir}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sequence: /") and ";" in line
    assert any(line.endswith(mend) for _, mend in MENDS.values())
    assert sync.main([f"run_dir={run_dir}", "tracking=mlflow"]) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_run_that_cannot_be_written_says_why(
    number: int,
    domains: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, left = os.fsync, [4]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    words = [*WORDS, f"stream.root={domains}", f"run_dir={tmp_path / 'run'}"]
    assert sequence.main(words) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("sequence: ")]
    assert str(tmp_path / "run") in line and line.endswith(MENDS[number][1])


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_is_named_and_nothing_half_written_stays(
    small_files: None, tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    folder.write("a", b"old")
    with pytest.raises(OSError) as caught:
        folder.write("a", bytes(2**20))
    assert in_words(caught.value) == (
        f"{tmp_path / 'a'}: the file is larger than is allowed here; raise `ulimit -f`"
    )
    assert folder.read("a") == b"old" and list(tmp_path.iterdir()) == [tmp_path / "a"]


class Wrapped(Exception):
    """As Ray wraps what a task raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("task failed")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Wrapped(OSError(errno.ENOSPC, "No space", "/d/f")), "/d/f: the disk is full"),
        (
            RuntimeError("the workers failed, last: OSError: [Errno 28] No space"),
            "the disk is full",
        ),
        (
            ValueError('IoError(Os { code: 30, kind: ReadOnly, message: "x" })'),
            "the file system is",
        ),
        (OSError("[Errno 36] Failed stat()ing '/d/long'. Detail"), "/d/long: the name is too long"),
        (ValueError("File name too long (os error 36)"), "the name is too long"),
        (OSError(errno.ENOENT, "nothing", b"/d/\xff"), "/d/\udcff: does not exist"),
        (OSError(errno.EACCES, "no", "/" + "d" * 999), "/" + "d" * 99 + "..."),
        (PermissionError("this run folder was opened for reading"), None),
        (FileNotFoundError(errno.ENOENT, "nothing"), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), None),
        (KeyError("stage"), None),
        (RuntimeError("line 28"), None),
    ],
)
def test_os_errors_are_found_however_they_are_wrapped(error: Exception, said: str | None) -> None:
    words = in_words(error)
    assert words is None if said is None else words is not None and words.startswith(said)


def test_a_message_is_one_line_that_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_codes("job")
    def main(arguments: Sequence[str]) -> int:
        raise UserError("/d/a\nb\x1b[31m\udcff: wrong")

    assert main([]) == 2
    assert capsys.readouterr().err == "job: /d/a\\nb\\x1b[31m\\udcff: wrong\n"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "is the address of Ray's dashboard"),
        ("https://ray.example/dash", "is the address of Ray's dashboard"),
        ("HTTP://head:8265/", "is the address of Ray's dashboard"),
        ("head", "is no address"),
        ("head:port", "is no address"),
        ("::1:6379", "is no address"),
        (" ", "is no address"),
    ],
)
def test_an_address_that_is_no_cluster_is_refused_at_once(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS=.*: {said}.*; unset it, or name HOST:6379"):
        cluster.wanted_address(None)
    with pytest.raises(UserError, match=r"^cluster.address=.*; leave it out, or name HOST:6379"):
        cluster.wanted_address(address)
    assert cluster.wanted_address("10.0.0.1:6379") == "10.0.0.1:6379"


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001", "h:6379", "[::1]:6379"])
def test_addresses_of_clusters_are_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.wanted_address(None) == address
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster.wanted_address(None) is None


def test_a_long_temporary_folder_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for place in (tmp_path / ("x" * 60), Path("x" * 60), Path("ü" * 25)):
        monkeypatch.setenv("TMPDIR", str(place))
        with pytest.raises(
            UserError, match=r"^TMPDIR=.*too long for Ray's sockets; set RAY_TMPDIR"
        ):
            local_ray.start_local()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    local_ray.check_temporary()
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 60)
    with pytest.raises(UserError, match=r"^RAY_TMPDIR="):
        local_ray.check_temporary()


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_ray_is_started_with_patience_and_once_more(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[dict[str, Any]] = []

    def start(**options: Any) -> None:
        tried.append(options)
        assert all(int(os.environ[name]) > 30 for name in local_ray.PATIENCE)
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    for name in local_ray.PATIENCE:
        monkeypatch.setenv(name, local_ray.PATIENCE[name])
    if failures < 2:
        local_ray.start_local(num_cpus=2)
        assert len(tried) == failures + 1
        assert tried[-1] == {"address": "local", "num_cpus": 2}
    else:
        with pytest.raises(UserError, match=r"did not start .* twice .*timed out during startup"):
            local_ray.start_local(num_cpus=2)
        assert len(tried) == 2


def test_what_ray_can_never_do_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**options: Any) -> None:
        raise ValueError("object store memory too small")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with pytest.raises(ValueError, match="too small"):
        local_ray.start_local()


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    from httpx2 import Client, HTTPTransport

    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intern.example")
    spare_loopback()
    spare_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert os.environ["no_proxy"].split(",") == [
        "intern.example",
        "localhost",
        "127.0.0.1",
        "::1",
        "[::1]",
    ]
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000"):
        assert urllib.request.proxy_bypass(host), host
        with Client() as client:
            transport = client._transport_for_url(client.build_request("GET", f"http://{host}").url)
            assert isinstance(transport, HTTPTransport) and transport is client._transport
    assert not urllib.request.proxy_bypass("example.org")
    monkeypatch.setenv("no_proxy", "*")
    spare_loopback()
    assert os.environ["no_proxy"] == "*"


def test_a_user_whom_the_machine_does_not_know_has_a_name_and_a_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)
    be_somebody()
    assert "HOME" not in os.environ, "the list of users says it"
    monkeypatch.setattr(os, "getuid", lambda: 1_234_567)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    be_somebody()
    assert getpass.getuser() == "user-1234567" and Path.home().is_dir()


@pytest.mark.parametrize(
    ("host", "url", "loopback"),
    [
        ("127.0.0.1", "http://127.0.0.1:80", True),
        ("0.0.0.0", "http://127.0.0.1:80", False),
        ("::", "http://[::1]:80", False),
        ("::1", "http://[::1]:80", True),
        ("fe80::7", "http://[fe80::7]:80", False),
        ("127.8.9.1", "http://127.8.9.1:80", True),
        ("localhost", "http://localhost:80", True),
        ("host.example", "http://host.example:80", False),
    ],
)
def test_where_an_endpoint_is_reached(host: str, url: str, loopback: bool) -> None:
    assert url_of(host, 80) == url and is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_taken_port_is_named_on_both_protocols(family: int, host: str) -> None:
    try:
        taken = socket.socket(family)
        taken.bind((host, 0))
    except OSError:
        pytest.skip("this machine has no such address")
    with closing(taken):
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^serving.port={port}: is in use"):
            bringup.check_listening(host, port)
    bringup.check_listening(host, port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 70, "2001:db8::7"])
def test_a_host_that_is_not_this_machine_is_not_a_taken_port(host: str) -> None:
    with pytest.raises(UserError, match=r"^serving.host="):
        bringup.check_listening(host, 8000)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["stream=folder", "stream.root=datasets"], "stream.root"),
        (["stream=parquet", "stream.root=./datasets"], "stream.root"),
        (["backbone=local-dir", "backbone.name=local-dir:clip"], "backbone.name"),
        (["backbone.pretrained=clip/weights.pt"], "backbone.pretrained"),
        (["backbone.basis=basis.safetensors"], "backbone.basis"),
        (["cluster.cache_dir=cache"], "cluster.cache_dir"),
    ],
)
def test_a_submitted_job_refuses_places_in_its_copy_of_the_code(
    words: list[str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings([*words, "run_dir=/r"]).run_dir == "/r"
    monkeypatch.setenv(cluster.JOB, "{}")
    with pytest.raises(UserError, match=rf"^{key}=.*: is relative, and a submitted job"):
        load_settings([*words, "run_dir=/r"])
    load_settings(["stream=folder", "stream.root=/datasets", "run_dir=/r"])
    load_settings(["stream=folder", "stream.root=s3://b/datasets", "run_dir=/r"])


@pytest.mark.parametrize(
    "value",
    ["/W/Fotos März #2 (50%)/set=a, b", 'a "b" c(', "it's (a)", "back\\slash (x)", "${x} (y)"],
)
def test_the_hint_for_an_unquoted_value_works_when_pasted(value: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings([f"run_dir={value}"])
    [word] = shlex.split(str(caught.value).rpartition("special characters: ")[2])
    settings = load_settings([word, "stream=atlas"])
    assert str(settings.run_dir).endswith(value)


@pytest.mark.parametrize("value", ["a\0b", "a\udcffb", "'a\0b'"])
def test_text_that_no_file_can_hold_is_refused(value: str, domains: Path) -> None:
    for words in ([f"run_dir={value}"], [f"stream.root={value}"]):
        assert sequence.main([*WORDS, f"stream.root={domains}", *words]) == 2
