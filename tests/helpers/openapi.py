"""A validator for the JSON Schema that openapi.json uses, and `assert_documented`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.helpers.servers import ROOT, Response

DOCUMENT = json.loads((ROOT / "bookings" / "openapi.json").read_bytes())
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
# `info` says once that every path also supports HEAD and OPTIONS.
REQUESTS = [
    (method, path)
    for path, operations in DOCUMENT["paths"].items()
    for method in (*(name.upper() for name in operations), "HEAD", "OPTIONS")
]
each_request = pytest.mark.parametrize(
    ("method", "path"), REQUESTS, ids=[f"{method.lower()} {path}" for method, path in REQUESTS]
)
JSON_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}
ANNOTATIONS = {"description", "examples", "default"}

# Headers of every response, which the document describes once.
FIXED_HEADERS = {"Date", "Cache-Control", "X-Content-Type-Options", "X-Request-ID"}
FRAMING_HEADERS = {"Content-Type", "Content-Length", "Connection"}


def resolved(node: Any) -> Any:
    """Follow `$ref` to the node it names."""
    while "$ref" in node:
        assert set(node) == {"$ref"}
        first, *way = node["$ref"].split("/")
        assert first == "#"
        node = DOCUMENT
        for name in way:
            node = node[name]
    return node


def schema_errors(schema: Any, value: Any, at: str = "") -> list[str]:
    """List how the value violates the schema; KeyError for a keyword that KEYWORDS lacks."""
    schema = resolved(schema)
    found = []
    for keyword in schema.keys() - ANNOTATIONS:
        found += [f"{at or '/'}: {keyword}: {error}" for error in KEYWORDS[keyword](schema, value)]
        if keyword == "properties" and isinstance(value, dict):
            for name in schema[keyword].keys() & value.keys():
                found += schema_errors(schema[keyword][name], value[name], f"{at}/{name}")
        if keyword == "additionalProperties" and isinstance(value, dict):
            for name in value.keys() - schema.get("properties", {}).keys():
                inner = schema[keyword]
                wrong = inner is False or schema_errors(inner, value[name], f"{at}/{name}")
                found += [f"{at}/{name}: {wrong}"] if wrong else []
        if keyword == "items" and isinstance(value, list):
            for index, item in enumerate(value):
                found += schema_errors(schema[keyword], item, f"{at}/{index}")
    return found


def fits(schema: Any, value: Any) -> bool:
    return not schema_errors(schema, value)


def _rule(types: Any, holds: Any) -> Any:
    """Return a keyword for values of these types; `holds` takes its operand and a value."""

    def bind(keyword: str) -> Any:
        def errors(schema: Any, value: Any) -> list[str]:
            # A Python bool is an int; a JSON boolean is no number.
            is_boolean = isinstance(value, bool) and types is not object
            applies = isinstance(value, types) and not is_boolean
            return [ascii(value)[:100]] if applies and not holds(schema[keyword], value) else []

        return errors

    return bind


def _python_pattern(pattern: str) -> str:
    """Translate an ECMA pattern: Python's $ also matches before a final line break."""
    assert pattern.startswith("^") and pattern.endswith("$")
    return pattern[:-1] + r"\Z"


def _has_type(name: str, value: Any) -> bool:
    return isinstance(value, JSON_TYPES[name]) and isinstance(value, bool) == (name == "boolean")


KEYWORDS: dict[str, Any] = {
    name: rule(name)
    for name, rule in {
        "type": _rule(object, _has_type),
        "enum": _rule(object, lambda values, v: v in values),
        "const": _rule(object, lambda only, v: type(v) is type(only) and v == only),
        "minimum": _rule(int, lambda least, v: v >= least),
        "maximum": _rule(int, lambda most, v: v <= most),
        "minLength": _rule(str, lambda least, v: len(v) >= least),
        "maxLength": _rule(str, lambda most, v: len(v) <= most),
        "pattern": _rule(str, lambda pattern, v: re.search(_python_pattern(pattern), v)),
        "maxItems": _rule(list, lambda most, v: len(v) <= most),
        "required": _rule(dict, lambda names, v: set(names) <= set(v)),
        "properties": _rule(dict, lambda *_: True),
        "additionalProperties": _rule(dict, lambda *_: True),
        "items": _rule(list, lambda *_: True),
    }.items()
}


# Problem types that an operation does not list: rows of the table in the description of Rejected.
_REJECTED = DOCUMENT["components"]["responses"]["Rejected"]
REJECTED_TYPES: dict[str, tuple[int, str]] = {
    name: (int(status), title)
    for status, name, title in re.findall(
        r"^\| ([0-9]+) \| ([a-z-]+) \| (.+) \|$", _REJECTED["description"], re.MULTILINE
    )
}


def operation_of(method: str, path: str) -> dict[str, Any]:
    """Return the operation, that of GET for HEAD, and what `info` says of other methods."""
    operations = DOCUMENT["paths"][path]
    found: dict[str, Any] | None = operations.get("get" if method == "HEAD" else method.lower())
    if found:
        return found
    options = {"204": {"headers": {"Allow": {"$ref": "#/components/headers/Allow"}}}}
    rejected = {"default": {"$ref": "#/components/responses/Rejected"}}
    return {"responses": {**options, **rejected} if method == "OPTIONS" else rejected}


def examples_of(media: dict[str, Any]) -> list[Any]:
    """Return the values of `example` and `examples` of a media type, header or parameter."""
    named = media.get("examples", {}).values()
    return [*([media["example"]] if "example" in media else []), *(each["value"] for each in named)]


def assert_documented(response: Response, method: str, path: str) -> None:
    """Assert that the document has this response: its status, headers, body and problem type."""
    documented = operation_of(method, path)["responses"]
    is_specific = str(response.status) in documented
    assert is_specific or response.status >= 400, (method, path, response.status)
    expected = resolved(documented[str(response.status) if is_specific else "default"])
    headers = {name: resolved(header) for name, header in expected.get("headers", {}).items()}
    required = {name for name, header in headers.items() if header.get("required")}
    present = set(response.headers)
    assert present >= FIXED_HEADERS | required
    assert present - FIXED_HEADERS - FRAMING_HEADERS <= set(headers)
    for name in headers.keys() & present:
        (value,) = response.headers.get_all(name) or []
        number = resolved(headers[name]["schema"]).get("type") == "integer"
        errors = schema_errors(headers[name]["schema"], int(value) if number else value)
        assert not errors, (name, value)
    if method == "HEAD" or response.status == 204:
        return
    media = expected["content"][response.headers["Content-Type"]]
    errors = schema_errors(media["schema"], response.json)
    assert not errors, (method, path, errors)
    if response.status >= 400:
        types = [example["type"] for example in examples_of(media)]
        types = types if is_specific else [f"/problems/{name}" for name in REJECTED_TYPES]
        assert response.json["type"] in types, (method, path, response.json["type"])
