"""pydantic's JSON schemas, narrowed to what its types can read: a model writes whatever a schema allows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

_SCALARS = {
    "null": "null",
    "boolean": "(?:true|false)",
    "integer": "-?(?:0|[1-9][0-9]{0,14})",
    "number": r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,9})?",
    "string": '"[A-Za-z0-9 .,;:_-]{0,64}"',
}
_SCALAR = f"(?:{'|'.join(_SCALARS.values())})"
_KEYS = {"int": _SCALARS["integer"], "float": _SCALARS["number"], "decimal": _SCALARS["number"], "bool": "true|false"}
_COMPLEX = r"^-?[0-9]{1,9}(?:\.[0-9]{1,6})?[+-][0-9]{1,9}(?:\.[0-9]{1,6})?j$"


def schema_of(kind: Any, *, titles: bool = True) -> dict[str, Any]:
    """The JSON schema of a pydantic class, or of any type that pydantic knows.

    Args:
        kind: the class or type.
        titles: fields have a title, which says their name once more.

    Raises:
        PydanticUserError: it has none.
    """
    generator = WritableSchema if titles else _UntitledSchema
    is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
    made: Any = kind.model_json_schema if is_model else TypeAdapter(kind).json_schema
    schema: dict[str, Any] = made(schema_generator=generator)
    stored: dict[str, dict[str, Any]] = schema.get("$defs", {})
    name = schema.get("$ref", "").removeprefix("#/$defs/")  # of a class that refers to itself
    return {**stored[name], "$defs": stored} if name in stored else schema


class WritableSchema(GenerateJsonSchema):
    """A schema of values that pydantic reads, where its own allows others too."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A number, of no more digits than it may have."""
        made = super().decimal_schema(schema)
        options: list[JsonSchemaValue] = made.get("anyOf", [])
        number = next((option for option in options if option.get("type") == "number"), None)
        if number is None:
            return made
        places, digits = schema.get("decimal_places"), schema.get("max_digits")
        if digits is not None:
            places = digits // 3 if places is None else places
            most = float(10 ** max(digits - places, 0))
            number.setdefault("exclusiveMinimum" if "minimum" not in number else "minimum", -most)
            number.setdefault("exclusiveMaximum" if "maximum" not in number else "maximum", most)
        if places is not None and "multipleOf" not in number:
            number["multipleOf"] = float(Fraction(1, 10**places)) if places else 1
        return number

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """A map, whose keys are numbers where they are to be."""
        made = super().dict_schema(schema)
        pattern = _KEYS.get(schema.get("keys_schema", {}).get("type", ""))
        return {**made, "propertyNames": {"pattern": f"^(?:{pattern})$"}} if pattern else made

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """A URL of the schemes that it may have."""
        return _of_schemes(super().url_schema(schema), schema.get("allowed_schemes"))

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        """A URL of the schemes that it may have."""
        return _of_schemes(super().multi_host_url_schema(schema), schema.get("allowed_schemes"))

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        """A complex number as Python writes it."""
        return {**super().complex_schema(schema), "pattern": _COMPLEX}

    def json_schema(self, schema: core_schema.JsonSchema) -> JsonSchemaValue:
        """JSON in a string: scalars, and flat lists and dicts of them."""
        made = super().json_schema(schema)
        if made.get("contentMediaType") == "application/json":
            made["pattern"] = f"^{_json_regex(made.get('contentSchema', {}))}$"
        return made


class _UntitledSchema(WritableSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _of_schemes(schema: JsonSchemaValue, schemes: list[str] | None) -> JsonSchemaValue:
    return {**schema, "pattern": f"^(?:{'|'.join(map(re.escape, schemes))})://"} if schemes else schema


def _json_regex(schema: Mapping[str, Any]) -> str:
    """A regular expression of JSON that obeys a schema, as far as that is flat; anything flat for one that is not."""
    kind = schema.get("type")
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind == "array":
        item = _json_regex(schema.get("items", {})) if schema.get("items") else _SCALAR
        return rf"\[(?:{item}(?:, {item}){{0,15}})?\]"
    if kind == "object" and schema.get("properties"):
        members = [f'"{re.escape(name)}": {_json_regex(inner)}' for name, inner in schema["properties"].items()]
        return rf"\{{{', '.join(members)}\}}"
    entry = rf'"[A-Za-z0-9_]{{1,32}}": {_json_regex(schema.get("additionalProperties") or {}) if kind else _SCALAR}'
    entries = rf"\{{(?:{entry}(?:, {entry}){{0,15}})?\}}"
    return entries if kind == "object" else rf"(?:{_SCALAR}|\[(?:{_SCALAR}(?:, {_SCALAR}){{0,15}})?\]|{entries})"
