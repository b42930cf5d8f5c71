"""The public names are the ones listed, and importing them is cheap."""

from __future__ import annotations

import subprocess
import sys

import kvcomm_agents


def test_all_is_importable() -> None:
    assert all(getattr(kvcomm_agents, name) is not None for name in kvcomm_agents.__all__)
    assert sorted(kvcomm_agents.__all__) == kvcomm_agents.__all__


def test_importing_loads_no_torch() -> None:
    code = "import sys, kvcomm_agents; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
