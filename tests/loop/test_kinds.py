"""Labels that are classes, numbers and quantiles, each from the shard to live quality over real HTTP. One Ray serves them one after another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ct
from ct import settings
from ct.control import report, rollouts, runs, watching
from ct.control.act import Actor
from ct.control.calls import post
from ct.data import predictions
from ct.errors import Conflict, InvalidRequest
from ct.pipeline import load
from ct.registry import versions
from ct.rollout import state
from ct.rollout.tally import Tally, off
from ct.serving import local
from ct.serving.client import Serving

from . import project

ROWS, DAYS = 2_400, 12
START = datetime(2024, 1, 1, tzinfo=UTC)
CLASSES = ("early", "on time", "late")
PIPELINE = """
import ct

pipeline = ct.Pipeline(
    name="orders-KIND",
    table=ct.Table("orders", key="order_id", time="ordered_at", owner="shop"),
    label=LABEL,
    features=[ct.numeric("amount"), ct.category("country")],
    segments=["country"],
    holdout="3d",
    model=ct.Torch(ct.models.MLP, epochs=25, lr=5e-3, batch=256, seed=7, options={"width": 16}),
    gate=ct.Gate(beats=BEATS, floors=[FLOOR]),
    rollout=ct.Canary(50, 100, min_requests=20, guards=[ct.quality(margin=0.3, min_labels=5)]),
)
"""
LABELS = {
    "classes": 'ct.Label("outcome", classes=("early", "on time", "late"), known_at="delivered_at", weight="value")',
    "number": 'ct.Label("days", known_at="delivered_at")',
    "quantiles": 'ct.Label("days", quantiles=(0.1, 0.5, 0.9), known_at="delivered_at")',
}
FLOORS = {
    "classes": 'ct.at_least("accuracy", 0.5)',
    "number": 'ct.at_least("r2", 0.3)',
    "quantiles": 'ct.at_most("pinball", 700.0)',
}
BEATS = {
    "classes": 'ct.better("log_loss", margin=1.0)',
    "number": 'ct.better("mae", margin=1000.0)',
    "quantiles": 'ct.better("pinball", margin=1000.0)',
}
METRICS = {"classes": "log_loss", "number": "mae", "quantiles": "pinball"}


def shard() -> pa.Table:
    """Orders whose days (in the thousands, far from 0) grow with the amount; some outcomes are no class, some weights are missing."""
    random = np.random.default_rng(5)
    seconds = np.sort(random.integers(0, DAYS * 86_400, ROWS))
    amount = random.gamma(2.0, 30.0, ROWS)
    days = 50_000 + 40.0 * amount + random.normal(0, 600, ROWS)
    outcome = np.where(days < 51_500, "early", np.where(days < 53_000, "on time", "late")).astype(object)
    outcome[random.random(ROWS) < 0.02] = "lost"
    times = [START + timedelta(seconds=int(s)) for s in seconds]
    return pa.table(
        {
            "order_id": [f"o-{at}" for at in range(ROWS)],
            "ordered_at": pa.array(times, pa.timestamp("us", "UTC")),
            "amount": amount,
            "country": random.choice(["AT", "DE"], ROWS).tolist(),
            "days": days,
            "outcome": pa.array(outcome.tolist(), pa.string()),
            "value": pa.array([None if at % 7 == 0 else 1.0 + at % 3 for at in range(ROWS)], pa.float64()),
            "delivered_at": pa.array([at + timedelta(hours=6) for at in times], pa.timestamp("us", "UTC")),
        }
    )


def project_of(kind: str, root: Path, port: int) -> ct.Pipeline:
    """Write the project and load its pipeline."""
    text = PIPELINE.replace("KIND", kind).replace("LABEL", LABELS[kind]).replace("FLOOR", FLOORS[kind])
    file = root / f"orders_{kind}.py"
    file.write_text(text.replace("BEATS", BEATS[kind]))
    (root / "ct.toml").write_text(f'pipeline = "{file.name}"\nport = {port}\n')
    return load(str(file))


@dataclass
class Shop:
    """A project of one kind of label whose endpoint runs, and the rows it is asked."""

    kind: str
    act: Actor
    version: versions.Version
    rows: list[dict[str, Any]]

    def ask(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        given = ("order_id", "ordered_at", "amount", "country")
        asked = [{name: row[name] for name in given} for row in rows]
        asked = [{**row, "ordered_at": row["ordered_at"].isoformat()} for row in asked]
        found: list[dict[str, Any]] = post(self.act.settings, "/predict", {"instances": asked})["predictions"]
        return found

    def tell(self, said: list[dict[str, Any]]) -> int:
        return int(post(self.act.settings, "/labels", {"labels": said})["accepted"])

    def truths(self, asked: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        column = "outcome" if self.kind == "classes" else "days"
        return [{"prediction_id": one["prediction_id"], "value": row[column]} for one, row in zip(asked, rows, strict=True)]

    def facts(self) -> dict[str, Any]:
        return dict(runs.all_runs(self.act.journal, self.act.pipeline.name)[0].facts)


@pytest.fixture(scope="module")
def head(ray_local: None) -> Iterator[int]:
    """One Ray, one HTTP proxy and one warm process for all projects of this file. Gives the port."""
    import ray
    from ray import serve

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # or each project would start a Ray of its own
    yield local.free_port()
    serve.shutdown()
    patch.undo()


@pytest.fixture(scope="module", params=list(LABELS))
def shop(request: pytest.FixtureRequest, head: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Ingested, trained, judged and deployed."""
    from ray import serve

    kind = request.param
    root = tmp_path_factory.mktemp(kind)
    line = project_of(kind, root, head)
    act = Actor(line, settings.load(root, environ={}), actor="ann")
    pq.write_table(shard(), act.settings.root / "orders.parquet")
    assert act.ingest("orders", act.settings.root / "orders.parquet").kind == "published"
    said: list[str] = []
    version = act.train(act.start_run("by hand"), on_step=said.append)
    assert version.verdict == "pass", version.reasons
    if kind == "classes":
        assert any("have no label because theirs is none: 'lost' in" in line for line in said), said
    act.deploy()
    yield Shop(kind, act, version, shard().slice(ROWS - 200).to_pylist())
    serve.delete(act.pipeline.name)
    act.close()


def test_what_was_learned_is_on_record(shop: Shop) -> None:
    facts, metrics = shop.facts(), shop.version.metrics
    if shop.kind == "classes":
        assert facts["labels"]["foreign"] == {"lost": facts["labels"]["foreign_rows"]}
        assert set(facts["labels"]["classes"]) == set(CLASSES)
        assert facts["calibrated"].startswith("temperature")
        assert metrics["accuracy"] > 0.6
    else:
        assert facts["calibration"]["center"] == pytest.approx(52_400, rel=0.01)
        assert facts["calibration"]["spread"] > 500
        assert facts["rows_held"] == 0, "nothing is calibrated, so nothing is held back"
    if shop.kind == "number":
        assert metrics["mae"] < 700
    if shop.kind == "quantiles":
        assert 0.7 < metrics["coverage"] < 0.9


def test_an_answer_says_what_its_label_is(shop: Shop) -> None:
    cheap, dear = shop.ask([{**shop.rows[0], "amount": 5.0}, {**shop.rows[0], "amount": 160.0}])
    if shop.kind == "classes":
        assert set(cheap) == {"prediction_id", "class", "score", "scores"}
        assert (cheap["class"], dear["class"]) == ("early", "late")
        assert list(cheap["scores"]) == list(CLASSES)
        assert sum(cheap["scores"].values()) == pytest.approx(1)
        assert cheap["score"] == cheap["scores"]["early"] == max(cheap["scores"].values())
    elif shop.kind == "number":
        assert set(cheap) == {"prediction_id", "value"}
        assert (cheap["value"], dear["value"]) == (pytest.approx(50_200, abs=900), pytest.approx(56_400, abs=1500))
    else:
        assert set(cheap) == {"prediction_id", "quantiles"}
        told = list(cheap["quantiles"].values())
        assert list(cheap["quantiles"]) == ["0.1", "0.5", "0.9"]
        assert told == sorted(told)
        assert told[1] < dear["quantiles"]["0.5"]


def test_the_open_protocol_says_the_same(shop: Shop) -> None:
    name, row = shop.act.pipeline.name, shop.rows[3]
    (plain,) = shop.ask([row])
    columns = {"order_id": "o", "ordered_at": row["ordered_at"].isoformat(), "amount": row["amount"], "country": row["country"]}
    inputs = [{"name": key, "data": [value], "shape": [1]} for key, value in columns.items()]
    found = post(shop.act.settings, f"/v2/models/{name}/infer", {"inputs": inputs})["outputs"]
    tensors = {item["name"]: item for item in found}
    wide = {"classes": "scores", "quantiles": "quantiles"}.get(shop.kind)
    if wide:
        assert tensors[wide]["shape"] == [1, 3]
        assert dict(zip(tensors[wide]["parameters"]["columns"], tensors[wide]["data"], strict=True)) == plain[wide]
    for part in ("class", "score", "value"):
        assert (part in tensors) == (part in plain)
        assert part not in plain or tensors[part]["data"] == [plain[part]]


BAD: dict[str, list[tuple[Any, str]]] = {
    "classes": [("lost", "one of"), (1, "one of"), (True, "one of")],
    "number": [("late", "finite number"), (True, "finite number"), ([1], "finite number")],
    "quantiles": [("late", "finite number"), ({"0.1": 1}, "finite number")],
}


def test_truths_make_live_quality_and_wrong_ones_are_refused(shop: Shop) -> None:
    kind = shop.kind
    rows = [row for row in shop.rows if row["outcome"] != "lost"]
    asked = shop.ask(rows)
    ids = [one["prediction_id"] for one in asked]
    for wrong, expected in BAD[kind]:
        with pytest.raises(InvalidRequest, match=expected) as found:
            shop.tell([{"prediction_id": ids[0], "value": wrong}])
        assert found.value.status == 422
    told = shop.truths(asked, rows)
    assert shop.tell(told) == len(rows)
    assert shop.tell([{"prediction_id": ids[0], "value": None}]) == 1
    live = watching.live_quality(shop.act.place)[shop.version.name]
    assert live["labelled"] == len(rows) - 1
    metric = METRICS[kind]
    assert live[f"{metric}_low"] < live[metric] < live[f"{metric}_high"]
    assert live[metric] == pytest.approx(shop.version.metrics[metric], rel=0.5)
    # The log says the same out of its table as out of its inbox, and so do status and why.
    assert shop.act.commit_predictions(force=True) > len(rows)
    assert watching.live_quality(shop.act.place)[shop.version.name] == live
    status = report.status(shop.act.settings, shop.act.pipeline)
    assert status["versions"][0][f"live_{metric}"] == live[metric]
    why = report.why(shop.act.settings, shop.act.pipeline, ids[1])["prediction"]
    assert why["truth"] == told[1]["value"]
    (again,) = shop.ask([rows[1]])
    if kind == "quantiles":
        assert why["quantile 0.5"] == again["quantiles"]["0.5"]
    else:
        part = "class" if kind == "classes" else "value"
        assert why[part] == again[part]
    limit = rollouts.off_limit(shop.act, shop.version.name)
    assert (limit is None) == (kind == "classes")
    assert limit is None or live[metric] < limit < 5 * live[metric]
    assert limit is None or 0.02 < np.mean([loss > limit for loss in losses(shop, asked, told)]) < 0.2, "1 of 10 is wrong"
    if kind == "classes":  # a person is told the same
        shown = project.ct(shop.act.settings.root, "status").stdout
        assert metric in shown
        assert f"{live[metric]:.4f}"[:5] in shown
        assert str(told[1]["value"]) in project.ct(shop.act.settings.root, "why", ids[1]).stdout
    compared = watching.live_drift(shop.act.place)
    assert compared["live"][metric] == live[metric]


def losses(shop: Shop, asked: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[float]:
    """Each answer's error: the absolute one, or the mean pinball loss."""
    objective = shop.act.pipeline.label.objective
    records = [{"score": one.get("value"), "scores": one.get("quantiles")} for one in asked]
    return [off(objective, record, said["value"]) for record, said in zip(records, told, strict=True)]


def test_a_rollout_is_judged_by_what_is_wrong_for_its_label(shop: Shop) -> None:
    """A second version is promoted once enough of its answers are labelled, by a limit that was fixed at the start."""
    name = shop.act.pipeline.name
    second = shop.act.train(shop.act.start_run("again"))
    assert second.verdict == "pass", second.reasons
    limit = rollouts.off_limit(shop.act, shop.version.name)
    assert shop.act.start_rollout(second.name).limit == limit
    rows = [row for row in shop.rows if row["outcome"] != "lost"]
    for at in range(0, 160, 4):
        some = rows[at : at + 4]
        asked = [shop.ask([{**row, "order_id": f"r-{at}-{n}"}])[0] for n, row in enumerate(some)]
        shop.tell(shop.truths(asked, some))
        if state.active(shop.act.journal, name) and shop.act.judge():
            break
    (rollout,) = state.history(shop.act.journal, name)
    assert rollout.step == 1, f"{rollout.cause} {rollout.evidence}"
    wrong = next(item for item in rollout.evidence if item["metric"] == "wrong_rate")
    assert wrong["canary_n"] >= 5
    assert wrong["canary_bad"] < wrong["canary_n"]
    assert rollout.split is not None
    assert rollout.split["n"] >= 5
    tally = Tally(rollout.first_epoch, rollout.slow_ms, shop.act.pipeline.label.objective, rollout.limit, segments=("country",))
    tally.add(predictions.everything(shop.act.settings))
    assert {value for name, value in tally.by_segment() if name == "country"} == {row["country"] for row in rows[: at + 4]}
    shop.act.abort()
    if shop.kind != "number":
        return
    # The same version again, in an application of its own that is there before its share and gone after it.
    act = shop.act
    assert act.start_rollout(second.name, apart=True).shown == "Progressing"
    arm = act.route().candidates[0].arm
    assert (arm.app, act.serving.arm_state(arm)) == (f"{name}--{second.name}", (1, ""))
    told = shop.ask([{**row, "order_id": f"apart-{at}"} for at, row in enumerate(rows[:4])])
    assert shop.tell(shop.truths(told, rows[:4])) == 4
    act.pause()
    assert act.judge() == "", "no circuit is open, no process down"
    act.abort()
    until = time.monotonic() + 60  # Serve takes its processes down beside what goes on
    while act.serving.arm_state(arm) != (0, f"{arm.app} does not run") and time.monotonic() < until:
        time.sleep(0.5)
    assert act.serving.arm_state(arm) == (0, f"{arm.app} does not run")
    assert state.history(act.journal, name)[-1].closed


def test_a_version_for_another_label_gets_no_traffic(shop: Shop, tmp_path: Path) -> None:
    """Its scores mean something else: refused by name before anything is staged."""
    from dataclasses import asdict, replace

    from ct.objectives import Objective
    from ct.registry import files

    made = files.fetch(shop.act.artifacts, shop.version.manifest)
    spec = files.ModelSpec.from_bytes(made[files.SPEC])
    changed = replace(spec, version="v9", objective=asdict(Objective("binary")))
    manifest = files.store(shop.act.artifacts, {**made, files.SPEC: changed.to_bytes()})
    with pytest.raises(Conflict, match=r"v9 predicts a binary label, stable v1 predicts"):
        rollouts.start(shop.act, replace(shop.version, name="v9", manifest=manifest))
    assert state.active(shop.act.journal, shop.act.pipeline.name) is None
    assert "v9" not in Serving(shop.act.settings, shop.act.pipeline.name).state()[0]["versions"]
