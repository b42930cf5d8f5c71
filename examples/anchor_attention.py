"""Fine-tune a small model on packed documents, with three kinds of attention side by side, on a CPU in minutes.

`full`: a document sees all before it in its row. `intra`: it sees itself only. `anchored`: itself and one
shared first token, as in AnchorAttention (arXiv 2411.13476). No part of transformers is patched: a packed row
is a 4-D mask, position ids and labels. Measured before and after: held-out loss, time a token, and how far
KV computed apart lies from the KV of the same words in a prompt, which is what reuse has to bridge.

    python examples/anchor_attention.py --json anchor.json --plot anchor.png

The texts are the passages of MuSiQue in $KVCOMM_DATA, or your own: --texts FOLDER with .txt files.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.data import load_rows
from kvcomm_agents import LoadedModel, load_model
from kvcomm_agents.backends.transformers.forced import forced
from kvcomm_agents.backends.transformers.packing import Pack, pack, pack_rows, packed_mask
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.backends.transformers.scores import divergence
from kvcomm_agents.plan import Computed, Placed, PrefillPlan, dense

MODES = ("full", "intra", "anchored")
GROUP, TAIL = 4, 48  # documents that are measured together; the last is computed behind the others


def texts(folder: Path | None) -> list[str]:
    """Passages, or files."""
    if folder is not None:
        return [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))]
    return [str(row["ctxs"][at]["text"]) for row in load_rows("musique") for at in (0, 3, 6, 9)]


def documents(loaded: LoadedModel, found: list[str]) -> list[list[int]]:
    """Token ids, cut to lengths from 60 to 140."""
    cut = []
    for number, text in enumerate(found):
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        length = 60 + 20 * (number % 5)
        if len(ids) >= length:
            cut.append(ids[:length])
    return cut


def inputs(row: Pack, mode: str) -> dict[str, torch.Tensor | None]:
    """What a model is called with: the whole of the method."""
    mask = None if mode == "full" else packed_mask(row.segments, shared_first=mode == "anchored")
    return {
        "input_ids": row.ids[None],
        "attention_mask": mask,
        "position_ids": row.positions[None],  # running through the row, as in the paper
        "labels": row.labels[None],
    }


def train(model: PreTrainedModel, rows: list[Pack], mode: str, rate: float) -> dict[str, Any]:
    """One pass over the rows; losses and seconds a token."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses, started = [], time.perf_counter()
    for row in rows:
        loss = model(**inputs(row, mode), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - started
    model.eval().requires_grad_(False)
    return {"losses": losses, "token_ms": 1e3 * seconds / sum(len(row.ids) for row in rows)}


@torch.no_grad()
def losses(model: PreTrainedModel, rows: list[Pack]) -> dict[str, float]:
    """Held-out loss under every kind of attention."""
    return {
        mode: sum(float(model(**inputs(row, mode), use_cache=False).loss) for row in rows) / len(rows) for mode in MODES
    }


def relative(base: torch.Tensor, true: torch.Tensor) -> float:
    """Norm of the difference over the norm of the true one, above the first layer, which knows no context."""
    return float((base[1:] - true[1:]).float().norm() / true[1:].float().norm())


@torch.no_grad()
def drift(model: PreTrainedModel, held_out: list[list[int]], first: int) -> dict[str, float]:
    """Base KV, packed behind the shared first token, against KV in a prompt; and the divergence if placed as it is."""
    runner = Runner(model)
    rope = runner.layout.require_movable()
    found: dict[str, list[float]] = {"key_first": [], "key_rest": [], "value_first": [], "value_rest": [], "kl": []}
    for at in range(0, len(held_out) - GROUP + 1, GROUP):
        *shared, tail = held_out[at : at + GROUP]
        row = pack(shared, first, "reset")
        bases = runner.prefill_pack(row)
        prompt, output = [*row.ids.tolist(), *tail[:8]], tail[8:TAIL]
        cache = runner.open(len(prompt))
        runner.prefill(cache, prompt)
        placed: list[Computed | Placed] = [Computed(0, 1)]
        for number, ((start, stop), base) in enumerate(zip(row.edges, bases, strict=True)):
            true = cache.capture(start, stop).unrotated(rope)
            placed.append(Placed(start, stop, base, exact=False))
            if number:  # the first document has nothing before it but the first token: it does not drift
                for name, a, b in (("key", base.keys, true.keys), ("value", base.values, true.values)):
                    found[f"{name}_first"].append(relative(a[:, :, :1], b[:, :, :1]))
                    found[f"{name}_rest"].append(relative(a[:, :, 1:], b[:, :, 1:]))
        runner.close(cache)
        plan = PrefillPlan((*placed, Computed(len(row.ids), len(prompt))))
        exact = forced(runner, prompt, output, dense(len(prompt)))
        found["kl"].append(divergence(exact, forced(runner, prompt, output, plan)).mean)
    return {name: sum(values) / len(values) for name, values in found.items()}


def plot(report: dict[str, Any], file: Path) -> None:
    """Losses while training, drift and divergence before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for mode in MODES:
        axes[0].plot(report["modes"][mode]["losses"], marker="o", markersize=3, label=mode)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("training loss, each under its own attention")
    axes[0].legend(fontsize=8)
    names = ("key_first", "key_rest", "value_first", "value_rest")
    states = {"before": report["before"], **{mode: report["modes"][mode] for mode in MODES}}
    for place, (state, one) in enumerate(states.items()):
        axes[1].bar([at + 0.2 * place for at in range(4)], [one["drift"][name] for name in names], 0.2, label=state)
        axes[2].bar([place], [one["drift"]["kl"]])
    axes[1].set_xticks([at + 0.3 for at in range(4)], [name.replace("_", ",\n") for name in names])
    axes[1].set_ylabel("relative drift of base KV from KV in a prompt")
    axes[1].legend(fontsize=8)
    axes[2].set_xticks(range(4), list(states))
    axes[2].set_ylabel("KL per token if base KV is placed as it is, nats")
    figure.suptitle(f"{report['model']}: {report['steps']} steps of {report['row_tokens']} tokens", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="default")
    options.add_argument("--texts", type=Path, help="folder of .txt files to train and measure on")
    options.add_argument("--steps", type=int, default=24, help="one row each")
    options.add_argument("--row", type=int, default=512, help="tokens of a row")
    options.add_argument("--held-out", type=int, default=24, help="documents to measure with")
    options.add_argument("--rate", type=float, default=5e-5, help="learning rate of AdamW")
    options.add_argument("--json", type=Path)
    options.add_argument("--plot", type=Path)
    given = options.parse_args()

    loaded = load_model(given.model, device="cpu", dtype="float32")
    first = loaded.tokenizer.bos_token_id
    first = loaded.tokenizer.eos_token_id if first is None else first
    cut = documents(loaded, texts(given.texts))
    held_out, learned = cut[: given.held_out], cut[given.held_out :]
    rows = pack_rows(learned, first, given.row)[: given.steps]
    if len(rows) < given.steps or len(held_out) < given.held_out:
        raise SystemExit(f"{len(cut)} documents are too few for {given.steps} rows of {given.row} tokens; give more")
    measured = pack_rows(held_out, first, given.row)

    def state(model: PreTrainedModel) -> dict[str, Any]:
        return {"held_out_loss": losses(model, measured), "drift": drift(model, held_out, first)}

    report: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct" if given.model == "default" else Path(given.model).name,
        "steps": given.steps,
        "row_tokens": given.row,
        "learning_rate": given.rate,
        "held_out_documents": given.held_out,
        "threads": torch.get_num_threads(),
        "before": state(loaded.model),
        "modes": {},
    }
    print("before", json.dumps(report["before"]))
    for mode in MODES:
        model = copy.deepcopy(loaded.model)
        report["modes"][mode] = {**train(model, rows, mode, given.rate), **state(model)}
        print(mode, json.dumps(report["modes"][mode]))
        del model
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if given.plot is not None:
        plot(report, given.plot)


if __name__ == "__main__":
    main()
