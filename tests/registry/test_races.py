"""Registrations at once, and a database lost after the commit and before its reply (F16); a former holder of a run's lease (F29)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ct.errors import Conflict
from ct.registry import files, versions
from ct.registry.files import ModelSpec
from ct.registry.publishing import publish
from ct.store import leases
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from tests.registry.made import made
from tests.services import Postgres

ROOT = Path(__file__).parents[2]
TOLD = {"verdict": "pass", "metrics": {"auroc": 0.7}}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").new())
    return f"sqlite:///{tmp_path / 'journal.db'}"


def child(code: str, *args: str) -> subprocess.Popen[str]:
    """A process that knows the tests' own modules."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    head = (
        "import sys\nfrom ct.store.journal import Journal\nfrom ct.store.artifacts import Artifacts\nfrom ct.store import leases\n"
        "from ct.registry.publishing import publish\nfrom ct.errors import Conflict\nfrom tests.registry.made import made\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", head + code, *args], env=env, **pipes)  # type: ignore[call-overload,no-any-return]


def test_registered_at_once_all_get_names_of_their_own(url: str, tmp_path: Path) -> None:
    code = (
        "journal, artifacts = Journal(sys.argv[1]), Artifacts(sys.argv[2])\n"
        "for n in range(4):\n"
        "    run = f'{sys.argv[3]}-{n}'\n"
        "    publish(journal, artifacts, 'p', made(run), run=run, verdict='pass', metrics={})\n"
    )
    Journal(url)
    begun = [child(code, url, str(tmp_path / "artifacts"), str(who)) for who in range(3)]
    assert [process.wait(120) for process in begun] == [0, 0, 0]
    known = versions.all_versions(Journal(url), "p")
    assert [version.name for version in known] == [f"v{n}" for n in range(1, 13)]
    assert len({version.run for version in known}) == 12
    for version in known:
        found = files.fetch(Artifacts(tmp_path / "artifacts"), version.manifest)
        assert ModelSpec.from_bytes(found[files.SPEC]).version == version.name, "the files say the name they have"
        assert found[files.ONNX] == made(version.run)[files.ONNX]


def test_the_same_run_registered_at_once_is_one_version(url: str, tmp_path: Path) -> None:
    code = (
        "journal, artifacts = Journal(sys.argv[1]), Artifacts(sys.argv[2])\n"
        "print(publish(journal, artifacts, 'p', made('run-1'), run='run-1', verdict='pass', metrics={}).name)\n"
    )
    Journal(url)
    begun = [child(code, url, str(tmp_path / "artifacts")) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in begun] == ["v1", "v1", "v1"]
    assert len(versions.all_versions(Journal(url), "p")) == 1


def test_a_version_whose_files_cannot_be_read_back_is_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, artifacts = Journal(f"sqlite:///{tmp_path / 'journal.db'}"), Artifacts(tmp_path / "artifacts")
    sign = artifacts.sign

    def spoiled(digest: str) -> None:
        sign(digest)
        victim = Path(artifacts.address(artifacts.manifest(digest)[files.ONNX]))
        victim.write_bytes(b"torn")

    monkeypatch.setattr(artifacts, "sign", spoiled)
    with pytest.raises(Exception, match="has the hash"):
        publish(journal, artifacts, "p", made("run-1"), run="run-1", **TOLD)  # type: ignore[arg-type]
    assert versions.all_versions(journal, "p") == ()


class _Wire:
    """Stands between a client and PostgreSQL; armed, it lets the next COMMIT through and breaks the connection when the reply comes."""

    def __init__(self, port: int) -> None:
        self.target, self.armed, self.lost = port, False, 0
        self.silent: set[socket.socket] = set()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self.listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._up, args=(here, there), daemon=True).start()
            threading.Thread(target=self._down, args=(here, there), daemon=True).start()

    def _up(self, here: socket.socket, there: socket.socket) -> None:
        while data := self._read(here):
            if self.armed and b"COMMIT" in data:
                self.armed, self.lost = False, self.lost + 1
                self.silent.add(here)
            there.sendall(data)
        self._end(here, there)

    def _down(self, here: socket.socket, there: socket.socket) -> None:
        while (data := self._read(there)) and here not in self.silent:  # it is done, and what says so reaches nobody
            try:
                here.sendall(data)
            except OSError:
                break
        self._end(here, there)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # to close it is not enough while the other thread reads from it
            end.close()

    def _read(self, end: socket.socket) -> bytes:
        try:
            return end.recv(65_536)
        except OSError:
            return b""


@contextmanager
def wired(port: int) -> Iterator[_Wire]:
    wire = _Wire(port)
    try:
        yield wire
    finally:
        wire.listening.close()


def test_a_commit_whose_reply_is_lost_is_found_again(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.new()
    artifacts = Artifacts(tmp_path / "artifacts")
    with wired(postgres.port) as wire:
        journal = Journal(url.replace(f":{postgres.port}/", f":{wire.port}/"))
        with leases.held(journal, "run/p/run-1", beat=600) as lease:
            register = versions.register

            def armed(*args: object, **named: object) -> versions.Version:
                wire.armed = True
                return register(*args, **named)  # type: ignore[arg-type]

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(versions, "register", armed)
                version = publish(journal, artifacts, "p", made("run-1"), run="run-1", guard=lease, **TOLD)  # type: ignore[arg-type]
        assert wire.lost == 1, "the reply was to be lost"
        assert version.name == "v1"
        journal.close()
    plain = Journal(url)
    assert [event.type for event in plain.read(versions.stream("p"))] == ["VersionRegistered"], "recorded once"
    assert publish(plain, artifacts, "p", made("run-1"), run="run-1", **TOLD) == version  # type: ignore[arg-type]
    assert plain.verify() == 1


def test_a_worker_believed_dead_registers_nothing(url: str, tmp_path: Path) -> None:
    """SIGSTOP in the middle of a run, another one takes over and ends it, SIGCONT: one version, that of the other one."""
    code = (
        "journal, artifacts = Journal(sys.argv[1]), Artifacts(sys.argv[2])\n"
        "with leases.held(journal, 'run/p/run-1', beat=0.05) as lease:\n"
        "    print('holds', flush=True); sys.stdin.readline()\n"
        "    try: print(publish(journal, artifacts, 'p', made('stale'), run='run-1', verdict='pass', metrics={}, guard=lease).name)\n"
        "    except Conflict as error: print(error.found)\n"
    )
    journal, artifacts = Journal(url), Artifacts(tmp_path / "artifacts")
    for ends_first in (False, True):  # it wakes before the other one has registered, or after
        run = "run-2" if ends_first else "run-1"
        first = child(code.replace("run-1", run), url, str(tmp_path / "artifacts"))
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        first.send_signal(signal.SIGSTOP)
        with leases.held(journal, f"run/p/{run}", ttl=1.0) as lease:
            if ends_first:
                publish(journal, artifacts, "p", made("fresh"), run=run, guard=lease, **TOLD)  # type: ignore[arg-type]
            first.send_signal(signal.SIGCONT)
            said = first.communicate("\n")[0]
            if not ends_first:
                assert "was taken over" in said
                publish(journal, artifacts, "p", made("fresh"), run=run, guard=lease, **TOLD)  # type: ignore[arg-type]
    known = versions.all_versions(journal, "p")
    assert [version.run for version in known] == ["run-1", "run-2"]
    for version in known:
        assert files.fetch(artifacts, version.manifest)[files.ONNX] == made("fresh")[files.ONNX]
    with leases.held(journal, "x") as lease:
        pass
    with pytest.raises(Conflict, match="taken over"):
        publish(journal, artifacts, "p", made("run-3"), run="run-3", guard=lease, **TOLD)  # type: ignore[arg-type]
