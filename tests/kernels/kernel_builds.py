"""Compiles every kernel for GPUs that need not be here, and prints the shared memory of each in bytes.

Run as a program, without `TRITON_INTERPRET`: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

GPUS = (80, 90)  # compute capabilities: A100, H100
KINDS = {"bf16": 64, "fp32": 32}
# heads in a group, channels of keys and values: Llama of 8B, SmolLM2, Phi-3 mini, and one of odd sizes
MODELS = [(4, 128, 128), (3, 64, 64), (1, 80, 48)]


def builds() -> list[tuple[str, str, dict[str, str], dict[str, Any]]]:
    """Module and name of a kernel, the types of its arguments, and its constants."""
    from kvcomm_agents.kernels import power

    found: list[tuple[str, str, dict[str, str], dict[str, Any]]] = []
    for kind, keys in KINDS.items():
        data = f"*{kind}"
        for group, key_dim, value_dim in MODELS:
            key_block, value_block = max(16, power(key_dim)), max(16, power(value_dim))
            dims = {"VALUE_DIM": value_dim, "VALUE_BLOCK": value_block}
            keyed = {"KEY_DIM": key_dim, "KEY_BLOCK": key_block, **dims}
            for pairs, interleaved in ((key_dim // 2, False), (key_dim // 4, True), (0, False)):
                types = {"table": "*i64", "keys": data, "values": data, "cos": "*fp32", "sin": "*fp32"}
                types |= {"heads": "i32", "capacity": "i32"}
                more = {"PAIRS": pairs, "INTERLEAVED": interleaved, "TILE": 16, "ALIGNED": True}
                more |= {"ROTARY_BLOCK": power(pairs), "REST_BLOCK": power(key_dim - 2 * pairs)}
                found.append(("scatter_kernel", "scatter_kernel", types, {**keyed, **more}))
            for tile, splits in ((1, 16), (16, 2)):
                rows = {"GROUP": group, "ROWS": max(16, power(tile * group)), "SPLITS": splits, "TILE": tile}
                types = {"table": "*i64", "positions": "*i64", "key": data, "value": data, "layer": "i32"}
                types |= dict.fromkeys(("heads", "key_head", "key_token", "value_head", "value_token"), "i32")
                found.append(("tiles_kernel", "write_kernel", types, {**keyed, "TILE": tile}))
                parts = dict.fromkeys(("sums", "tops", "totals"), "*fp32")
                types = {"table": "*i64", "positions": "*i64", "query": data, **parts, "layer": "i32", "scale": "fp32"}
                types |= {"query_head": "i32", "query_token": "i32"}
                found.append(("tiles_kernel", "attend_kernel", types, {**keyed, **rows, "KEYS": keys, "ALIGNED": True}))
                found.append(("tiles_kernel", "merge_kernel", {**parts, "result": data}, {**dims, **rows}))
    return found


def main() -> None:
    """Compile and print."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvcomm_agents.kernels import kernel

    shared = {}
    for module, name, types, constants in builds():
        function = kernel(module, name)
        signature = {one: types.get(one, "constexpr") for one in function.arg_names}
        places = {(function.arg_names.index(one),): value for one, value in constants.items()}
        for gpu in GPUS if constants["VALUE_DIM"] == MODELS[0][2] and "*bf16" in types.values() else GPUS[-1:]:
            built = build(
                ASTSource(function, signature, places), target=GPUTarget("cuda", gpu, 32), options={"num_stages": 2}
            )
            if not built.asm["cubin"]:
                raise RuntimeError(f"{name} gave no code for {gpu}")
            shared[f"{name} {gpu} {types} {constants}"] = built.metadata.shared
    print(json.dumps(shared))  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        main()
