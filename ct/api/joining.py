"""How a process that lives long keeps to the cluster that serves: joined anew where another one runs since, and never one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ct.errors import Unavailable
from ct.serving import local

if TYPE_CHECKING:
    from ct.control.act import Actor


class Away:
    """In the place of the endpoint's control side while no cluster runs: whatever is asked of it raises Unavailable.

    So a rollback is journaled all the same, and replicas that have lost their cluster follow the journal.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise Unavailable(self._why, "a cluster that runs the endpoint", "run `ct deploy`; the journal has what was decided")


def join(act: Actor) -> None:
    """Connect this process to the cluster of the settings, or to the head that runs now."""
    vars(act).pop("serving", None)  # it may belong to a cluster that is gone
    try:
        local.connect(act.settings)
    except (Unavailable, ConnectionError, RuntimeError) as error:
        found = error.found if isinstance(error, Unavailable) else f"no Ray cluster: {type(error).__name__}"
        vars(act)["serving"] = Away(found)
