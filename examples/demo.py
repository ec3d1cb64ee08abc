"""`make demo`: the whole loop on 336,776 real flights, every figure measured in this run. KEEP=1 leaves the endpoint up.

Each step is the product's own: shards are dropped into landing/, and the loop that `ct watch` runs does the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import shards
from ct import settings
from ct.control import erasing, loop, report, reproducing, rows, skew, watching
from ct.control.act import Actor
from ct.data import catalog
from ct.registry import routes, versions
from ct.rollout import state as rollouts
from ct.serving import local
from flights import pipeline
from traffic import Answers, Replay, utc

HERE = Path(__file__).resolve().parent
out = Console(highlight=False)


class Demo:
    """The demo's state: its project folder, its actor, the months as tables, and what was measured."""

    def __init__(self, folder: Path) -> None:
        self.begun = time.monotonic()
        # A project like any other: afterwards `ct ... --root demo` works in it.
        file = os.path.relpath(HERE / "flights.py", folder)
        (folder / "ct.toml").write_text(f'pipeline = "{file}"\nport = {local.free_port()}\n', encoding="utf-8")
        self.settings = settings.load(folder)
        self.months = shards.write(folder / "shards")
        self.act = Actor(pipeline, self.settings, actor="demo")
        self.traffic: list[Answers] = []
        self.rollback_seconds: float | None = None
        self.quarantined: list[str] = []
        self.skewed: list[str] = []
        self.reproduced = ""
        self.traces = 0
        self.last_id = ""

    def say(self, text: str) -> None:
        """Print one line with the seconds since the start."""
        out.print(f"[dim]{time.monotonic() - self.begun:6.1f} s[/]  {text}", soft_wrap=True)

    def land(self, *months: int) -> None:
        """Drop the months' files into landing/, whole or not at all."""
        for name in ("weather", "flights"):
            for month in months:
                self.drop(self.months[name][month], name)

    def drop(self, file: Path, table: str) -> None:
        """Drop one file into landing/<table>/."""
        target = self.settings.root / self.settings.landing / table / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{file.name}")
        shutil.copyfile(file, part)
        os.replace(part, target)

    def turn(self) -> None:
        """Turn the loop until there is nothing left to do."""
        loop.run(self.act, every=0.2, once=True, say=self.say)

    def replay(self, start: tuple[int, int], stop: tuple[int, int], *, rows: int) -> Replay:
        """Traffic between two days of 2013, begun."""
        months = sorted({start[0], stop[0], max(1, start[0] - 1)})
        flights = pa.concat_tables([pq.read_table(self.months["flights"][month]) for month in months])
        weather = pa.concat_tables([pq.read_table(self.months["weather"][month]) for month in months])
        span = utc(2013, *start), utc(2013, *stop)
        traffic = Replay(self.settings.endpoint, flights, weather, pipeline.request_columns, *span, rows=rows)
        traffic.start()
        return traffic

    def count(self, answers: Answers) -> Answers:
        """Keep a replay's answers for the closing figures and say what came of it."""
        self.traffic.append(answers)
        self.last_id = answers.last_id or self.last_id
        split = ", ".join(f"{version} {count:,}" for version, count in sorted(answers.by_version.items()))
        self.say(
            f"{answers.rows:,} flights asked in {answers.requests:,} requests ({answers.requests / max(answers.seconds, 0.01):,.0f}/s), "
            f"{answers.failed} failed; answered by {split}; {answers.labels:,} labels followed"
        )
        for fault in answers.faults[:3]:
            self.say(f"[red]{fault}[/]")
        return answers


def step(title: str) -> None:
    """Announce a step."""
    out.rule(f"[bold]{title}", align="left")


def first_model(demo: Demo) -> None:
    """January to March land; v1 is trained, proven and served."""
    demo.land(1, 2, 3)
    demo.turn()
    metrics = versions.all_versions(demo.act.journal, pipeline.name)[0].metrics
    demo.say(f"v1: log loss {metrics['log_loss']:.4f} against {metrics['base_log_loss']:.4f} of the base rate")


def april_live(demo: Demo) -> None:
    """April's flights are asked for hour by hour; each flight's truth follows when it has landed."""
    traffic = demo.replay((4, 1), (5, 1), rows=8)
    traffic.join()
    demo.count(traffic.answers)
    live(demo)
    found = watching.live_drift(demo.act.place)
    demo.say(
        f"live traffic has drifted from {found['reference']}'s training data in {', '.join(found['drifted'][:4]) or 'nothing'}"
    )


def promote_under_traffic(demo: Demo) -> None:
    """April lands as a shard; v2 is trained and takes over, step by step, while traffic runs."""
    traffic = demo.replay((5, 1), (6, 1), rows=1)
    demo.land(4)
    demo.turn()
    demo.count(traffic.halt())
    found = skew.measure(demo.act.place)
    demo.skewed = list(found.skewed)
    late = sum(feature.late for feature in found.features)
    demo.say(
        f"skew: {found.compared:,} of April's {found.predictions - found.pending:,} answers made again from the shards, {len(found.features)} features bit for bit: "
        f"{', '.join(demo.skewed) or 'no difference'}; late data explain {late:,} values"
    )


def broken_shard(demo: Demo) -> None:
    """May comes with one carrier's distances in kilometres and a day without origins. It is stopped; answers stay the same."""
    probe = next(iter(pq.read_table(demo.months["flights"][5]).slice(2000, 1).select(pipeline.request_columns).to_pylist()))
    asked = {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in probe.items()}
    before = ask(demo, asked)
    demo.drop(
        shards.broken(demo.months["flights"][5], demo.settings.root / "broken" / "flights-2013-05-broken.parquet"), "flights"
    )
    demo.turn()
    demo.quarantined = [item["shard"] for item in catalog.quarantined(demo.act.journal, "flights")]
    after = ask(demo, asked)
    same = "the same" if before == after else "NOT the same"
    demo.say(f"the same flight, asked before and after: score {before:.6f} and {after:.6f}, {same}")


def ask(demo: Demo, row: dict[str, Any]) -> float:
    """One prediction's score."""
    from ct.control.calls import post

    return float(post(demo.settings, "/predict", {"instances": [row]})["predictions"][0]["score"])


def harmful_candidate(demo: Demo) -> None:
    """A model trained on flipped labels fails its gate, is let through by a journaled override, and is rolled back by itself."""
    act = demo.act
    run = act.start_run("demo: labels flipped in training")
    data = rows.rows(act.place, run, on_step=lambda _: None)
    label = np.where(data.split.train, 1.0 - data.label, data.label)
    version = act.train(run, data=replace(data, label=label))
    demo.say(f"{version.name}: AUROC {version.metrics['auroc']:.4f}, gate says {version.verdict}: {version.reasons[0]}")
    act.overrule(version.name, "demo: show that a harmful model takes itself back")
    traffic = demo.replay((5, 15), (6, 1), rows=1)
    demo.turn()
    time.sleep(1.0)
    answers = demo.count(traffic.halt())
    rollout = rollouts.history(act.journal, pipeline.name)[-1]
    told = [event for event in act.journal.read(rollouts.stream(pipeline.name)) if event.data["rollout"] == rollout.id]
    judged = next(event.at.timestamp() for event in reversed(told) if event.type == "RolloutJudged")
    # The later of two moments: every replica has confirmed the route without the canary, and the canary's last answer has come back.
    demo.rollback_seconds = max(told[-1].at.timestamp(), answers.last_canary) - judged
    demo.say(f"from verdict to the last canary answer and every replica's word: [bold]{demo.rollback_seconds:.3f} s[/]")


def summer(demo: Demo) -> None:
    """Summer lands: drift is found and explained, and a new champion follows."""
    for month in (5, 6):
        for table in ("weather", "flights"):
            demo.act.ingest(table, demo.months[table][month])
    demo.act.materialize()
    traffic = demo.replay((7, 1), (7, 8), rows=8)
    traffic.join()
    demo.count(traffic.answers)
    live(demo)
    traffic = demo.replay((7, 8), (8, 1), rows=1)
    demo.land(7)
    demo.turn()
    demo.count(traffic.halt())
    for item in watching.drifts(demo.act.journal, pipeline.name):
        rows = sorted((row for row in item["features"] if row["drifted"]), key=lambda row: -row["effect"])[:4]
        what = ", ".join(f"{row['column']} {row['effect']:.2f}" for row in rows)
        demo.say(f"drift of {item['shard']} from {item['reference']}: {what or 'none'}. {item['cause']}")


def again(demo: Demo) -> None:
    """The champion is made again: its recorded code on its recorded shards, in a process of its own. Every bit of it must come out."""
    answer = reproducing.reproduce(demo.act.place, demo.act.stable_name(), on_step=lambda _: None)
    demo.reproduced = answer.outcome
    differs = ", ".join(item.what for item in answer.differs)
    demo.say(
        f"{answer.version} made again from what {answer.run} recorded, in {answer.seconds:.1f} s: [bold]{answer.outcome}[/] {differs}"
    )


def forget(demo: Demo) -> None:
    """One flight is erased: from tables, features, the prediction log and the online store; then every byte that is left is looked at."""
    key = pq.read_table(demo.months["flights"][4], columns=["flight_id"])["flight_id"][0].as_py()
    begun = time.monotonic()
    done = erasing.carry_out(demo.act, "flights", [key], landing=True)
    demo.traces = len(done.left)
    demo.say(
        f"{key}: {sum(done.rows.values())} row and {done.predictions} log records erased in {time.monotonic() - begun:.1f} s; "
        f"traces left: {len(done.left)}; models that saw it: {', '.join(done.versions)}"
    )


def live(demo: Demo) -> None:
    """Live quality by version."""
    for version, seen in watching.live_quality(demo.act.place).items():
        if seen["auroc"] is not None:
            demo.say(
                f"live: {version} AUROC {seen['auroc']:.4f}, calibration error {seen['ece']:.4f}, "
                f"{seen['labelled']:,} of {seen['predictions']:,} answers have their truth"
            )


def close(demo: Demo, kept: bool) -> dict[str, Any]:
    """The closing table and demo.json."""
    act, name = demo.act, pipeline.name
    known, history = versions.all_versions(act.journal, name), rollouts.history(act.journal, name)
    seen = watching.live_quality(act.place)
    alias = versions.alias(act.journal, name)
    table = Table(
        "version", "is", "gate", "AUROC", "calibration", "live AUROC", "rollout", title="models", title_justify="left"
    )
    outcome = {rollout.version: rollout.outcome for rollout in history}
    for version in known:
        auroc = seen.get(version.name, {}).get("auroc")
        table.add_row(
            version.name,
            alias[version.name],
            version.verdict + (" (overruled)" if version.override else ""),
            f"{version.metrics['auroc']:.4f}",
            f"{version.metrics['ece']:.4f}",
            f"{auroc:.4f}" if auroc is not None else "",
            outcome.get(version.name, "first deployment" if version is known[0] else ""),
        )
    out.print(table)
    why(demo)
    facts = {
        "seconds": round(time.monotonic() - demo.begun, 1),
        "versions": [version.name for version in known],
        "promoted": [rollout.version for rollout in history if rollout.outcome == "promoted"],
        "rolled_back": [rollout.version for rollout in history if rollout.outcome == "rolled_back"],
        "rollback_seconds": round(demo.rollback_seconds, 3) if demo.rollback_seconds is not None else None,
        "quarantined": demo.quarantined,
        "skewed": demo.skewed,
        "reproduced": demo.reproduced,
        "traces_of_the_erased": demo.traces,
        "drift": sorted({column for item in watching.drifts(act.journal, name) for column in item["drifted"]}),
        "requests": sum(answers.requests for answers in demo.traffic),
        "failed_requests": sum(answers.failed for answers in demo.traffic),
        "auroc": {version.name: round(version.metrics["auroc"], 4) for version in known},
        "live_auroc": {version: round(item["auroc"], 4) for version, item in seen.items() if item["auroc"] is not None},
    }
    Path("demo.json").write_text(json.dumps(facts, indent=2) + "\n")
    out.print_json(json.dumps(facts))
    root = os.path.relpath(demo.settings.root)
    out.print(
        f"Look on: [bold]ct status --verify --root {root}[/], [bold]ct rollout history --root {root}[/], [bold]ct drift --root {root}[/], [bold]ct tables flights --root {root}[/]; docs/."
    )
    if kept:
        out.print(f"The endpoint is up at {demo.settings.endpoint}; stop it with [bold]ct deploy --down --root {root}[/].")
    return facts


def why(demo: Demo) -> None:
    """From the last answer back to the rows its model was learned from."""
    found = report.why(demo.settings, pipeline, demo.last_id)
    table = Table("", "", title=f"ct why {demo.last_id}", title_justify="left", show_header=False)
    for key in ("score", "arm", "version", "truth"):
        table.add_row(key, str(found["prediction"][key]))
    table.add_row("route", f"epoch {found['route']['epoch']}: {found['route']['because']}")
    table.add_row("gate", found["version"]["because (1)"])
    table.add_row("run", f"{found['run']['id']}: {found['run']['cause']}")
    table.add_row("weights", found["run"]["weights"])
    table.add_row("code", found["run"]["code"])
    table.add_row(
        "rows",
        "; ".join(
            f"{key.split('/')[1]} {key.split('/')[2][:8]} ({text.split(',')[0]}…)"
            for key, text in list(found["rows"].items())[:3]
        ),
    )
    out.print(table)


STEPS: Iterable[tuple[str, Callable[[Demo], None]]] = (
    ("1  January to March land: the first model is trained, proven, served", first_model),
    ("2  April is lived: live traffic, labels when flights have landed", april_live),
    ("3  April lands: a new model takes over under traffic", promote_under_traffic),
    ("4  A broken shard is stopped", broken_shard),
    ("5  A harmful candidate is rolled back by itself", harmful_candidate),
    ("6  Summer: drift is found, explained, and answered", summer),
    ("7  The champion is made again, bit for bit", again),
    ("8  A flight is forgotten", forget),
)


def main() -> int:
    """Run all steps. Whatever happens, nothing is left running unless KEEP=1."""
    kept = os.environ.get("KEEP") == "1"
    folder = Path("demo").resolve()
    if folder.exists():
        local.stop(settings.load(folder))
        shutil.rmtree(folder)
    folder.mkdir()
    demo = Demo(folder)
    try:
        for title, act in STEPS:
            step(title)
            act(demo)
        facts = close(demo, kept)
    finally:
        if not kept:
            demo.act.down()
        demo.act.close()
    champion = routes.current(demo.act.journal, pipeline.name)
    good = facts["failed_requests"] == 0 and facts["promoted"] and facts["rolled_back"] and facts["quarantined"] and champion
    good = good and facts["reproduced"] == "identical"
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
