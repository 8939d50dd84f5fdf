"""Parses a request body as one JSON object, more strictly than `json.loads`.

RFC 8259 leaves duplicate members, depth and size to the receiver, and `json.loads` accepts NaN.
Two receivers that disagree about such a body would book different things, so it is rejected.
"""

from __future__ import annotations

import json
import re
from typing import Any

# A booking is flat. The limit applies to unknown members: `json` raises RecursionError at a depth
# that differs between Python versions.
MAX_DEPTH = 64

# An unterminated string matches to the end of the text, which keeps the search linear.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)

# How an object starts if a shell removed the double quotes, kept the backslashes before them, or
# passed on single quotes.
_WITHOUT_QUOTES = re.compile(r"\s*(?:'|\{\s*(?:[A-Za-z_']|\\\"))")
_SEND_OBJECT = 'send {"tenant_id": ..., "start_time_utc": ..., "idempotency_key": ...}'


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the members of the JSON object in `body`.

    Raise TypeError or ValueError, whose message says what is wrong, if the body is not one.
    """
    if b"\0" in body[:2] or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16 or UTF-32; encode it in UTF-8")
    try:
        source = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}; encode it in UTF-8") from None
    if source.startswith("\ufeff"):
        raise ValueError("it starts with a byte order mark; remove it")
    if not source.strip():
        raise ValueError(f"it is empty; {_SEND_OBJECT}")
    if source.count("[") + source.count("{") > MAX_DEPTH:
        _reject_deep_nesting(source)
    try:
        members = _DECODER.decode(source)
    except json.JSONDecodeError:
        if not _WITHOUT_QUOTES.match(source):
            raise
        raise ValueError(
            "its names are not in double quotes; if a shell removed them, quote them for that "
            "shell, or send a file"
        ) from None
    if not isinstance(members, dict):
        raise TypeError(f"it is not an object; {_SEND_OBJECT}")
    return members


def shorten(name: str) -> str:
    """Cut a name that the client chose to a length that fits an error message."""
    return name if len(name) <= 40 else f"{name[:40]}..."


def _reject_deep_nesting(source: str) -> None:
    depth = 0
    for token in _STRING_OR_BRACKET.findall(source):
        depth += (token in "[{") - (token in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the member {shorten(duplicate)} twice; send it once")
    return members


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Integers are parsed as floats: no field is a number, and `int` rejects more than 4,300 digits.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant, parse_int=float
)
