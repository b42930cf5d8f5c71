"""`with_structured_output`: three ways to ask for a schema, each of them binding."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal, get_args

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from pydantic import BaseModel

from kvcomm_agents.errors import ConfigError

from .output_parser import AnswerParser
from .schemas import answer_schema

Method = Literal["json_schema", "function_calling", "json_mode"]
PARSED = "ls_structured_output_format"
"""A keyword of calls whose answers `with_structured_output` parses, LangChain's own, for its tracing."""


def structured(
    llm: BaseChatModel, schema: Any, method: Method, strict: bool | None, *, include_raw: bool
) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
    """A model whose answers are objects of a schema.

    Args:
        llm: the model.
        schema: what `schemas.answer_schema` takes. Only `json_mode` goes without.
        method: `json_schema` shows the schema in the prompt; `function_calling` shows it as a tool;
            `json_mode` leaves the prompt alone. The answer follows the schema with each.
        strict: taken as OpenAI's converter takes it; answers always follow the schema.
        include_raw: give `raw`, `parsed` and `parsing_error` instead of the object.

    Raises:
        ConfigError: an unknown method, or no schema, or one that says nothing.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method={method!r} is none of {', '.join(get_args(Method))}")
    if schema is None and method != "json_mode":
        raise ConfigError(f"method={method!r} needs a schema; without one use method='json_mode'")
    told = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    asked = None if schema is None else answer_schema(schema, strict=strict)
    bound: Runnable[LanguageModelInput, Any]
    if asked is not None and method == "function_calling":
        bound = llm.bind_tools([asked.tool], tool_choice=asked.name, parallel_tool_calls=False, **{PARSED: told})
    else:
        response_format: dict[str, Any] = {"type": "json_object"}
        if asked is not None and method == "json_mode":
            response_format["schema"] = asked.schema
        elif asked is not None:
            named = {"name": asked.name, "schema": asked.schema, "strict": strict}
            response_format = {"type": "json_schema", "json_schema": named}
        bound = llm.bind(response_format=response_format, **{PARSED: told})
    parser = AnswerParser(asked=asked, by_call=method == "function_calling")
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
