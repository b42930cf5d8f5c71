"""`register()`: opt in to `init_chat_model("kvcomm:...")`."""

from __future__ import annotations


def register() -> None:
    """Make `langchain.chat_models.init_chat_model` know the provider `kvcomm`.

    LangChain keeps its providers in a closed table, to which this adds one entry; call it once, before
    the first `init_chat_model`.

    Raises:
        ImportError: the package `langchain` is not installed, or its table is not where it was.
    """
    try:
        from langchain.chat_models import base

        providers, create = base._BUILTIN_PROVIDERS, base._call
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"register() needs a langchain of 1.4 to 1.x (pip install langchain): {error}; ChatKVComm works without"
        ) from error
    providers["kvcomm"] = ("langchain_kvcomm", "ChatKVComm", create)
