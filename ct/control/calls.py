"""Calls of the endpoint over HTTP, for the command line and for jobs. The URL comes from the settings, never from a caller."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ct.errors import CtError, Forbidden, InvalidRequest, Unauthenticated, Unavailable
from ct.governance import secretfiles
from ct.settings import Settings


def post(settings: Settings, path: str, body: dict[str, Any], *, timeout: float = 30.0) -> Any:
    """POST `body` as JSON and return the answer, with this process's token if it has one.

    Raises InvalidRequest, Unauthenticated or Forbidden with the endpoint's words, or Unavailable.
    """
    headers = {"content-type": "application/json"} | authorization(os.environ)
    request = urllib.request.Request(settings.endpoint + path, json.dumps(body).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=_trusted(settings)) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise _refusal(error) from None
    except (OSError, TimeoutError) as error:
        raise Unavailable(
            f"{settings.endpoint} does not answer: {error}", "a running endpoint", "start it with `ct deploy`"
        ) from None


def authorization(environ: Mapping[str, str]) -> dict[str, str]:
    """The header that shows CT_TOKEN, or what the file CT_TOKEN_FILE holds; {} without. Raises InvalidSettings for a file others can read."""
    secret = environ.get("CT_TOKEN", "").strip()
    if not secret and (file := environ.get("CT_TOKEN_FILE")):
        secret = secretfiles.read(Path(file))
    return {"authorization": f"Bearer {secret}"} if secret else {}


def _trusted(settings: Settings) -> ssl.SSLContext | None:
    """For HTTPS the system's authorities, and the project's own certificate, which nobody else may have signed."""
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(settings.root / settings.tls_cert)
    return context


def _refusal(error: urllib.error.HTTPError) -> CtError:
    try:
        said = json.loads(error.read())
        found, expected, remedy = said["found"], said.get("expected", ""), said.get("remedy", "")
    except (ValueError, KeyError, TypeError):
        return InvalidRequest(f"the endpoint answered {error.code}", "2xx", "see its log", status=error.code)
    match error.code:
        case 401:
            return Unauthenticated(found, "a token in CT_TOKEN, or in the file CT_TOKEN_FILE", remedy)
        case 403:
            return Forbidden(found, expected, remedy)
        case _:
            return InvalidRequest(found, expected, remedy, status=error.code)
