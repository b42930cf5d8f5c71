"""Peers: llama.cpp's and vLLM's servers as columns, asked over HTTP on this machine with the same token ids.

Neither is installed by us. A server found is started on a free port and stopped at the end; one that is
not there is skipped, and the reason is told.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel

from .calls import Call
from .columns import Column, LostColumnError, Served

NAMES = ("llama.cpp", "llama.cpp-reuse", "vllm")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine
_START_S = 240.0
_CHUNK = 16  # `--cache-reuse`: tokens of the shortest run that is moved


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """Where the peers are.

    Args:
        llama_server: llama.cpp's server; `None` looks for `llama-server` on the path.
        gguf: its weights.
        vllm_python: an interpreter that has vLLM; `None` tries this one.
        context: tokens of the longest context.
        slots: contexts that llama.cpp keeps at once; one an agent.
    """

    llama_server: str | None = None
    gguf: Path | None = None
    vllm_python: str | None = None
    context: int = 8192
    slots: int = 5


class Server:
    """A server process on this machine; both kinds say at `/health` that they are ready.

    Args:
        command: without host and port.
        env: added to this process's.

    Raises:
        ConfigError: it did not come up; the end of what it printed is in the message.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url, self._log = f"http://127.0.0.1:{port}", tempfile.TemporaryFile()
        full = [*command, "--host", "127.0.0.1", "--port", str(port)]
        try:
            self._process = subprocess.Popen(
                full, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
            )
        except OSError as error:
            self._log.close()
            raise ConfigError(f"{command[0]} did not start: {error}") from error
        deadline = time.monotonic() + _START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._said()
                self.close()
                raise ConfigError(f"{Path(command[0]).name} did not start: {said}")
            time.sleep(0.5)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """One request.

        Raises:
            LostColumnError: it was refused, or nobody is there.
        """
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
        try:
            with _DIRECT.open(request, timeout=600) as answer:
                told: dict[str, Any] = json.loads(answer.read())
                return told
        except urllib.error.HTTPError as error:
            raise LostColumnError(f"it refused a request: {error.code} {error.read(300)!r}") from error
        except OSError as error:
            raise LostColumnError(f"it is gone ({error}); the last it said: {self._said()}") from error

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def _ready(self) -> bool:
        try:
            with _DIRECT.open(f"{self._url}/health", timeout=2):
                return True
        except OSError:
            return False

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-400:].replace("\n", " | ")


class Peer(Column):
    """A server as a column; stopped when it is closed."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._server = Server(command, env)

    def close(self) -> None:
        """Stop the server."""
        self._server.close()


class LlamaCpp(Peer):
    """llama.cpp's server with its prompt cache; with `reuse` also `--cache-reuse`, in one slot.

    Args:
        setting: where it is, and its weights.
        reuse: runs of the slot's last context are moved to where they stand in the next prompt,
            uncorrected. It sees one context only, so all agents share a slot.

    Raises:
        ConfigError: it is not there, or does not start.
    """

    def __init__(self, setting: PeerSetting, *, reuse: bool) -> None:
        self.name, self._reuse, self._last = ("llama.cpp-reuse" if reuse else "llama.cpp"), reuse, tuple[int, ...]()
        program = setting.llama_server or shutil.which("llama-server")
        if program is None or not Path(program).is_file():
            raise ConfigError("no llama-server on the path; name it with --llama-server")
        if setting.gguf is None:
            raise ConfigError("llama.cpp needs the model as a GGUF file; name it with --gguf")
        slots = 1 if reuse else setting.slots
        command = [program, "-m", str(setting.gguf), "-t", str(torch.get_num_threads()), "-np", str(slots)]
        command += ["-c", str(slots * (setting.context + 256)), "--no-kv-unified"]
        super().__init__([*command, *(["--cache-reuse", str(_CHUNK)] if reuse else [])])

    def first(self, call: Call) -> Served:
        """The first token."""
        started = time.perf_counter()
        told = self._ask(call.ids, 1)
        ttft, computed = time.perf_counter() - started, int(told["timings"]["prompt_n"])
        placed = len(call.ids) - computed
        same = os.path.commonprefix([self._last, call.ids]) if self._reuse else call.ids
        exact = min(placed, len(same))
        return Served(
            ttft,
            forward_s=float(told["timings"]["prompt_ms"]) / 1e3,
            computed=computed,
            exact=exact,
            corrected=placed - exact,
            token=int((told.get("tokens") or [-1])[0]),
        )

    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """With `reuse`, or where the conversation goes on, the answer is put into the slot."""
        self._last = call.ids
        if self._reuse or call.continues:
            self._last = (*call.ids, *call.output)
            self._ask(self._last, 0)
        return first

    def _ask(self, ids: Sequence[int], tokens: int) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": tokens, "temperature": 0.0, "cache_prompt": True}
        return self._server.post("/completion", {**body, "return_tokens": True})


class Vllm(Peer):
    """vLLM's server with its prefix cache, as it is by default.

    Args:
        loaded: whose weights.
        setting: where it is.

    Raises:
        ConfigError: it is not there, or does not start.
    """

    name = "vllm"

    def __init__(self, loaded: LoadedModel, setting: PeerSetting) -> None:
        if not loaded.folder or not Path(loaded.folder).is_dir():
            raise ConfigError("vLLM needs the model as a folder")
        python = setting.vllm_python or (sys.executable if importlib.util.find_spec("vllm") else None)
        if python is None:
            raise ConfigError("no vLLM here; name an interpreter that has it with --vllm-python")
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", loaded.folder]
        command += ["--dtype", str(loaded.model.dtype).removeprefix("torch."), "--max-num-seqs", "4"]
        command += ["--max-model-len", str(setting.context), "--enable-prefix-caching", "--served-model-name", "m"]
        env = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        super().__init__(command, {**env, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"})

    def first(self, call: Call) -> Served:
        """The first token."""
        started = time.perf_counter()
        told = self._ask(call.ids)
        ttft = time.perf_counter() - started
        placed = int((told.get("usage", {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        return Served(ttft, computed=len(call.ids) - placed, exact=placed)

    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """Where the conversation goes on, the answer is put into its cache."""
        if call.continues:
            self._ask((*call.ids, *call.output))
        return first

    def _ask(self, ids: Sequence[int]) -> dict[str, Any]:
        body = {"model": "m", "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
        return self._server.post("/v1/completions", body)


def start_peers(names: Sequence[str], loaded: LoadedModel, setting: PeerSetting) -> tuple[list[Column], dict[str, str]]:
    """The peers of `NAMES` that are here, and why the others are not."""
    columns: list[Column] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            columns.append(Vllm(loaded, setting) if name == "vllm" else LlamaCpp(setting, reuse=name.endswith("reuse")))
        except ConfigError as error:
            skipped[name] = str(error)
    return columns, skipped
