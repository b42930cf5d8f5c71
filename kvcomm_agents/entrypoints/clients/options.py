"""What an app asks of the answer, in the forms in use: tools, `tool_choice`, `response_format`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checks import checked, identity, items, shown
from ...errors import ConfigError, KVCommError
from ...request import Constraint, ToolChoice, ToolSpec
from ...text.schemas.branch import TYPES

_WORDS: dict[Any, ToolChoice] = {
    None: "auto",
    "auto": "auto",
    "none": "none",
    "any": "required",
    "required": "required",
    True: "required",
    False: "none",
}

_SAYING = frozenset(
    {"properties", "additionalProperties", "patternProperties", "items", "prefixItems", "enum", "const"}
    | {"$ref", "anyOf", "oneOf", "allOf"}
)
"""Keywords by which a JSON schema says what a value is to be, beside `type`."""


def to_specs(tools: Sequence[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """Tools in OpenAI's form as the engine takes them.

    Raises:
        ConfigError: one is run by some provider's server, or is not in that form.
    """
    return tuple(map(_to_spec, listed(tools)))


def listed(tools: Any) -> tuple[Any, ...]:
    """Tools of any framework as a tuple.

    Raises:
        ConfigError: they are none, or one tool alone.
    """
    found: tuple[Any, ...] = checked("tools", tools, lambda given: items(given, "tools"))
    return found


def _to_spec(tool: Any) -> ToolSpec:
    if not isinstance(tool, Mapping):
        raise ConfigError(f"a tool is {shown(tool)}, and must be {{'type': 'function', 'function': {{...}}}}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ConfigError(f"a tool of type {tool.get('type')!r} is run by a provider's server; this model has none")
    given = {name: value for name, value in function.items() if value is not None}
    parameters = given.get("parameters", {})
    none = isinstance(parameters, Mapping) and not parameters
    return ToolSpec(
        checked("name", given.get("name"), identity),
        given.get("description", ""),
        {"type": "object", "properties": {}} if none else parameters,
    )


def to_choice(choice: Any, names: Sequence[str]) -> tuple[ToolChoice, str | None]:
    """A `tool_choice` in any of the forms in use: a word, a bool, a tool's name, OpenAI's dict.

    Returns:
        What the engine takes, and the one tool that is to be called, if it is one.

    Raises:
        ConfigError: it names no tool that is bound.
    """
    if isinstance(choice, Mapping):
        inner = choice.get("function")
        given, choice = choice, (inner.get("name") if isinstance(inner, Mapping) else choice.get("name"))
        choice = choice or given.get("type")
        if choice is None:
            raise ConfigError(f"tool_choice={shown(given)} names no tool and has no type")
    if isinstance(choice, str) and choice in names:
        return "required", choice
    if choice is None or isinstance(choice, str | bool):
        if choice in _WORDS:
            return _WORDS[choice], None
        raise ConfigError(
            f"tool_choice={choice!r} is none of the tools ({', '.join(names) or 'none bound'})"
            " and none of auto, none, any, required"
        )
    raise ConfigError(f"tool_choice={shown(choice)} is no word, bool, name of a tool or dict")


def to_schema(response_format: Any) -> tuple[Any, bool]:
    """The schema that a `response_format` asks for, and whether the prompt is to show it.

    Taken are OpenAI's dicts, a schema itself, and pydantic classes. `json_object` may carry a `schema` too:
    it binds the answer, and the prompt stays the app's own.

    Raises:
        ConfigError: it is none of these.
    """
    if response_format is None:
        return None, False
    if isinstance(response_format, type):
        if not hasattr(response_format, "model_json_schema"):
            raise ConfigError(f"response_format={response_format.__name__} is a class without a JSON schema")
        from .pydantic_schemas import schema_of  # there is pydantic, if there is a class of it

        try:
            return schema_of(response_format), True
        except Exception as error:  # pydantic has many, and they have no base of their own
            if isinstance(error, KVCommError):
                raise
            raise ConfigError(f"response_format={response_format.__name__} makes no JSON schema: {error}") from error
    if not isinstance(response_format, Mapping):
        raise ConfigError(f"response_format={shown(response_format)} is neither a dict nor a pydantic class")
    kind = response_format.get("type")
    if kind == "text":
        return None, False
    if kind == "json_object":
        return response_format.get("schema") or {"type": "object"}, False
    inner = response_format.get("json_schema") if kind == "json_schema" else response_format
    if isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
        return dict(inner["schema"]), True
    if is_schema(response_format):
        return dict(response_format), True
    raise ConfigError(
        f"response_format of type {kind!r} is none of text, json_object and json_schema, or has no schema"
    )


def is_schema(given: Mapping[str, Any]) -> bool:
    """Whether a dict is a JSON schema, and says what a value is to be."""
    kinds = given.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return bool(given.keys() & _SAYING) or all(kind in TYPES for kind in kinds)


def to_constraint(options: Mapping[str, Any], specs: Sequence[ToolSpec], max_string: int) -> Constraint | None:
    """What binds the answer of one call; `None` if nothing does.

    Args:
        options: of the call: `tool_choice`, `parallel_tool_calls`, `response_format`.
        specs: of the tools.
        max_string: characters in a string for which a schema sets no bound.

    Raises:
        ConfigError: the choice or the format is none.
    """
    calls, tool = to_choice(options.get("tool_choice"), [spec.name for spec in specs])
    schema, shown = to_schema(options.get("response_format"))
    if not specs and schema is None:
        return None
    return Constraint(
        schema=schema,
        calls=calls if specs else None,
        tool=tool,
        parallel=options.get("parallel_tool_calls") is not False,
        show_schema=shown,
        max_string=max_string,
    )
