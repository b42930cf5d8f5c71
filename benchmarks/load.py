"""`kvcomm bench load`: agents without a pause, so that there is no idle time, with learning and without.

Each mode has a fresh process to itself, and the same CPU seconds: on a machine that others use, what counts is
requests a CPU second.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .options import LoadOptions
from .session import Report, Session, Table

_SHARES = ("computed_tokens", "placed_exact_tokens", "placed_corrected_tokens")
_ROLES = {
    "solver": "You solve word problems. Write down what is known, then what is asked, then one step at a time, with"
    " the numbers of each step, and end with the answer on a line of its own. Never leave out a unit.",
    "checker": "You check what a colleague has written. Go through it step by step, do each sum again, and say at"
    " which step it goes wrong, if it does, and what should stand there. Praise nothing, and do not solve it anew.",
    "writer": "You write the reply that the customer reads. It says in three plain sentences what the problem was,"
    " how it is solved and what comes out. You trust the checker more than the solver where they differ.",
}
_THINGS = "apples bottles candles drums eggs forks gloves hats irons jars kettles lamps mugs nails oars pans".split()
_PEOPLE = "Ada Bo Cleo Dan Eva Finn Gil Hana Ivo Joan Kim Lev Mia Ned Ola Pia".split()


def question(seed: int) -> str:
    """A word problem of about two hundred tokens, another one for each seed."""
    draw = random.Random(seed)
    people, things = draw.sample(_PEOPLE, 5), draw.sample(_THINGS, 5)
    steps = [
        f"{person} has {draw.randrange(12, 99)} {thing}, sells every {draw.randrange(3, 9)}th of them for"
        f" {draw.randrange(2, 40)} cents and gives {draw.randrange(2, 9)} away."
        for person, thing in zip(people, things, strict=True)
    ]
    asked = f"How much money and how many {things[0]} do {people[0]} and {people[1]} have in the end?"
    return f"Order {seed}. {' '.join(steps)} {asked}"


def serve(options: LoadOptions, mode: str) -> dict[str, Any]:
    """Chains of three agents on as many threads as asked for, none of which ever pauses, in this process.

    The first chain, which loads the model, is not counted.
    """
    from kvcomm_agents import EngineConfig, Message, Request, ReuseConfig, SamplingParams
    from kvcomm_agents.engine.engine import Engine
    from kvcomm_agents.observe.report import RequestReport

    config = EngineConfig(dtype=options.dtype, reuse=ReuseConfig(mode=mode))  # type: ignore[arg-type]  # checked there
    engine, reports = Engine(options.model, config), list[RequestReport]()
    over = threading.Event()

    def ask(role: str, text: str) -> str:
        messages = (Message("system", _ROLES[role]), Message("user", text))
        answer = engine.generate(Request(messages, SamplingParams(max_tokens=options.max_tokens), agent=role))
        if not over.is_set():
            reports.append(answer.report)
        return answer.text

    def chain(seed: int) -> None:
        asked = question(seed)
        solved = ask("solver", asked)
        checked = ask("checker", f"The problem:\n{asked}\n\nThe solver wrote:\n{solved}\n\nIs it right?")
        ask("writer", f"The problem:\n{asked}\n\nThe solver wrote:\n{solved}\n\nThe checker wrote:\n{checked}")

    def loop(thread: int) -> None:
        seed = thread
        while not over.is_set():
            seed += options.threads
            chain(seed)

    chain(0)
    engine.settle()
    reports.clear()
    hidden = engine.idle.seconds
    began, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=loop, args=(number,), daemon=True) for number in range(options.threads)]
    for thread in threads:
        thread.start()
    while time.process_time() - cpu < options.seconds:
        time.sleep(0.1)
    over.set()
    done, wall, cpu = list(reports), time.perf_counter() - began, time.process_time() - cpu
    idle = engine.idle
    for thread in threads:
        thread.join()
    prompt = sum(report.prompt_tokens for report in done) or 1
    return {
        "requests": len(done),
        "seconds": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "requests_per_s": round(len(done) / wall, 4),
        "requests_per_cpu_s": round(len(done) / cpu, 4),
        "prompt_tokens": round(prompt / max(len(done), 1), 1),
        "ttft_s": _quantiles([report.ttft_s for report in done]),
        "total_s": _quantiles([report.total_s for report in done]),
        "match_s": _quantiles([report.match_s for report in done]),
        "shares": {name: round(sum(getattr(report, name) for report in done) / prompt, 4) for name in _SHARES},
        "corrected_requests": sum(report.placed_corrected_tokens > 0 for report in done),
        "idle_s": round(idle.seconds - hidden, 2),
        "idle_s_in_reports": round(sum(report.idle_s for report in done), 2),
        "idle": {kind: asdict(cost) for kind, cost in idle.costs.items()},
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {f"p{p}": round(ordered[min(p * len(ordered) // 100, len(ordered) - 1)], 4) for p in (50, 95)}


def measure(options: LoadOptions, session: Session) -> Report:
    """Every mode in turn, in a process of its own."""
    report: Report = {"model": options.model, "threads": options.threads, "max_tokens": options.max_tokens, "modes": {}}
    modes = options.wanted
    for done, mode in enumerate(modes):
        session.tell(f"serving, {mode}", done, len(modes))
        command = [sys.executable, "-m", "benchmarks.load", json.dumps(vars(options)), mode]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report["modes"][mode] = json.loads(ran.stdout.splitlines()[-1])
        session.keep(report)
    return report


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """A row a mode."""
    columns = {
        "mode": ":key",
        "requests": "requests",
        "a second": "requests_per_s:.3f",
        "a CPU second": "requests_per_cpu_s:.3f",
        "TTFT ms": "ttft_s/p50:ms",
        "p95": "ttft_s/p95:ms",
        "whole s": "total_s/p50:.2f",
        "p95 s": "total_s/p95:.2f",
        "computed": "shares/computed_tokens:.0%",
        "corrected": "shares/placed_corrected_tokens:.0%",
        "hidden s": "idle_s:.2f",
    }
    heading = f"{report['threads']} threads of three agents each, no pauses, {report['max_tokens']} tokens an answer"
    yield Table(f"{report['model']}: {heading}", columns, report["modes"])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(serve(LoadOptions(**json.loads(sys.argv[1])), sys.argv[2])) + "\n")
