"""`kvcomm bench shift` and `stream`: guarded reuse online, as the kind of text changes or from a cold start.

Nothing is held back: every request is served by the product's own path and learned from as an engine
would, and is then compared with its dense run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvcomm_agents.config import ReuseConfig

from .chain import Chain
from .fidelity import serve
from .measure import Row
from .replay import Replay

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


def online(
    chain: Chain,
    phases: Sequence[Phase],
    reuse: ReuseConfig | None = None,
    embedder: str | None = None,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Serve all phases in turn with one memory.

    Args:
        chain: whose requests.
        phases: in order.
        reuse: the policy.
        embedder: as in `EngineConfig`.
        tell: hears of progress.

    Returns:
        `max_divergence`, `phases` and `questions`. Agents that read nobody are left out.
    """
    reuse = reuse or ReuseConfig()
    texts = [text for phase in phases for text in phase.questions]
    instances = chain.run(texts, lambda done: tell("dense answers", done, len(texts)))
    replay = Replay(chain.loaded, reuse, embedder)
    served: list[list[Row]] = []
    for index, question in enumerate(instances):
        rows = [serve(replay, instance) for instance in question]
        served.append(rows[1:])
        tell("guarded", index + 1, len(texts))
    found, at = [], 0
    for phase in phases:
        rows = [row for question in served[at : at + len(phase.questions)] for row in question]
        found.append({"name": phase.name, "questions": len(phase.questions), **_phase(rows, reuse.max_divergence)})
        at += len(phase.questions)
    return {
        "max_divergence": reuse.max_divergence,
        "phases": found,
        "questions": [_question(rows) for rows in served],
    }


def _phase(rows: Sequence[Row], bound: float) -> dict[str, Any]:
    reused = [row for row in rows if row.extra["reused"]]
    audited = [row for row in reused if row.extra["audited"]]
    kl = [row.kl_mean for row in rows]
    return {
        "n": len(rows),
        "kl_mean": float(np.mean(kl)),
        "kl_first": float(np.mean([row.kl_first for row in rows])),
        "kl_p90": float(np.quantile(kl, 0.9)),
        "kl_max": float(np.max(kl)),
        "kl_mean_of_reused": float(np.mean([row.kl_mean for row in reused])) if reused else None,
        "computed_fraction": sum(row.computed for row in rows) / sum(row.prompt for row in rows),
        "reused_share": len(reused) / len(rows),
        "rungs": dict(Counter(str(row.extra["rung"]) for row in rows)),
        "within_bound": float(np.mean([row.kl_mean <= bound for row in reused])) if reused else None,
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
        "kl_mean": float(np.mean([row.kl_mean for row in rows])),
        "predicted": [row.extra["predicted"] for row in reused],
        "true": [row.kl_mean for row in reused],
        "audited_kl": [row.kl_mean for row in reused if row.extra["audited"]],
        "rungs": [row.extra["rung"] for row in rows],
    }
