"""The error tree of `ct`. Every error says what was found, what was expected and what to do.

CtError                     catch this to catch everything `ct` raises on purpose
├── InvalidPipeline         the user's file or a part of it is wrong
├── InvalidSettings         ct.toml, the environment or a flag is wrong
├── InvalidShard            an arriving file cannot become a snapshot
├── InvalidRequest          a prediction request or a label is wrong
├── Conflict                somebody else changed the same thing first; read again and retry
├── Unauthenticated         who asks has shown no valid token
├── Forbidden               who asks may not do this
├── NotFound                no such table, version, prediction, rollout
├── Corrupt                 stored bytes are not the bytes that were written
│   └── Untrusted           a model's files are not signed by a trusted key
├── TrainingFailed          a run cannot give a usable model (diverged, too few rows)
└── Unavailable             a needed service does not answer
"""

from __future__ import annotations


class CtError(Exception):
    """Base of all errors. `found`, `expected` and `remedy` are whole phrases without a full stop."""

    def __init__(self, found: str, expected: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(found, expected, remedy)

    def __str__(self) -> str:
        parts = [self.found]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.remedy:
            parts.append(f"do: {self.remedy}")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, str]:
        """The error as plain data for JSON answers."""
        return {
            "error": type(self).__name__,
            "found": self.found,
            "expected": self.expected,
            "remedy": self.remedy,
        }


class InvalidPipeline(CtError):
    """The user's pipeline file or one of its parts is wrong."""


class InvalidSettings(CtError):
    """ct.toml, an environment variable or a flag is wrong."""


class InvalidShard(CtError):
    """An arriving file cannot become a snapshot."""


class InvalidRequest(CtError):
    """A prediction request or a label is wrong. `status` is the HTTP status it answers with."""

    def __init__(self, found: str, expected: str = "", remedy: str = "", *, status: int = 422, field: str = "") -> None:
        super().__init__(found, expected, remedy)
        self.status = status
        self.field = field


class Conflict(CtError):
    """Somebody else changed the same thing first."""


class Unauthenticated(CtError):
    """Who asks has shown no valid token."""


class Forbidden(CtError):
    """Who asks has not the role for it."""


class NotFound(CtError):
    """No such table, version, prediction or rollout."""


class Corrupt(CtError):
    """Stored bytes are not the bytes that were written."""


class Untrusted(Corrupt):
    """A model's files are not signed by a trusted key, or there is no key to sign with."""


class TrainingFailed(CtError):
    """A run cannot give a usable model. `state` is how it ended: "diverged" (its numbers went astray), "invalid" (its rows are not fit to train
    on), or "failed"."""

    def __init__(self, found: str, expected: str = "", remedy: str = "", *, state: str = "failed") -> None:
        super().__init__(found, expected, remedy)
        self.state = state


class Unavailable(CtError):
    """A needed service does not answer."""
