"""Strict JSON: every object that is ambiguous or not finite is refused, every other one is read as it stands; found by search, not by list."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.errors import InvalidRequest
from ct.serving import bodies

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
CELLS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    CELLS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=12
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def refused(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as found:
        bodies.read(data)
    return found.value


@given(OBJECTS, st.booleans(), st.sampled_from((None, 1)))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_what_is_right_is_read_as_it_stands(value: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    """Escapes, colons and braces within texts included."""
    assert bodies.read(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4), VALUES, st.integers(0, 4), st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_field_given_twice_is_found_wherever_it_is(
    value: dict[str, Any], other: Any, depth: int, data: st.DataObject
) -> None:
    """Also when the second spells the name with escapes, and whatever colons the two values hold."""
    name = data.draw(st.sampled_from(sorted(value)))
    again = "".join(f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else letter for letter in name)
    spelled = data.draw(st.sampled_from((json.dumps(name), f'"{again}"')))
    text = f"{json.dumps(value)[:-1]}, {spelled}: {json.dumps(other)}}}"
    for at in range(depth):
        text = f'{{"a{at}": [{text}]}}'
    error = refused(text.encode())
    assert (error.status, error.field) == (400, name[:100])


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('{"a": NaN}', 422),
        ('{"a": -Infinity}', 422),
        ('{"a": 1e999}', 422),
        ('{"a": -1e999}', 422),
        ('{"a": [{"b": 1' + "0" * 400 + "}]}", 422),
        ('{"NaN": 1', 400),
        ('{"a": "x\\u0000"}', 422),
        ('{"a": "x\\\\\\u0000"}', 422),
        ('{"a": "\\ud800"}', 400),
        ('{"a": "\\udc00x"}', 400),
        ("[" * 100_000, 400),
        ('{"a":' * 100_000, 400),
        ('{"a": ' + "[" * 20 + "]" * 20 + "}", 400),
        ("{" + ",".join(f'"{at}":0' for at in range(1_000_000)) + "}", 400),
        ("{" + ",".join('"a":0' for _ in range(200_000)) + "}", 400),
        ("", 400),
        ("\ufeff{}", 400),
        ("[]", 422),
        ("null", 422),
        ('{"a": 1} {}', 400),
        ("{'a': 1}", 400),
        ('{"a": 01}', 400),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_wrong_is_named(text: str, status: int) -> None:
    assert refused(text.encode()).status == status


def test_invalid_utf8_is_refused() -> None:
    for data in (b'{"a": "\xff"}', b'{"a": "\xc0\x80"}', b'{"a": "\xed\xa0\x80"}', b"\xff\xfe{\0}\0"):
        assert refused(data).status == 400


def test_an_escaped_backslash_before_u0000_is_text() -> None:
    assert bodies.read(b'{"a": "\\\\u0000"}') == {"a": "\\u0000"}
    assert bodies.read(b'{"a": "\\\\u003a\\u003a"}') == {"a": "\\u003a:"}


@pytest.mark.parametrize("piece", [b'"\\"', b"\\", b'"', b"1", b"-", b"NaN", b'"a":', b"{", b":", b"\\u003a", b"e1"])
def test_no_body_costs_more_than_its_length(piece: bytes) -> None:
    """A megabyte of whatever is judged in well under a second: no look at it is quadratic."""
    begun = time.perf_counter()
    refused(b'{"a": ' + piece * ((1 << 20) // len(piece)))
    assert time.perf_counter() - begun < 10


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=500, derandomize=True, deadline=None)
def test_any_bytes_are_an_object_or_a_named_error(data: bytes) -> None:
    found: Any = None
    try:
        found = bodies.read(data)
    except InvalidRequest as error:
        found = error
    if isinstance(found, InvalidRequest):
        assert found.found
        assert found.status in (400, 422)
    else:
        assert found == json.loads(data)


def test_the_check_is_cheap() -> None:
    """Over parsing alone, for a body of 300 bytes, at the best of many tries."""
    row = {f"column_{at}": "2024-05-01T10:00:00Z" if at % 3 else at * 1.5 for at in range(10)}
    data = orjson.dumps(row)
    assert 250 < len(data) < 350

    def best(act: Any) -> float:
        took = []
        for _ in range(2000):
            begun = time.perf_counter()
            act(data)
            took.append(time.perf_counter() - begun)
        return min(took)

    assert not re.search(rb"\\u", data)
    assert best(bodies.read) - best(orjson.loads) < 10e-6
