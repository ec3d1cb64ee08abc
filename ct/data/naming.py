"""Names for predictions, which anyone who has the endpoint's key can check without a look-up."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time

from ct.errors import InvalidRequest


class PredictionIds:
    """Names for predictions: time, replica, counter and a keyed check, so that a mistyped or forged id is known without a look-up."""

    def __init__(self, key: str, replica: str = "") -> None:
        self._key = bytes.fromhex(key)
        self._replica = int(replica or secrets.token_hex(4), 16).to_bytes(4, "big")
        self._count = 0

    def new(self) -> str:
        """An id that no other call returns, on this replica or another."""
        self._count = (self._count + 1) & 0xFFFF
        body = int(time.time() * 1000).to_bytes(6, "big") + self._replica + self._count.to_bytes(2, "big")
        return "p-" + base64.b32encode(body + self._check(body)).decode().rstrip("=").lower()

    def _check(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._key, digest_size=4).digest()

    def check(self, name: object) -> str:
        """`name` if this endpoint gave it. Raises InvalidRequest with status 404 otherwise."""
        if isinstance(name, str) and len(name) == 28 and name.startswith("p-"):
            try:
                raw = base64.b32decode(name[2:].upper() + "======")
            except (binascii.Error, ValueError):
                raw = b""
            if raw and hmac.compare_digest(self._check(raw[:12]), raw[12:]):
                return name
        raise InvalidRequest(
            f"unknown prediction id {str(name)[:80]!r}",
            "an id from an answer's prediction_id",
            "send it exactly as it was received",
            status=404,
            field="prediction_id",
        )
