"""Writes the dashboard's types, ``src/lib/schema.ts``, from the service's OpenAPI document.

``python dashboards/build_schema.py`` after a change of the API's models; a test compares what is
committed with what the service says, so that the two cannot drift apart.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "web" / "src" / "lib" / "schema.ts"
HEAD = """\
/**
 * What the service answers, as its OpenAPI document says. Not written by hand:
 * `python dashboards/build_schema.py` writes it anew.
 */
"""
_PLAIN = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}


def document() -> dict[str, Any]:
    """The OpenAPI document of a service that is put together and never started."""
    from gradwarden_server.app import create_app
    from gradwarden_server.settings import Settings

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one function under two methods has one operation id
        app = create_app(Settings(db=f"sqlite:///{folder}/none.sqlite"))
        return app.openapi()


def typescript(openapi: Mapping[str, Any]) -> str:
    """Every component as an exported type, by name."""
    schemas = openapi["components"]["schemas"]
    return HEAD + "".join(f"\n{_declare(name, schemas[name])}" for name in sorted(schemas))


def _declare(name: str, schema: Mapping[str, Any]) -> str:
    words = _comment(schema.get("description", ""), "")
    if "properties" not in schema:
        return f"{words}export type {name} = {_type(schema)};\n"
    return f"{words}export interface {name} {_fields(schema)}\n"


def _fields(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    lines = []
    for key, value in schema["properties"].items():
        # What a model sends is always there; what it is sent may be left out.
        mark = "" if key in required else "?"
        lines.append(_comment(value.get("description", ""), "  "))
        name = key if key.isidentifier() else json.dumps(key)
        lines.append(f"  {name}{mark}: {_type(value)};\n")
    return "{\n" + "".join(lines) + "}"


def _comment(text: str, indent: str) -> str:
    line = " ".join(text.replace("*/", "").split())
    return f"{indent}/** {line} */\n" if line else ""


def _type(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"$ref": str(reference)}:
            return reference.rpartition("/")[2]
        case {"anyOf": [*options]} | {"oneOf": [*options]}:
            return " | ".join(dict.fromkeys(map(_type, options)))
        case {"const": value}:
            return json.dumps(value)
        case {"enum": [*values]}:
            return " | ".join(map(json.dumps, values))
        case {"type": "array", "prefixItems": [*items]}:
            return f"[{', '.join(map(_type, items))}]"
        case {"type": "array"}:
            item = _type(schema.get("items", {}))
            return f"({item})[]" if " | " in item else f"{item}[]"
        case {"type": "object", "properties": _}:
            return _fields(schema)
        case {"type": "object"}:
            more = schema.get("additionalProperties")
            value = _type(more) if isinstance(more, dict) else "unknown"
            return f"Record<string, {value}>"
        case {"type": str(kind)}:
            return _PLAIN[kind]
        case _:
            return "unknown"


if __name__ == "__main__":
    TARGET.write_text(typescript(document()), encoding="utf-8")
    print(f"types: {TARGET}")
