"""Every door of the endpoint: its methods, its path, the role it asks for, and the content types that it takes. What is not here is not there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Role = Literal["", "predict", "feedback", "read", "operate", "admin"]

JSON = "application/json"
BINARY = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"

PARTS = {"model": "[a-z0-9_-]{1,63}", "version": "[a-z0-9]{1,20}", "table": "[a-z0-9_-]{1,63}"}
_READS = ("GET", "HEAD")


@dataclass(frozen=True)
class Path:
    """A door. `role` is "" where no token is asked for; `template` is the path as OpenAPI writes it; `takes` are a body's content types."""

    name: str
    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    role: Role
    template: str
    summary: str
    takes: tuple[str, ...] = ()


def _path(name: str, methods: tuple[str, ...], template: str, role: Role, summary: str, takes: tuple[str, ...] = ()) -> Path:
    pattern = re.sub(r"\{(\w+)\}", lambda found: f"(?P<{found[1]}>{PARTS[found[1]]})", template)
    return Path(name, methods, re.compile(pattern), role, template, summary, takes)


PATHS: tuple[Path, ...] = (
    _path("live", _READS, "/healthz", "", "Does the process answer?"),
    _path("live", _READS, "/v2/health/live", "", "Does the process answer?"),
    _path("ready", _READS, "/v2/health/ready", "", "Is a version in force?"),
    _path("model-ready", _READS, "/v2/models/{model}/ready", "", "Is the model ready?"),
    _path("model-ready", _READS, "/v2/models/{model}/versions/{version}/ready", "", "Is this version loaded?"),
    _path("predict", ("POST",), "/predict", "predict", "Score one row, a list of rows, or an Arrow stream", (JSON, ARROW)),
    _path("infer", ("POST",), "/v2/models/{model}/infer", "predict", "Score tensors", (JSON, BINARY)),
    _path(
        "infer",
        ("POST",),
        "/v2/models/{model}/versions/{version}/infer",
        "predict",
        "Score tensors on one loaded version; never judged",
        (JSON, BINARY),
    ),
    _path("labels", ("POST",), "/labels", "feedback", "Tell what came true of predictions", (JSON,)),
    _path("observe", ("POST",), "/observe/{table}", "feedback", "Push fresh rows of a source table", (JSON,)),
    _path("metrics", _READS, "/metrics", "read", "Counters in the Prometheus text format"),
    _path("server", _READS, "/v2", "read", "The server's name, version and extensions"),
    _path("model", _READS, "/v2/models/{model}", "read", "The model's inputs and outputs"),
    _path("model", _READS, "/v2/models/{model}/versions/{version}", "read", "The model's inputs and outputs"),
    _path("openapi", _READS, "/openapi.json", "read", "This description"),
)


@lru_cache(1024)
def found(path: str) -> tuple[Path, re.Match[str]] | None:
    """The door of a decoded path and its parts; None when there is none. Paths are compared as they are: no dots, slashes or case are mended."""
    for door in PATHS:
        match = door.pattern.fullmatch(path)
        if match is not None:
            return door, match
    return None
