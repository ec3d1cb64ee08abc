"""Where things live: flags over environment over ct.toml over defaults. No secret has a default."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ct.errors import InvalidSettings

FILE = "ct.toml"
MOST_WORKERS = 1024
Workers = int | tuple[int, int]
"""A number of workers, or the least and the most."""
MOST_REPLICAS = 1000
Replicas = int | tuple[int, int]
"""A number of replicas, or the least and the most."""
HOOKS = (
    "confirm-rollout", "pre-rollout", "confirm-traffic-increase", "confirm-promotion", "post-rollout", "rollback", "event"
)  # fmt: skip
"""The hooks of a rollout: the first four are asked, the others told."""
_KEY = re.compile(r"ed25519:[A-Za-z0-9+/]{43}=")


class Settings(BaseModel):
    """One project's settings. Every field may stand in ct.toml, or in the environment as CT_<FIELD>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path = Path(".")
    pipeline: str = "pipeline.py"
    state: Path = Field(default=Path(".ct"), description="Folder for all local state, relative to root.")
    database_url: str = Field(
        default="", repr=False, description="SQLAlchemy URL of the journal and catalogue; SQLite in `state` when empty."
    )
    storage: str = Field(
        default="",
        description="Where tables, features and models are kept: a folder or s3://bucket/prefix; `state` when empty.",
    )
    online_url: str = Field(
        default="", repr=False, description="The online store: redis://host:port/db; SQLite in `state` when empty."
    )
    ray_address: str = Field(default="", description="Ray cluster; empty means one that ct starts on this machine.")
    landing: Path = Field(
        default=Path("landing"), description="Folder where shards arrive, one subfolder a table, relative to root."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    direct_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="A second port of each node, where replicas answer without Serve's proxy and wrapper; 0 for none. See docs/adr/0012.",
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="Host headers that are answered, besides loopback's own; beyond loopback any when empty."
    )
    tls_cert: Path | None = Field(default=None, description="PEM certificate chain; with tls_key the endpoint speaks HTTPS.")
    tls_key: Path | None = Field(default=None, description="PEM private key, readable by its owner alone.")
    grpc_port: int = Field(default=0, ge=0, le=65535, description="Port of gRPC inference.GRPCInferenceService; 0 for none.")
    replicas: Annotated[Replicas, BeforeValidator(lambda value: replicas_of(value))] = Field(
        default=1, description="Replicas of the endpoint: 2 keeps two, 2:8 as many as the load needs."
    )
    workers: Annotated[Workers, BeforeValidator(lambda value: workers_of(value))] = Field(
        default=0, description="Ray Train workers: 0 trains in one local process, 2 in a kept group, 1:4 in an elastic one."
    )
    webhook: str = Field(default="", repr=False, description="Alerts are posted here as JSON; empty means log only.")
    hooks: dict[str, str] = Field(
        default={}, repr=False, description="Webhooks of a rollout by the hook's name, such as confirm-promotion."
    )
    trusted_keys: tuple[str, ...] = Field(
        default=(), description="Public keys whose signature makes a model loadable; this user's own key when empty."
    )
    approvers: tuple[str, ...] = Field(
        default=(),
        description="User names who may overrule a gate; anyone when empty, and the journal says that nobody was named.",
    )
    tracking: Literal["on", "off"] = Field(
        default="on", description="Write a wandb run for each training, offline unless WANDB_MODE says otherwise."
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_rows: int = Field(default=1000, ge=1)
    max_model_bytes: int = Field(
        default=4 << 30, ge=0, description="Memory that the versions held in one replica may take together; 0 for any."
    )
    runtime: Literal["onnx", "torch", "aot"] = Field(
        default="onnx",
        description="What runs models: ONNX Runtime, torch, or machine code that each node compiles with AOTInductor.",
    )
    max_in_work: int = Field(
        default=128, ge=1, description="Requests that one replica works on at once; more are answered 503 with Retry-After."
    )
    request_seconds: float = Field(
        default=20.0, gt=0, le=3600, description="A request's deadline; its header x-request-timeout-seconds may shorten it."
    )
    body_seconds: float = Field(default=10.0, gt=0, le=3600, description="A request's body must have come by then.")

    @field_validator("storage")
    @classmethod
    def _known_place(cls, value: str) -> str:
        found = urlsplit(value)
        if found.scheme not in ("", "file", "s3") or (found.scheme == "s3" and not found.hostname) or found.username:
            raise ValueError("a folder, or s3://bucket/prefix without credentials")
        return value

    @field_validator("hooks", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("hooks")
    @classmethod
    def _known_hooks(cls, value: dict[str, str]) -> dict[str, str]:
        for name, url in value.items():
            if name not in HOOKS:
                raise ValueError(f"no hook is named {name!r}; there are {', '.join(HOOKS)}")
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"the webhook of {name} must begin with http:// or https://")
        return value

    @field_validator("trusted_keys", "approvers", "hosts", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("trusted_keys")
    @classmethod
    def _known_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_KEY.fullmatch(key) for key in value):
            raise ValueError("public keys as `ct init` prints them: ed25519:…")
        return value

    @property
    def home(self) -> Path:
        """The absolute folder of local state."""
        return (self.root / self.state).resolve()

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.home / 'journal.db'}"

    @property
    def catalog_database(self) -> str:
        """The Iceberg catalogue's database URL."""
        return self.database_url or f"sqlite:///{self.home / 'catalog.db'}"

    def place(self, name: str) -> str:
        """The URI or absolute path of one part of the storage: warehouse, artifacts, features, quarantine."""
        if self.storage.startswith("s3://"):
            return f"{self.storage.rstrip('/')}/{name}"
        folder = self.storage.removeprefix("file://")
        return str((self.root / folder).resolve() / name if folder else self.home / name)

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most replicas."""
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas, self.replicas)

    @property
    def inbox(self) -> Path:
        """Folder of the prediction log's segments."""
        return self.home / "inbox"

    @property
    def online(self) -> Path:
        """SQLite file of the online feature store."""
        return self.home / "online.db"

    @property
    def endpoint(self) -> str:
        """Base URL of the HTTP endpoint."""
        return f"{'https' if self.tls_cert else 'http'}://{self.host}:{self.port}"


def workers_of(value: object) -> Workers:
    """A number of workers, such as 2 or "2", or the least and the most, such as "1:4". Raises ValueError for anything else."""
    return _range_of(value, 0, MOST_WORKERS)


def replicas_of(value: object) -> Replicas:
    """A number of replicas, such as 2 or "2", or the least and the most, such as "2:8". Raises ValueError for anything else."""
    return _range_of(value, 1, MOST_REPLICAS)


def _range_of(value: object, least: int, most: int) -> int | tuple[int, int]:
    texts = (
        str(value).split(":")
        if isinstance(value, (int, str))
        else list(map(str, value))
        if isinstance(value, (list, tuple))
        else []
    )
    if len(texts) not in (1, 2) or not all(text.strip().isdecimal() and int(text) <= most for text in texts):
        raise ValueError(f"a number from {least} to {most}, or min:max such as 1:4")
    low, high = int(texts[0]), int(texts[-1])
    if len(texts) == 1 and low >= least:
        return low
    if not 1 <= low <= high:
        raise ValueError("min:max with 1 <= min <= max" if len(texts) == 2 else f"at least {least}")
    return low, high


def load(root: Path | str | None = None, environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """Settings for the project at `root` (default: CT_ROOT, else the working folder).

    `flags` that are None do not count. Raises InvalidSettings naming every wrong key.
    """
    environ = os.environ if environ is None else environ
    folder = Path(root or environ.get("CT_ROOT") or ".").resolve()
    values: dict[str, Any] = _read(folder / FILE)
    for secret in ("personal_key", "signing_key"):
        if secret in values:
            expected = f"the secret in the environment, as CT_{secret.upper()}, and in no file"
            raise InvalidSettings(f"{FILE} holds {secret}", expected, "move it and make a new one")
    known = set(Settings.model_fields)
    if unknown := set(values) - known:
        raise InvalidSettings(_unknown(sorted(unknown), known, FILE), "", f"mend {folder / FILE}")
    values |= {name: environ[f"CT_{name.upper()}"] for name in known - {"root"} if f"CT_{name.upper()}" in environ}
    values |= {name: value for name, value in flags.items() if value is not None}
    values["root"] = folder
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))} = {_shown(e)}: {e['msg']}" for e in error.errors()]
        raise InvalidSettings("; ".join(wrong), "values of the documented type", f"see {FILE} or the CT_ variables") from None


def _shown(error: Mapping[str, Any]) -> str:
    """A wrong value, unless it may hold a secret: such fields are in no text that a Settings makes of itself either."""
    field = Settings.model_fields.get(str(error["loc"][0])) if error["loc"] else None
    return repr(error.get("input")) if field is not None and field.repr and "@" not in str(error.get("input")) else "…"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not TOML: {error}", "key = value lines", "mend that line") from None


def _unknown(unknown: list[str], known: set[str], where: str) -> str:
    hints = []
    for key in unknown:
        near = get_close_matches(key, known, 1)
        hints.append(f"unknown key {key!r} in {where}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return "; ".join(hints)
