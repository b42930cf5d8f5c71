"""TypedDicts as pydantic classes: what is optional or may be left out stays so, and what refers to itself too."""

from __future__ import annotations

import inspect
from types import UnionType
from typing import Annotated, Any, ForwardRef, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, create_model
from typing_extensions import is_typeddict


def model_of(typed_dict: type) -> type[BaseModel]:
    """A pydantic class with the keys of a TypedDict as fields, and its docstring.

    A key may be annotated as LangChain has it: `Annotated[type, default, description]`, `...` for no default.
    """
    made: dict[type, type[BaseModel]] = {}
    names: dict[type, str] = {}

    def modelled(kind: type) -> Any:
        if kind in made:
            return made[kind]
        if kind in names:
            return ForwardRef(names[kind])  # within itself
        names[kind] = kind.__name__
        fields: dict[str, Any] = {}
        required: frozenset[str] = getattr(kind, "__required_keys__", frozenset())
        for key, hint in get_type_hints(kind, include_extras=True).items():
            hint, default, description = _taken_apart(hint)
            field: Any = Field(default, description=description)
            if key not in required:  # and the schema names no default
                field = Field(default_factory=lambda: None, description=description)
            fields[key] = (converted(hint), field)
        made[kind] = create_model(kind.__name__, __doc__=inspect.getdoc(kind), __module__=kind.__module__, **fields)
        return made[kind]

    def converted(hint: Any) -> Any:
        if is_typeddict(hint):
            return modelled(hint)
        arguments = tuple(map(converted, get_args(hint)))
        if arguments == get_args(hint):
            return hint
        if get_origin(hint) in (Union, UnionType):
            return Union[arguments]  # noqa: UP007 - of as many as there are
        return Annotated[arguments] if get_origin(hint) is Annotated else get_origin(hint)[arguments]

    model: type[BaseModel] = modelled(typed_dict)
    for found in made.values():
        found.model_rebuild(_types_namespace={names[kind]: other for kind, other in made.items()})
    return model


def _taken_apart(hint: Any) -> tuple[Any, Any, str | None]:
    """The type of a key, its default and its description."""
    if get_origin(hint) in (Required, NotRequired):
        (hint,) = get_args(hint)
    if get_origin(hint) is not Annotated:
        return hint, ..., None
    kind, *told = get_args(hint)
    described = next((item for item in told[1:] if isinstance(item, str)), None)
    return kind, told[0], described
