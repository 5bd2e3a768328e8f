"""The dashboard's types are what the service says it answers."""

from __future__ import annotations

import pytest

from dashboards import build_schema


def test_the_committed_types_are_those_of_the_openapi_document() -> None:
    written = build_schema.TARGET.read_text(encoding="utf-8")
    fresh = build_schema.typescript(build_schema.document())
    assert written == fresh, "run: python dashboards/build_schema.py"


NULL = {"type": "null"}
NUMBER = {"type": "number"}
A = {"$ref": "#/components/schemas/A"}
FORMS = [
    ({"anyOf": [NUMBER, {"enum": ["NaN"]}, NULL]}, 'number | "NaN" | null'),
    ({"type": "array", "items": {"anyOf": [NUMBER, NULL]}}, "(number | null)[]"),
    ({"type": "array", "prefixItems": [NUMBER, NULL]}, "[number, null]"),
    ({"type": "object", "additionalProperties": A}, "Record<string, A>"),
    ({"const": "page"}, '"page"'),
    ({}, "unknown"),
]


@pytest.mark.parametrize(("schema", "written"), FORMS)
def test_each_form_of_schema_has_its_type(schema: dict[str, object], written: str) -> None:
    openapi = {"components": {"schemas": {"It": schema}}}
    assert build_schema.typescript(openapi).endswith(f"export type It = {written};\n")


def test_what_may_be_left_out_is_marked_and_words_are_kept() -> None:
    fields = {"a": {"type": "string", "description": "first\nof */ all"}, "b-c": {"type": "null"}}
    schema = {"type": "object", "properties": fields, "required": ["a"]}
    text = build_schema.typescript({"components": {"schemas": {"It": schema}}})
    assert '  /** first of all */\n  a: string;\n  "b-c"?: null;\n' in text
