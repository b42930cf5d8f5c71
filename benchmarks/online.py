"""`kvcomm bench shift` and `stream`: guarded reuse online, as the kind of text changes or from a cold start.

Nothing is held back: every request is served by the product's own path and learned from as an engine
would, and is then compared with its dense run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import served
from .chain import Chain
from .data import load_questions
from .fidelity import serve_guarded
from .options import ShiftOptions, StreamOptions
from .rows import Row, mean
from .session import Report, Session, Table, title
from .team import chain

REGISTERS = (
    "Eine Bäckerei verkauft am Vormittag 36 Brötchen zu je 45 Cent und am Nachmittag 24 Brote zu je 3,20 Euro. Wie viel"
    " Geld ist am Abend in der Kasse, wenn sie morgens leer war?",
    "Ein Regionalzug fährt um 7:48 Uhr in Kassel ab und braucht bis Göttingen 52 Minuten. Dort wartet er 17 Minuten"
    " auf einen Anschluss. Wann fährt er weiter, und wie lange war er insgesamt unterwegs?",
    "小明每天早上骑自行车上学，路程是三公里，平均速度是每小时十二公里。如果他七点半出门，什么时候能到学校？",
    "一家书店上个月卖出了二百四十本书，这个月比上个月多卖了四分之一。这个月一共卖出了多少本？请说明你的计算过程。",
    "Une classe de vingt-huit élèves part en voyage. Chaque famille paie 45 euros et l'école ajoute 320 euros. Le car"
    " coûte 680 euros. Combien reste-t-il pour les repas ?",
    "The Lessee shall, no later than thirty (30) days prior to the expiry of the Term, give notice in writing of its"
    " intention to renew; failing which the tenancy shall determine, and the deposit, less any sums due under clause 7,"
    " shall be repaid within fourteen (14) days. By when must the deposit be repaid if the Term ends on 30 June?",
    "WHEREAS the Supplier warrants that the goods conform to the specification in Annex B, and WHEREAS the Buyer has"
    " notified a defect within the inspection period, is the Buyer entitled to withhold the second instalment under the"
    " wording above? Name the assumption on which your opinion rests.",
    "heyyy so me n jess are doing the cinema thing sat, tix r 9.50 each but theres a 2 for 15 deal?? plus popcorn 6 to"
    " share lol. whats that per person if tom comes too and pays normal price",
    "omg my phone says 14% at 6pm and it loses like 3% an hr when im not using it... will it make it till midnight or"
    " do i need 2 bring the charger",
    "Dear colleagues, the plenary originally scheduled for 09:15 has been moved to 10:40 owing to a delayed train, and"
    " each of the four talks is shortened by five minutes. Kindly advise when lunch will now commence, given that it"
    " was foreseen for 12:30 and that the talks lasted thirty minutes each.",
    "O gentle clerk, count me the roses red: three score were cut at dawn, a dozen withered ere noon, and half of what"
    " remained was given to the bride. How many graced the hall when evening fell?",
    "ERROR 2041: worker pool exhausted (active=64, queued=1312, drained 48/s, arriving 31/s). Estimate the seconds"
    " until the queue is empty, and say which of the four numbers you would alert on.",
)
"""Short texts of our own in other languages and registers."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Questions of one kind."""

    name: str
    questions: tuple[str, ...]


def measure(options: ShiftOptions | StreamOptions, session: Session) -> Report:
    """Phases of one kind of text each, or quarters of a stream."""
    if isinstance(options, StreamOptions):
        data, count, step = options.questions, options.evaluation, -(-options.evaluation // 4)
        texts = load_questions(data, count, options.data)
        phases = [
            Phase(f"{at + 1} to {min(at + step, count)}", tuple(texts[at : at + step])) for at in range(0, count, step)
        ]
    else:
        data, count = "gsm8k, humaneval, own texts", options.evaluation
        texts = load_questions("gsm8k", options.warmup + count, options.data)
        phases = [
            Phase("GSM8K", tuple(texts[: options.warmup])),
            Phase("HumanEval", tuple(load_questions("humaneval", count, options.data))),
            Phase("languages and registers", REGISTERS[:count]),
            Phase("GSM8K again", tuple(texts[options.warmup :])),
        ]
    asked = Chain(session.loaded, chain(), say=session.say)
    return {**session.described, "data": data, **measure_online(asked, phases, session)}


def measure_online(asked: Chain, phases: Sequence[Phase], session: Session) -> dict[str, Any]:
    """Serve all phases in turn with one memory. The first agent, which reads nobody, is left out."""
    instances = asked.run([text for phase in phases for text in phase.questions], session.tell)
    by_question: list[list[Row]] = [[] for _ in instances]
    for row in serve_guarded(asked, instances, session):
        if row.agent != asked.agents[0].name:
            by_question[row.question].append(row)
    figures, left, bound = [], iter(by_question), served.POLICY.max_divergence
    for phase in phases:
        rows = [row for question in itertools.islice(left, len(phase.questions)) for row in question]
        figures.append({"name": phase.name, "questions": len(phase.questions), **_phase(rows, bound)})
    return {"max_divergence": bound, "phases": figures, "questions": [_question(rows) for rows in by_question]}


def _phase(rows: Sequence[Row], bound: float) -> dict[str, Any]:
    reused = [row for row in rows if row.extra["reused"]]
    audited = [row for row in reused if row.extra["audited"]]
    kl = [row.kl_mean for row in rows]
    return {
        "n": len(rows),
        "kl_mean": mean(kl),
        "kl_first": mean(row.kl_first for row in rows),
        "kl_p90": float(np.quantile(kl, 0.9)),
        "kl_max": max(kl),
        "kl_mean_of_reused": mean(row.kl_mean for row in reused),
        "computed_fraction": sum(row.computed for row in rows) / sum(row.prompt for row in rows),
        "reused_share": len(reused) / len(rows),
        "rungs": dict(Counter(str(row.extra["rung"]) for row in rows)),
        "within_bound": mean(row.kl_mean <= bound for row in reused),
        "audited": len(audited),
        "audited_over_bound": sum(row.kl_mean > bound for row in audited),
    }


def _question(rows: Sequence[Row]) -> dict[str, Any]:
    prompt = sum(row.prompt for row in rows)
    reused = [row for row in rows if row.extra["reused"]]
    return {
        "question": rows[0].question,
        "reused_share": len(reused) / len(rows),
        "computed_fraction": sum(row.computed for row in rows) / prompt,
        "prefix_only_fraction": sum(row.prompt - row.prefix for row in rows) / prompt,
        "kl_mean": mean(row.kl_mean for row in rows),
        "predicted": [row.extra["predicted"] for row in reused],
        "true": [row.kl_mean for row in reused],
        "audited_kl": [row.kl_mean for row in reused if row.extra["audited"]],
        "rungs": [row.extra["rung"] for row in rows],
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """A row a phase."""
    columns = {
        "questions": "name",
        "n": "n",
        "reused": "reused_share:.0%",
        "computed": "computed_fraction:.1%",
        "KL": "kl_mean:.4f",
        "p90": "kl_p90:.4f",
        "max": "kl_max:.4f",
        "audits": "audited",
        "over": "audited_over_bound",
    }
    yield Table(title(report, f"guarded, bound {report['max_divergence']}"), columns, report["phases"])
