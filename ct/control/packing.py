"""A fitted model as the files of a version: weights, spec, encoder, golden rows, graph, code."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ct.control import runs
from ct.control.fitting import Fitted
from ct.control.place import Place
from ct.control.rows import Rows, take
from ct.data import catalog, personal
from ct.features.declare import to_spec
from ct.features.encode import Encoder
from ct.registry.files import CODE, ModelSpec
from ct.roles import Columns
from ct.training import export

GOLDEN_ROWS = 64


def files_of(place: Place, run: runs.Run, version: str, data: Rows, fitted: Fitted) -> dict[str, bytes]:
    """The files of `version`."""
    line = place.pipeline
    golden = take(data.columns, np.flatnonzero(data.split.judge).astype(np.int64)[:GOLDEN_ROWS])
    spec = ModelSpec(
        endpoint=line.name,
        version=version,
        key=line.table.keys,
        time=line.table.time,
        request=request_kinds(place),
        segments=tuple(line.segments),
        features=tuple(to_spec(feature) for feature in line.features),
        label={"column": line.label.column, "above": line.label.above, "known_at": line.label.known_at},
        objective=asdict(line.label.objective),
        calibration=fitted.calibration.to_json(),
        threshold=fitted.threshold,
        observe={table.name: catalog.kinds(place.journal, table.name) for table in line.all_tables},
        table=line.table.name,
        personal={
            table.name: {part.column: personal.kind(part) for part in table.personal}
            for table in line.all_tables
            if table.personal
        },
        lineage={
            "run": run.id,
            "features": data.digest,
            "code": run.code,
            "weights": fitted.trained.digest,
            "seed": run.seed,
            "contract": fitted.trained.contract["id"],
        },
    )
    made = export.files(
        fitted.trained,
        fitted.model,
        objective=line.label.objective,
        calibration=fitted.calibration,
        spec=spec.to_bytes(),
        encoder=fitted.encoder.to_json(),
        golden=golden_rows(fitted.encoder, golden),
    )
    return made | {CODE: place.artifacts.get(run.code)}


def golden_rows(encoder: Encoder, columns: Columns) -> dict[str, Any]:
    """Feature values of a few rows and their encoded form; export adds the scores."""
    return {
        "features": {name: [_plain(value) for value in values] for name, values in columns.items()},
        "numeric": encoder.numeric(columns),
        "category": encoder.category(columns),
        "shape": encoder.shape,
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return None if np.isnan(value) else float(value)


def request_kinds(place: Place) -> dict[str, str]:
    """Each request column's kind, as the table's contract knows it."""
    known = catalog.kinds(place.journal, place.pipeline.table.name)
    return {name: known[name] for name in place.pipeline.request_columns}
