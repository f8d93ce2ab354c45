"""A value that fits a JSON Schema, chosen by a seed: what a model with structured output would send back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def sample(schema: Mapping[str, Any], seed: str) -> Any:
    """Return a value of the schema: all properties, two items of a list, the first of alternatives that is not null.

    Covers what clients generate from their languages' types; patterns and formats are not read.
    """
    return _sample(schema, schema, seed)


def _sample(schema: Mapping[str, Any], root: Mapping[str, Any], seed: str) -> Any:
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][len(seed) % len(schema["enum"])]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            told = [_resolved(one, root) for one in schema[name]]
            return _sample(next((one for one in told if one.get("type") != "null"), told[0]), root, seed)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next(one for one in kind if one != "null")
    match kind:
        case "object":
            return {name: _sample(one, root, f"{seed}.{name}") for name, one in schema.get("properties", {}).items()}
        case "array":
            items = schema.get("items", {})
            return [_sample(items, root, f"{seed}[{index}]") for index in range(2)]
        case "integer" | "number":
            low = schema.get("minimum", 0)
            return low + len(seed) % 7 + (0 if kind == "integer" else 0.5)
        case "boolean":
            return len(seed) % 2 == 0
        case "null":
            return None
    return f"text for {seed}"


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema
