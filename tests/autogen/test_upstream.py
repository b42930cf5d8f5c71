"""Those live tests of autogen-ext that need no more of a model than 135M parameters have, run as they are.

They are upstream's and not kept here: `KVCOMM_AUTOGEN_TESTS` names the folder `tests/models` of an unpacked
autogen-ext (its source distribution has it), whose own imports (openai, ollama) must be installed.
"""

from __future__ import annotations

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.models import DEFAULT_MODEL

pytestmark = pytest.mark.weights

FOLDER = os.environ.get("KVCOMM_AUTOGEN_TESTS", "")
OPENAI, OLLAMA = "test_openai_model_client", "test_ollama_chat_completion_client"
BRIEF = {"max_string": 40}
EXACT = EngineConfig(reuse=ReuseConfig(mode="exact"))  # learns nothing, to be quick
TESTS: list[tuple[str, str, dict[str, Any]]] = [
    (OPENAI, "test_model_client_basic_completion", {"max_tokens": 12}),
    (OPENAI, "test_openai_model_unknown_message_type", {}),
    (OPENAI, "test_openai_structured_output", BRIEF),
    (OPENAI, "test_openai_structured_output_with_streaming", BRIEF),
    (OPENAI, "test_openai_structured_output_using_response_format", BRIEF),
    (OLLAMA, "test_ollama_create_tools", {"prefer_tools": True}),
    (OLLAMA, "test_ollama_create_structured_output", BRIEF),
]


def _load(name: str) -> Any:
    path = Path(FOLDER) / f"{name}.py"
    if not FOLDER or not path.is_file():
        pytest.skip("KVCOMM_AUTOGEN_TESTS names no folder with autogen-ext's tests/models")
    spec = spec_from_file_location(f"upstream_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        pytest.skip(f"autogen-ext's own tests need more: {error}")
    return module


@pytest.mark.filterwarnings("ignore")  # upstream's own
@pytest.mark.parametrize(("module", "name", "settings"), TESTS, ids=[name for _, name, _ in TESTS])
async def test_upstream(module: str, name: str, settings: dict[str, Any]) -> None:
    client = KVCommChatCompletionClient(DEFAULT_MODEL, temperature=0, engine_config=EXACT, **settings)
    await getattr(_load(module), name)(DEFAULT_MODEL, client)
