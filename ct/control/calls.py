"""Calls of the endpoint over HTTP, for the command line and for jobs. The URL comes from the settings, never from a caller."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from ct.errors import InvalidRequest, Unavailable
from ct.settings import Settings


def post(settings: Settings, path: str, body: dict[str, Any], *, timeout: float = 30.0) -> Any:
    """POST `body` as JSON and return the answer. Raises InvalidRequest with the endpoint's words, or Unavailable."""
    request = urllib.request.Request(
        settings.endpoint + path, json.dumps(body).encode(), {"content-type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise _refusal(error) from None
    except (OSError, TimeoutError) as error:
        raise Unavailable(
            f"{settings.endpoint} does not answer: {error}", "a running endpoint", "start it with `ct deploy`"
        ) from None


def _refusal(error: urllib.error.HTTPError) -> InvalidRequest:
    try:
        said = json.loads(error.read())
        return InvalidRequest(said["found"], said.get("expected", ""), said.get("remedy", ""), status=error.code)
    except (ValueError, KeyError, TypeError):
        return InvalidRequest(f"the endpoint answered {error.code}", "2xx", "see its log", status=error.code)
