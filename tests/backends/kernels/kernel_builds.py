"""Compiles every kernel for GPUs that need not be here, and prints the shared memory of each in bytes.

Run as a program, without `TRITON_INTERPRET`: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

GPUS = (80, 90)  # compute capabilities: A100, H100
KINDS = ("bfloat16", "float32")
# heads in a group, channels of keys and values: Llama of 8B, SmolLM2, and one of odd sizes
MODELS = [(4, 128, 128), (3, 64, 64), (1, 80, 48)]
SHAPES = [(1, 1), (64, 16)]  # tokens and tile: decoding, and a prompt's end


def builds() -> list[tuple[str, str, dict[str, str], dict[str, Any]]]:
    """Module and name of a kernel, the types of its arguments, and its constants."""
    import torch

    from kvcomm_agents.backends.transformers.kernels.launch import power
    from kvcomm_agents.backends.transformers.kernels.tiles import TileShape, constants
    from kvcomm_agents.kv.layout import KVLayout

    found: list[tuple[str, str, dict[str, str], dict[str, Any]]] = []
    for kind in KINDS:
        data = {"bfloat16": "*bf16", "float32": "*fp32"}[kind]
        parts = dict.fromkeys(("sums", "tops", "totals"), "*fp32")
        tiled = {"table": "*i64", "positions": "*i64", "layer": "i32", "scale": "fp32", **parts}
        tiled |= dict.fromkeys(("query", "key", "value", "result"), data)
        for group, key_dim, value_dim in MODELS:
            keyed = {"KEY_DIM": key_dim, "KEY_BLOCK": power(key_dim), "VALUE_DIM": value_dim}
            keyed |= {"VALUE_BLOCK": power(value_dim), "TILE": 16, "ALIGNED": True}
            for pairs, interleaved in ((key_dim // 2, False), (key_dim // 4, True), (0, False)):
                types = {"table": "*i64", "keys": data, "values": data, "cos": "*fp32", "sin": "*fp32"}
                more = {"PAIRS": pairs, "INTERLEAVED": interleaved}
                more |= {"ROTARY_BLOCK": power(pairs), "REST_BLOCK": power(key_dim - 2 * pairs)}
                found.append(("scatter_kernel", "scatter_kernel", types, {**keyed, **more}))
            layout = KVLayout(2, 8, key_dim, value_dim, getattr(torch, kind), torch.device("cpu"))
            for tokens, tile in SHAPES:
                made = constants(layout, 8 * group, TileShape(tokens, tile, 1))
                found += [("tiles_kernel", name, tiled, one) for name, one in made.items()]
    return found


def main() -> None:
    """Compile and print."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvcomm_agents.backends.transformers.kernels.launch import kernel

    shared = {}
    for module, name, types, constants in builds():
        function = kernel(module, name)
        options = {name: value for name, value in constants.items() if name not in function.arg_names}
        places = {(function.arg_names.index(one),): value for one, value in constants.items() if one not in options}
        signature = {one: types.get(one, "constexpr" if one in constants else "i32") for one in function.arg_names}
        for gpu in GPUS if constants["VALUE_DIM"] == MODELS[0][2] and "*bf16" in types.values() else GPUS[-1:]:
            source = ASTSource(function, signature, places)
            built = build(source, target=GPUTarget("cuda", gpu, 32), options=options)
            if not built.asm["cubin"]:
                raise RuntimeError(f"{name} gave no code for {gpu}")
            shared[f"{name} {gpu} {types} {constants}"] = built.metadata.shared
    print(json.dumps(shared))  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        main()
