"""Requests scored together: the same bits and records as alone, no fault that is another's; what hangs holds up nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import REQUEST, ROW, Project

from ct.data import predictions
from ct.data.columns import column_of, from_row, from_rows
from ct.data.inbox import SLOW_SECONDS
from ct.errors import CtError, InvalidRequest, Unavailable
from ct.registry import files
from ct.registry.routes import WHOLE, Share
from ct.serving import answering
from ct.serving.lanes import Lane
from ct.serving.replica import Replica
from ct.serving.runtime import Predictor


@dataclass(frozen=True)
class Flags:
    canary: bool = True
    shadow: bool = True
    log: str = "durable"
    batching: bool = True


def row(at: int) -> dict[str, Any]:
    return {**ROW, "trip": f"t{at}", "distance": None if at % 5 == 0 else 10.0 * at, "line": "AB?"[at % 3], "bus": f"b{at % 4}"}


def records(project: Project, kind: str = "prediction") -> list[dict[str, Any]]:
    return [record for record in predictions.read(project.settings.inbox)[0] if record["kind"] == kind]


def run(project: Project, act: Callable[[Replica], Any]) -> Any:
    async def go() -> Any:
        return await act(Replica(project.settings, "tiny"))

    return asyncio.run(go())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of a model, in the order of the calls."""
    sizes: list[int] = []
    score = Predictor.score

    def told(self: Predictor, rows: Any, times: Any, history: Any) -> Any:
        sizes.append(len(times))
        return score(self, rows, times, history)

    monkeypatch.setattr(Predictor, "score", told)
    return sizes


def hang(monkeypatch: pytest.MonkeyPatch, version: str) -> threading.Event:
    """Every scoring by `version` waits for the event that is returned."""
    let_go, score = threading.Event(), Predictor.score

    def waits(self: Predictor, rows: Any, times: Any, history: Any) -> Any:
        if self.version == version:
            let_go.wait(30)
        return score(self, rows, times, history)

    monkeypatch.setattr(Predictor, "score", waits)
    return let_go


def test_rows_scored_together_have_the_bits_and_records_they_have_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = project.first()
    project.put(route.with_canary(project.version("v2", bias=1.0), weight=3000))
    sizes = counted(monkeypatch)

    async def act(replica: Replica) -> tuple[list[Any], list[Any]]:
        fresh = [
            {**row(at), "late": 3.5 * at, "arrives": "2024-05-01T08:00:00Z", "leaves": "2024-05-01T07:00:00Z"}
            for at in range(4)
        ]
        await replica.observe("trips", fresh)
        alone = [await replica.predict([row(at)]) for at in range(40)]
        sizes.append(0)
        return alone, await asyncio.gather(*(replica.predict([row(at)]) for at in range(40)))

    alone, together = run(project, act)
    before, after = sizes[: sizes.index(0)], sizes[sizes.index(0) + 1 :]
    assert set(before) == {1}
    assert max(after) > 8
    assert max(after) <= answering.INLINE_ROWS
    assert [one.scores.tobytes() for one in alone] == [one.scores.tobytes() for one in together]
    assert [(one.arm, one.version) for one in alone] == [(one.arm, one.version) for one in together]
    assert {one.arm for one in alone} == {"stable", "canary"}
    logged = {record["id"]: record for record in records(project)}
    assert len(logged) == 80
    for first, second in zip(alone, together, strict=True):
        one, two = (dict(logged[answer.ids[0]]) for answer in (first, second))
        for name in ("id", "t", "latency_ms"):
            assert one.pop(name) != two.pop(name) or name != "id"
        assert one == two


def test_one_row_that_fails_is_nobody_elses_fault(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.first(broken=True)  # no number for a line it does not know
    sizes = counted(monkeypatch)

    async def act(replica: Replica) -> list[Any]:
        asked = [{**row(at), "line": "?" if at == 3 else "A"} for at in range(8)]
        bad = {**row(9), "distance": "far"}
        return await asyncio.gather(*(replica.predict([one]) for one in [*asked, bad]), return_exceptions=True)

    found = run(project, act)
    assert sizes[0] == 8
    assert isinstance(found[3], RuntimeError)
    assert isinstance(found[8], InvalidRequest)
    assert all(np.isfinite(answer.scores).all() for at, answer in enumerate(found) if at not in (3, 8))
    logged = records(project)
    assert [record["key"] for record in logged if record["error"]] == ["t3"]
    assert len(logged) == 8


def test_flags_turn_batching_canary_and_durability_off(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    route = project.first()
    project.put(route.with_candidates((Share(project.version("v2"), 9000, shadow=True),)))
    sizes = counted(monkeypatch)

    async def act(replica: Replica) -> list[Any]:
        replica.answering.flags = Flags(canary=False, shadow=False, log="fast", batching=False)
        found = await asyncio.gather(*(replica.predict([row(at)]) for at in range(6)))
        await asyncio.sleep(0.1)
        return found

    assert {answer.arm for answer in run(project, act)} == {"stable"}
    assert sizes == [1] * 6
    assert [(record["forced"], record["error"]) for record in records(project)] == [(True, "")] * 6
    assert not records(project, "shadow")


def test_a_shadow_that_hangs_is_dropped_and_counted_and_nobody_waits(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    route = project.first()
    project.put(route.with_candidates((Share(project.version("v2"), 0, shadow=True),)))
    monkeypatch.setattr(answering, "SHADOW_SECONDS", 0.3)
    let_go = hang(monkeypatch, "v2")

    async def act(replica: Replica) -> float:
        begun = time.monotonic()
        for at in range(300):
            await replica.predict([row(at)])
        took = time.monotonic() - begun
        await asyncio.sleep(0.5)
        assert replica.telemetry.dropped >= 300 - 2 * answering.SHADOWS
        let_go.set()
        return took

    assert run(project, act) < 20
    assert len(records(project)) == 300
    shadows = records(project, "shadow")
    assert shadows
    assert all(record["score"] is None and "Unavailable" in record["error"] for record in shadows)


def test_a_proven_canary_goes_stable_s_way_so_that_it_is_not_measured_slower(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = project.first()
    project.put(route.with_canary(project.version("v2"), weight=0))
    score, fails, threads = Predictor.score, [False], list[bool]()

    def told(self: Predictor, rows: Any, times: Any, history: Any) -> Any:
        if self.version == "v2":
            threads.append(threading.current_thread() is threading.main_thread())
            if fails[0]:
                raise RuntimeError("no")
        return score(self, rows, times, history)

    monkeypatch.setattr(Predictor, "score", told)

    async def act(replica: Replica) -> None:
        await replica.predict([row(1)], force="always")
        fails[0] = True
        await replica.predict([row(2)], force="always")
        fails[0] = False
        for at in range(answering.PROVEN + 1):
            await replica.predict([row(at)], force="always")

    run(project, act)
    assert threads == [True, True, *[False] * answering.PROVEN, True], "trusted, failed once, watched, trusted again"


def test_stable_answers_for_a_canary_that_hangs_and_others_do_not_wait(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = project.first()
    project.put(route.with_canary(project.version("v2"), weight=WHOLE))
    monkeypatch.setattr(answering, "CANDIDATE_SECONDS", 0.4)
    let_go = hang(monkeypatch, "v2")

    async def act(replica: Replica) -> tuple[Any, float, bool]:
        replica.slots.loaded["v2"].proven = 0  # it has failed before
        late = asyncio.create_task(replica.predict([row(1)]))
        await asyncio.sleep(0)
        begun = time.monotonic()
        await replica.predict([row(2)], force="never")
        quick = time.monotonic() - begun
        answer = await late
        for at in range(4):
            await replica.predict([row(at)])
        begun = time.monotonic()
        await replica.predict([row(1)])
        let_go.set()
        return answer, quick, time.monotonic() - begun < 1.0

    answer, quick, opened = run(project, act)
    assert (answer.arm, answer.version) == ("stable", "v1")
    assert quick < 1.0
    assert opened  # the circuit: nobody waits for it any more
    assert records(project)[1]["error"].startswith("Unavailable: candidate v2 took over")


def test_who_tries_the_canary_out_closes_it_to_nobody(project: Project) -> None:
    """Forced requests fall back to stable like others; neither their failures nor their answers count in the circuit."""
    route = project.first()
    project.put(route.with_canary(project.version("v2", broken=True), weight=WHOLE))
    good, bad = row(1), {**row(1), "line": "?"}  # the canary gives no number for a line that it does not know

    async def act(replica: Replica) -> tuple[list[Any], list[int]]:
        circuit = replica.slots.require().circuits["canary"]
        forced = [await replica.predict([bad], force="always") for _ in range(circuit.limit + 1)]
        counts = [circuit.failures]
        for _ in range(2):
            await replica.predict([bad])
        await replica.predict([good], force="always")  # an answer that was asked for makes good no failure either
        counts.append(circuit.failures)
        assert (await replica.predict([good])).arm == "canary"
        return forced, [*counts, circuit.failures]

    forced, counts = run(project, act)
    assert {(answer.arm, answer.version) for answer in forced} == {("stable", "v1")}
    assert counts == [0, 2, 0]
    assert {record["forced"] for record in records(project)[: len(forced)]} == {True}


def test_a_pinned_version_answers_or_nobody_does(project: Project) -> None:
    route = project.first()
    project.put(route.with_canary(project.version("v2", broken=True), weight=WHOLE))
    good, bad = row(1), {**row(1), "line": "?"}

    async def act(replica: Replica) -> tuple[list[Any], list[Any]]:
        circuit = replica.slots.require().circuits["canary"]
        failed = await asyncio.gather(
            *(replica.predict([bad], version="v2") for _ in range(circuit.limit + 1)), return_exceptions=True
        )
        assert circuit.failures == 0
        for _ in range(circuit.limit):
            await replica.predict([bad])
        assert circuit.open
        return failed, [await replica.predict([good], version=name) for name in ("v2", "v1")]

    failed, answers = run(project, act)
    assert {(type(error), str(error).partition(";")[0]) for error in failed} == {(CtError, "v2 could not score this request")}
    assert [(answer.arm, answer.version) for answer in answers] == [("canary", "v2"), ("stable", "v1")]
    told = records(project)[: len(failed)]
    assert {(record["version"], record["arm"], record["forced"], record["score"]) for record in told} == {
        ("v2", "canary", True, None)
    }
    assert all("no number" in record["error"] for record in told)


def test_a_pinned_stable_goes_by_its_own_name_while_it_stands_in_for_a_candidate(project: Project) -> None:
    route = project.first()
    gone = project.version("v2", 1.0)
    stored = project.artifacts.address(project.artifacts.manifest(gone.manifest)[files.ONNX])
    Path(stored).write_bytes(b"no graph")
    project.put(route.with_candidates((Share(gone, 5000), Share(project.version("v3", 2.0), 1000))))

    async def act(replica: Replica) -> Any:
        assert replica.slots.require().candidates["canary"] is replica.slots.require().stable
        return await replica.predict([row(1)], version="v1")

    answer = run(project, act)
    assert (answer.arm, answer.version) == ("stable", "v1")


def test_a_lane_is_bounded_and_frees_itself() -> None:
    let_go = threading.Event()

    async def act() -> None:
        lane = Lane("slow", threads=1, waiting=1)
        first = asyncio.create_task(lane.call(lambda: let_go.wait(10) and 1, 5.0))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="took over"):
            await lane.call(lambda: 2, 0.05)  # waits for the only thread
        assert lane.full
        with pytest.raises(Unavailable, match="have not ended"):
            await lane.call(lambda: 3, 1.0)
        let_go.set()
        assert await first == 1
        await asyncio.sleep(0.05)
        assert await lane.call(lambda: 4, 1.0) == 4
        with pytest.raises(ZeroDivisionError):
            await lane.call(lambda: 1 // 0, 1.0)

    asyncio.run(act())


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=True),
    st.sampled_from(["A", "2024-05-01T10:00:00Z", "2024-05-01"]),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([*REQUEST, "other"]), VALUES), st.booleans())
def test_a_row_read_alone_is_read_as_among_many(drawn: Mapping[str, Any], whole: bool) -> None:
    asked = {**ROW, **drawn} if whole else drawn

    def told(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except CtError as error:
            return str(error)

    columns = told(lambda: from_rows([asked], REQUEST, times=("leaves",)))
    alone = told(lambda: from_row(asked, REQUEST, times=("leaves",)))
    if isinstance(columns, str):
        assert alone == columns
        return
    assert {name: column_of([value], REQUEST[name]).tobytes() for name, value in alone.items() if REQUEST[name] != "text"} == {
        name: values.tobytes() for name, values in columns.items() if REQUEST[name] != "text"
    }
    assert all(alone[name] == columns[name][0] for name, kind in REQUEST.items() if kind == "text")


def test_the_log_is_left_to_its_thread_while_the_disk_is_slow(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = predictions.Inbox(project.settings.inbox, "r1")
    inbox.submit([{"kind": "label", "id": "0"}]).result(5)
    writers: list[str] = []
    sync = predictions.os.fsync

    def slow(handle: int) -> None:
        writers.append(threading.current_thread().name)
        time.sleep(SLOW_SECONDS * 20)  # the first is over the mean's threshold already
        sync(handle)

    monkeypatch.setattr(predictions.os, "fsync", slow)
    for at in range(1, 4):
        inbox.keep([{"kind": "label", "id": str(at)}]).result(5)
    inbox.close()
    assert writers == [threading.current_thread().name, "inbox", "inbox"]
    assert [record["id"] for record in predictions.read(project.settings.inbox)[0]] == ["0", "1", "2", "3"]


def test_a_version_whose_rows_depend_on_their_company_is_asked_row_by_row(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.first()
    run_ = Predictor._run
    monkeypatch.setattr(
        Predictor, "_run", lambda self, numeric, category: run_(self, numeric, category) + np.float32(1e-6 * (len(numeric) > 1))
    )
    replica = Replica(project.settings, "tiny")
    live = replica.slots.require()
    assert not live.stable.predictor.steady
    sizes = counted(monkeypatch)

    async def act(made: Replica) -> None:
        await asyncio.gather(*(made.predict([row(at)]) for at in range(5)))

    run(project, act)
    assert sizes == [1] * 5
