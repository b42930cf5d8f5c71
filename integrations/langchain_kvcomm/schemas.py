"""What LangChain takes for a schema, of an answer or of a tool's arguments, as JSON schema with nothing lost.

LangChain's own converter empties what refers to itself, and all that is no object with properties.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json_schema import dereference_refs
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, PydanticUserError, TypeAdapter
from typing_extensions import is_typeddict

from kvcomm_agents.entrypoints.clients.options import is_schema
from kvcomm_agents.entrypoints.clients.pydantic_schemas import schema_of
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.text.schemas.document import Document

from .typed_dicts import model_of

_OF_OBJECTS = frozenset({"properties", "additionalProperties", "patternProperties"})
_VALUE = "value"  # the argument that holds what is no object


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """What an answer is to be.

    Args:
        name: of it.
        schema: JSON schema of it.
        read: a JSON value that obeys the schema -> what the app gets.
        grows: what the app gets may be shown while it is written.
    """

    name: str
    schema: dict[str, Any]
    read: Callable[[Any], Any]
    grows: bool = True

    @property
    def tool(self) -> dict[str, Any]:
        """A tool whose arguments are the answer, or hold it."""
        parameters = {key: value for key, value in self.schema.items() if key not in ("title", "description")}
        if not self._is_object:
            stored: dict[str, Any] = {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}
            parameters = {"type": "object", "properties": {_VALUE: parameters}, "required": [_VALUE], **stored}
        function = {"name": self.name, "description": self.schema.get("description", ""), "parameters": parameters}
        return {"type": "function", "function": function}

    def of_arguments(self, arguments: Mapping[str, Any]) -> Any:
        """The JSON value in the arguments of a call of `tool`."""
        return arguments if self._is_object else arguments[_VALUE]

    @property
    def _is_object(self) -> bool:
        return bool(self.schema.keys() & _OF_OBJECTS)


def answer_schema(given: Any, *, strict: bool | None = None) -> AnswerSchema:
    """What `with_structured_output` and `response_format` take.

    Args:
        given: a JSON schema, also in OpenAI's wrappers; a class of pydantic, a TypedDict, an Enum or any other type
            that pydantic knows; a function or a tool, whose arguments are meant.
        strict: as LangChain's converter takes it.

    Raises:
        ConfigError: it is none of these, or says nothing of what the answer is.
    """
    if isinstance(given, Mapping):
        return _of_dict(given, strict)
    is_class = isinstance(given, type)
    try:
        if is_class and is_basemodel_subclass(given):
            read: Any = given.model_validate if issubclass(given, BaseModel) else given.parse_obj
        elif is_typeddict(given) or isinstance(given, BaseTool) or is_dataclass(given) or _is_function(given):
            read = _itself
        else:
            adapter = TypeAdapter(given)
            name = getattr(given, "__name__", "answer")
            return AnswerSchema(name, schema_of(given), adapter.validate_python, grows=False)
        schema = json_schema(given, strict=strict)
    except (PydanticUserError, TypeError, ValueError) as error:
        raise ConfigError(f"{given!r} makes no schema of an answer: {error}") from error
    return AnswerSchema(schema["title"], schema, read, grows=read is _itself)


def json_schema(given: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """JSON schema of a class, function or tool: as LangChain has it, or more where that would lose something.

    Raises:
        TypeError, ValueError: it has none.
    """
    model = _model(given)
    if model is None:
        arguments = given.tool_call_schema if isinstance(given, BaseTool) else None
        if isinstance(arguments, dict) and _refers_to_itself(arguments):
            return {**arguments, "title": given.name, "description": given.description}
        return convert_to_json_schema(given, strict=strict)
    own, refers = schema_of(model), _refers_to_itself(model.model_json_schema())
    if own == model.model_json_schema() and not refers and not is_typeddict(given):
        return convert_to_json_schema(given, strict=strict)
    written = schema_of(model, titles=False)
    if not refers:
        written = {key: value for key, value in dereference_refs(written).items() if key != "$defs"}
    about = {"title": model.__name__, "description": model.__doc__ or ""}
    if isinstance(given, BaseTool):
        about = {"title": given.name, "description": given.description}
    return {**written, **{key: text for key, text in about.items() if text}}


def _of_dict(given: Mapping[str, Any], strict: bool | None) -> AnswerSchema:
    inner = given["json_schema"] if isinstance(given.get("json_schema"), Mapping) else given
    if isinstance(inner.get("schema"), Mapping):
        return AnswerSchema(str(inner.get("name", "answer")), dict(inner["schema"]), _itself)
    if given.get("type") == "function" or given.keys() & {"parameters", "input_schema", "toolSpec"}:
        try:
            schema = convert_to_json_schema(dict(given), strict=strict)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{dict(given)!r} makes no schema of an answer: {error}") from error
        return AnswerSchema(schema["title"], schema, _itself)
    if not is_schema(given):
        raise ConfigError(
            f"the schema {dict(given)!r} says nothing of what the answer is: it has no type, properties, $ref,"
            " anyOf or enum, and is none of OpenAI's wrappers of one"
        )
    return AnswerSchema(str(given.get("title", "answer")), dict(given), _itself)


def _model(given: Any) -> type[BaseModel] | None:
    """The pydantic class of what is given, or of its arguments; `None` if there is none of pydantic 2."""
    found: Any = given
    if is_typeddict(given):
        found = model_of(given)
    elif isinstance(given, BaseTool):
        found = given.tool_call_schema
    elif _is_function(given):
        found = create_schema_from_function(
            given.__name__, given, parse_docstring=True, error_on_invalid_docstring=False, include_injected=False
        )
        found.__doc__, found.__name__ = given.__doc__, given.__name__
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _is_function(given: Any) -> bool:
    return inspect.isroutine(given)


def _refers_to_itself(schema: Mapping[str, Any]) -> bool:
    document = Document(schema)
    return document.endless((document.root,))


def _itself(value: Any) -> Any:
    return value
