"""The local head's record: nothing is claimed to run that does not, and nothing foreign is stopped."""

from __future__ import annotations

import json
import os
import socket

from tiny import Project

from ct.serving import local


def test_without_a_head_there_is_no_address(project: Project) -> None:
    assert local.address(project.settings) == ""
    assert local.stop(project.settings) is False


def test_a_record_of_another_process_is_not_believed(project: Project) -> None:
    """After a crash the head's number may belong to somebody else: here, to the test itself."""
    note = project.settings.home / "ray.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    stale = {"pid": os.getpid(), "born": "Thu Jan 1 00:00:00 1970", "address": "127.0.0.1:1", "dashboard": "", "folder": "/"}
    note.write_text(json.dumps(stale))
    assert local.address(project.settings) == ""
    assert local.stop(project.settings) is False
    assert not note.exists()
    note.write_text("{half a record")
    assert local.address(project.settings) == ""


def test_the_flags_of_quick_serving_are_set_and_kept_apart(project: Project) -> None:
    one, two = local.environment(project.settings.home / "a"), local.environment(project.settings.home / "b")
    assert one["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    if "RAY_SERVE_ENABLE_HA_PROXY" in one:
        shared = {name for name in one if one[name] == two[name]}
        assert not any(name.endswith(("_LOC", "_PATH", "_FILE", "_PORT")) for name in shared)
        # Once another project's replicas answered, through a fallback proxy whose port was everybody's.
        assert {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"} <= set(one) - shared


def test_a_free_port_is_none_that_a_connection_or_a_worker_may_take_meanwhile() -> None:
    """A head uses its ports seconds after they were found. One that the kernel gives to outgoing connections was taken by then, once."""
    found = {local.free_port() for _ in range(50)}
    assert found <= set(range(20_000, 30_000))
    assert len(found) > 40
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", found.pop()))
        taken.listen()
        assert all(local.free_port() != taken.getsockname()[1] for _ in range(20))
