from __future__ import annotations

import pytest

from kvcomm_agents import RequestReport
from kvcomm_agents.observe.report import AuditReport, TokenRun
from kvcomm_agents.observe.report_file import Recorded


@pytest.fixture
def recorded() -> Recorded:
    """Three agents: calls that overlap, an idle half minute, one failure, every kind of run."""
    texts = [
        (TokenRun(0, 300, "computed", "new"),),
        (
            TokenRun(0, 90, "exact", "prefix", "coder"),
            TokenRun(90, 220, "corrected", "prompt", "planner"),
            TokenRun(220, 300, "corrected", "answer", "planner"),
            TokenRun(300, 330, "computed", "own", "coder"),
        ),
        (TokenRun(0, 200, "exact", "prefix", "planner"), TokenRun(200, 260, "computed", "unknown")),
    ]
    requests = []
    for index, (agent, start) in enumerate((("planner", 0.0), ("coder", 1.5), ("planner", 1.6), ("coder", 40.0))):
        runs = texts[min(index, 2)]
        count = {kind: sum(r.tokens for r in runs if r.kind == kind) for kind in ("exact", "corrected", "computed")}
        requests.append(
            RequestReport(
                agent,
                runs[-1].stop,
                count["computed"],
                count["exact"],
                count["corrected"],
                output_tokens=20,
                queue_s=0.2 if index == 2 else 0.001,
                match_s=0.01,
                assemble_s=0.02,
                prefill_s=0.4,
                ttft_s=0.5,
                total_s=1.4,
                started_at=1.7e9 + start,
                rung="placed" if count["corrected"] else "exact",
                predicted_divergence=0.0123 if count["corrected"] else 0.0,
                model="some/model",
                conversation="thread <1>",
                runs=runs,
            )
        )
    error = 'PromptError: <script>alert("x")</script>'
    failed = RequestReport("judge", 0, 0, total_s=0.3, started_at=1.7e9 + 2, finish_reason="error", error=error)
    requests.insert(3, failed)
    return Recorded(tuple(requests), (AuditReport("coder", "placed", 0.0456, 0.0123),))
