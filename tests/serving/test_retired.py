"""What a replica tells of versions that are gone: of the last ones, so that a scrape does not grow with every version that ever answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ct.serving.slots import Slots
from ct.serving.telemetry import RETIRED, Telemetry


def told(telemetry: Telemetry, *loaded: str) -> set[str]:
    slots: Any = SimpleNamespace(
        loaded={name: SimpleNamespace(in_flight=0, size=1, predictor=SimpleNamespace(runtime="onnx")) for name in loaded},
        live=None,
        epoch=1,
        missing=(),
    )
    telemetry._route = lambda *_: []  # type: ignore[method-assign]
    samples = telemetry.samples(cast(Slots, slots))
    return {labels["version"] for name, labels, _ in samples if name == "ct_predictions_total"}


def test_the_last_retired_versions_are_told_and_no_more() -> None:
    telemetry, made = Telemetry("tiny"), [f"v{at}" for at in range(100)]
    for version in made:
        telemetry.predicted("canary", version, 1, 0.01)
    assert told(telemetry, "v0", "v99") == {"v0", *made[-1 - RETIRED :]}, "what is loaded is told however old it is"
    telemetry.predicted("canary", "v0", 1, 0.01)
    (count,) = [
        value
        for name, labels, value in telemetry.samples(cast(Slots, SimpleNamespace(loaded={"v0": SimpleNamespace(in_flight=0, size=1, predictor=SimpleNamespace(runtime="onnx"))}, live=None, epoch=1, missing=())))
        if name == "ct_predictions_total" and labels["version"] == "v0"
    ]  # fmt: skip
    assert count == 2, "its counts go on"
