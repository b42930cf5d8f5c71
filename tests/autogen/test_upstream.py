"""Those live tests of autogen-ext that need no more of a model than 135M parameters have, run as they are.

They are upstream's and not kept here. pip fetches the source distribution of the installed autogen-ext,
which holds them, once; `KVCOMM_AUTOGEN_TESTS` names the folder `tests/models` of an unpacked one instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.models.loading import DEFAULT_MODEL

pytestmark = pytest.mark.weights

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


@pytest.fixture(scope="module")
def folder(pytestconfig: pytest.Config) -> Path:
    """`tests/models` of an unpacked source distribution of autogen-ext."""
    if named := os.environ.get("KVCOMM_AUTOGEN_TESTS"):
        return Path(named)
    pytest.importorskip("autogen_ext", reason="upstream's tests import it; the extra dev brings it")
    assert pytestconfig.cache is not None
    kept, release = pytestconfig.cache.mkdir("autogen-ext"), version("autogen-ext")
    unpacked = kept / f"autogen_ext-{release}"
    if not unpacked.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "autogen-ext"]
        command += ["--retries", "0", "--timeout", "10", "--dest", str(kept), f"autogen-ext=={release}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"pip could not fetch the source distribution of autogen-ext: {reason}")
        with tarfile.open(kept / f"{unpacked.name}.tar.gz") as archive:
            archive.extractall(kept, filter="data")
    return unpacked / "tests" / "models"


@pytest.fixture
def upstream(folder: Path, module: str) -> Any:
    """One of upstream's test modules."""
    path = folder / f"{module}.py"
    assert path.is_file(), f"there is no {path.name} in {folder}"
    spec = spec_from_file_location(f"upstream_{module}", path)
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except ImportError as error:
        pytest.skip(f"autogen-ext's own tests need more: {error}")
    return made


@pytest.mark.filterwarnings("ignore")  # upstream's own
@pytest.mark.parametrize(("module", "name", "settings"), TESTS, ids=[name for _, name, _ in TESTS])
async def test_upstream(upstream: Any, name: str, settings: dict[str, Any]) -> None:
    client = KVCommChatCompletionClient(DEFAULT_MODEL, temperature=0, engine_config=EXACT, **settings)
    await getattr(upstream, name)(DEFAULT_MODEL, client)
