"""Running quality checks over the rows of one arriving shard, and what follows from a breach. Pure; the kinds of check are in `rules`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, Rows, codes, count, is_text, missing, texts
from ct.data.past import Before
from ct.errors import InvalidPipeline
from ct.roles import Check, Columns, Past

EXAMPLES = 3
REJECT, QUARANTINE, WARN = "reject", "quarantine", "warn"


@dataclass(frozen=True)
class Reason:
    """Why a shard was refused, rows set aside or a warning given: the check, what was found, the number of rows, and a few of them."""

    check: str
    found: str
    rows: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """A check with rows that keep it and rows that break it, by which the contract tests try a kind of check."""

    check: Check
    keeps: Columns
    breaks: Columns
    before: Past = field(default_factory=Before)


@dataclass(frozen=True)
class Findings:
    """What the checks say: why the shard is refused, what is only worth a warning, and which rows are set aside and why, shape [n]."""

    refused: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    aside: tuple[Reason, ...]
    rows_aside: NDArray[np.bool_]
    causes: NDArray[np.object_]


@dataclass(frozen=True)
class _Severe:
    """A check whose breach has other consequences."""

    check: Check
    severity: str
    up_to: float = 0.0

    def columns(self) -> tuple[str, ...]:
        return self.check.columns()

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        return self.check.violations(rows, past)

    def explain(self) -> str:
        return self.check.explain()

    def limit(self) -> float:
        return self.check.limit()


def warn(check: Check) -> Check:
    """The same check, whose breach publishes the shard all the same and warns the table's owner."""
    return _Severe(check, WARN)


def quarantine(check: Check, *, up_to: float = 0.1) -> Check:
    """The same check, whose breach sets the rows aside that break it and publishes the others.

    A shard of which more than the share `up_to` would be set aside is refused whole, and so is one that breaks a rule on the shard as a whole.
    """
    if not 0 < up_to <= 1:
        raise InvalidPipeline(f"quarantine(up_to={up_to})", "a share in (0, 1]", "for example 0.1")
    return _Severe(check, QUARANTINE, up_to)


def share(value: float) -> float:
    """`value` if it is a share of the rows that may break a check. Raises InvalidPipeline."""
    if not 0 <= value < 1:
        raise InvalidPipeline(f"share={value}", "a share in [0, 1)", "for example 0.01 for one row in a hundred")
    return value


def run(
    checks: Iterable[Check], rows: Columns, past: Past, *, time: str = "", hidden: Collection[str] = ()
) -> tuple[Findings, Columns]:
    """What the checks find in the rows, and the rows that remain once those set aside are gone.

    Rows are set aside first; the other checks see what is left. `time` names the event time's column, `hidden` columns whose values
    no reason may quote. Raises InvalidPipeline when a check itself fails.
    """
    declared = tuple(checks)
    setting = [check for check in declared if _severity(check) == QUARANTINE]
    total = count(rows)
    refused: list[Reason] = []
    aside: list[Reason] = []
    warnings: list[Reason] = []
    gone, causes = np.zeros(total, dtype=np.bool_), np.empty(total, dtype=object)
    for check in setting:
        broken, reason = _judged(check, rows, past, time, hidden)
        if reason is None:
            continue
        if broken.shape == () or reason.rows > getattr(check, "up_to", 1.0) * total:
            refused.append(reason)
            continue
        aside.append(reason)
        causes[broken & ~gone] = reason.check
        gone |= broken
    left = rows if not gone.any() else only(rows, ~gone)
    for check in declared:
        if _severity(check) != QUARANTINE:
            _, reason = _judged(check, left, past, time, hidden)
            if reason is not None:
                (warnings if _severity(check) == WARN else refused).append(reason)
    return Findings(tuple(refused), tuple(warnings), tuple(aside), gone, causes), left


def sets_aside(checks: Iterable[Check]) -> bool:
    """Is there a check whose breach sets rows aside?"""
    return any(_severity(check) == QUARANTINE for check in checks)


def only(rows: Columns, kept: NDArray[np.bool_]) -> Columns:
    """The rows where `kept` is true."""
    if isinstance(rows, Rows):
        return Rows(rows.table.filter(kept))
    return {name: values[kept] for name, values in rows.items()}


def _severity(check: Check) -> str:
    return str(getattr(check, "severity", REJECT))


def _judged(
    check: Check, rows: Columns, past: Past, time: str, hidden: Collection[str]
) -> tuple[NDArray[np.bool_], Reason | None]:
    """Where the check is broken, and the reason if that is more than it allows."""
    broken, total = _broken(check, rows, past), count(rows)
    if broken.shape == ():
        return broken, Reason(check.explain(), _whole(check, rows, past), total) if broken else None
    often = int(np.count_nonzero(broken))
    if not often > check.limit() * total:
        return broken, None
    allowed = f" (allowed {check.limit():.2%})" if check.limit() else ""
    where = "".join(f", {part}" for part in _where(check, rows, broken, time, hidden))
    found = f"{check.explain()}: broken by {often:,} of {total:,} rows{allowed}{where}"
    found = "".join(letter if letter.isprintable() else "?" for letter in found)  # it goes to terminals and logs
    return broken, Reason(check.explain(), found, often, _examples(check, rows, broken, hidden))


def _broken(check: Check, rows: Columns, past: Past) -> NDArray[np.bool_]:
    total = count(rows)
    try:
        broken = np.asarray(check.violations(rows, past), dtype=np.bool_)
    except Exception as error:  # a user's check may raise anything
        found = f"check {check!r} fails: {type(error).__name__}: {error}"
        raise InvalidPipeline(found, "a check that fits the column's type", "mend the check") from error
    if broken.shape not in ((total,), ()):
        found = f"check {check!r} returns shape {broken.shape}"
        raise InvalidPipeline(found, f"one truth value a row, ({total},), or one for the shard, ()", "mend it")
    return broken


def _whole(check: Check, rows: Columns, past: Past) -> str:
    """What a rule on the shard as a whole has to say, if it has `found(rows, past)`; else that it is broken."""
    inner = getattr(check, "check", check)
    found = inner.found(rows, past) if hasattr(inner, "found") else "broken by the shard as a whole"
    return f"{check.explain()}: {found}"


def _where(check: Check, rows: Columns, broken: NDArray[np.bool_], time: str, hidden: Collection[str]) -> Iterator[str]:
    """Where the broken rows sit: what they lack, their days, and any text that nearly all of them and few others share."""
    for name in check.columns():
        if lacking := int(np.count_nonzero(missing(rows, name) & broken)):
            yield f"{name} missing in {lacking:,}"
    if time in rows and rows[time].dtype == np.int64:
        at = rows[time][broken]
        at = at[at != NO_TIME]
        if len(at):
            first, last = _day(at.min()), _day(at.max())
            yield f"on {first}" if first == last else f"from {first} to {last}"
    for name in rows:
        if name not in hidden and is_text(rows, name):
            yield from _shared(name, rows, broken)


def _shared(name: str, rows: Columns, broken: NDArray[np.bool_]) -> Iterator[str]:
    often = int(np.count_nonzero(broken))
    column = texts(rows, name)
    among, values = codes(column.filter(broken))
    known = among[among >= 0]
    if not len(known):
        return
    held = np.bincount(known)
    value, number = values[int(held.argmax())], int(held.max())
    if number >= 0.9 * often and (pc.sum(pc.equal(column, value)).as_py() or 0) < 0.5 * len(column):
        yield f"{number / often:.0%} of them with {name} {value[:40]}"


def _day(value: int) -> str:
    return _moment(value)[:10]


def _moment(value: int) -> str:
    # Not datetime.fromtimestamp: a broken time may lie in any year.
    return f"{np.datetime64(int(value), 'us').astype('datetime64[s]')}Z"


def _examples(check: Check, rows: Columns, broken: NDArray[np.bool_], hidden: Collection[str]) -> tuple[str, ...]:
    names = [name for name in check.columns() if name not in hidden]
    told = []
    for index in np.flatnonzero(broken)[:EXAMPLES]:
        values = ", ".join(f"{name}={_shown(rows[name][index])}" for name in names)
        told.append(f"row {index}: {values}" if values else f"row {index}")
    return tuple(told)


def _shown(value: Any) -> str:
    if isinstance(value, np.int64):
        return "missing" if value == NO_TIME else _moment(int(value))
    if isinstance(value, float):
        return "missing" if np.isnan(value) else f"{value:.6g}"
    return "missing" if value is None else repr(value[:40])
