"""`with_structured_output`: three ways to ask for a schema, each of them binding."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal, cast, get_args

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from kvcomm_agents.errors import ConfigError

from .tools import to_openai_tools

Method = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    llm: BaseChatModel, schema: dict[str, Any] | type | None, method: Method, strict: bool | None, *, include_raw: bool
) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
    """A model whose answers are objects of a schema.

    Args:
        llm: the model.
        schema: pydantic class, TypedDict, JSON schema or function. Only `json_mode` goes without.
        method: `json_schema` shows the schema in the prompt; `function_calling` shows it as a tool;
            `json_mode` leaves the prompt alone. The answer follows the schema with each.
        strict: taken as OpenAI's converter takes it; answers always follow the schema.
        include_raw: give `raw`, `parsed` and `parsing_error` instead of the object.

    Raises:
        ConfigError: an unknown method, or no schema.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method={method!r} is none of {', '.join(get_args(Method))}")
    if schema is None and method != "json_mode":
        raise ConfigError(f"method={method!r} needs a schema; without one use method='json_mode'")
    told = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser: Runnable[Any, Any]
    bound: Runnable[LanguageModelInput, Any]
    if method == "function_calling":
        (tool,) = to_openai_tools([cast(Any, schema)], strict=strict)
        name = tool["function"]["name"]
        bound = llm.bind_tools([tool], tool_choice=name, parallel_tool_calls=False, ls_structured_output_format=told)
        if is_model:
            parser = PydanticToolsParser(tools=[cast(Any, schema)], first_tool_only=True)
        else:
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    else:
        response_format: dict[str, Any] = {"type": "json_object"}
        if schema is not None:
            converted = convert_to_json_schema(schema, strict=strict)
            if method == "json_mode":
                response_format["schema"] = converted
            else:
                named = {"name": converted.get("title", "answer"), "schema": converted, "strict": strict}
                response_format = {"type": "json_schema", "json_schema": named}
        bound = llm.bind(response_format=response_format, ls_structured_output_format=told)
        parser = PydanticOutputParser(pydantic_object=cast(Any, schema)) if is_model else JsonOutputParser()
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
