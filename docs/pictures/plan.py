"""Draws docs/pictures/plan.png: the prompts of a team on SmolLM2, after it has answered a few questions.

Needs matplotlib: pip install "kvcomm-agents[plot]". Takes a few minutes on a CPU.
"""

from pathlib import Path

from kvcomm_agents import Engine, Message, Request, SamplingParams
from kvcomm_agents.observe.pictures import draw

QUESTIONS = (
    "Why does the sea come up the beach twice a day, and why not at the same hour every day? Where is it highest?",
    "What makes bread rise in the bowl before it is baked, and what happens to whoever did that once the oven is hot?",
    "Why do we see a bow of colours when the sun shines into the rain, and why does nobody ever get to its end?",
    "How can a piece of iron pull another one through paper, and why does it forget how to when it is made very hot?",
    "How does a river of ice move down a valley when ice is hard, and what does it do to the stones below it?",
    "Why does soap take grease off our hands when water alone does not, and where does the grease go in the end?",
    "How does a small battery make a lamp shine, and what is different inside it when after some weeks it is empty?",
    "Why does a voice come back from a wall of rock, and why do we hear nothing of it in a room full of furniture?",
    "Why is it cold in winter although the earth is then nearer to the sun, and what is it like south of the equator?",
)
ANSWER_TOKENS = 32
WRITER = (
    "You are the writer of a small encyclopaedia for schools. You explain things in plain words, and give an example."
)
EDITOR = (
    "You are the editor of a small encyclopaedia for schools. You take an entry and write it as it will be printed:"
    " short, correct, and without any remark of your own."
)


def answer(engine: Engine, agent: str, system: str, text: str) -> str:
    """What an agent says to a text."""
    params = SamplingParams(max_tokens=ANSWER_TOKENS, repetition_penalty=1.1)
    messages = (Message("system", system), Message("user", text))
    return engine.generate(Request(messages, params, agent=agent)).text


def main() -> None:
    """Let the team answer, and draw its last round."""
    engine = Engine("HuggingFaceTB/SmolLM2-135M-Instruct")
    for question in QUESTIONS:
        entry = answer(engine, "writer", WRITER, question)
        answer(
            engine,
            "editor",
            EDITOR,
            f"A pupil of ten years has sent this question to us: {question}\n\n"
            f"The writer's entry, which has not been printed and which you alone have seen, is this: {entry}\n\n"
            "Now write the entry as it will be printed in our encyclopaedia, in three sentences that read easily.",
        )
        engine.settle()  # idle time: what was learned is there for the next question
    last = engine.reports[-2:]
    for report in last:
        print(report)  # noqa: T201
        for run in report.runs:
            print(f"  {run.start:4} to {run.stop:4}  {run.describe()}")  # noqa: T201
    title = f"Question {len(QUESTIONS)} to a team on SmolLM2-135M-Instruct"
    draw(last, title).save(Path(__file__).with_suffix(".png"), dpi=100)
    engine.close()


if __name__ == "__main__":
    main()
