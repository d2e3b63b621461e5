"""Built-in tales as tasks of every kind, so that all screens can be seen without a model."""

import random

import sqlalchemy as sa

from prefloop import tales
from prefloop.labels.people import join_admins
from prefloop.labels.projects import ChatOptions, Dwell, Kind, ProjectConfig, Rule
from prefloop.labels.publish import NewTask, add_project, publish_tasks
from prefloop.labels.schema import project
from prefloop.records import Completion, Message, Prompt, content_id, file_completion

TASKS_EACH = 12
NUM_COMPLETIONS: dict[Kind, int] = {"pairwise": 2, "rank": 4, "form": 1, "rules": 1, "edit": 1, "steps": 2}
TITLES: dict[Kind, str] = {
    "pairwise": "Which tale is better?",
    "rank": "Put four tales in order",
    "form": "Rate a tale",
    "rules": "Does the tale keep the rules?",
    "edit": "Make a tale better",
    "steps": "Which way should the tale go on?",
    "demonstration": "Tell a tale yourself",
    "prompt": "Ask for a tale",
}
RULES = (
    Rule(id="kind", text="Nobody in the tale is cruel."),
    Rule(id="asked", text="The tale is about the animal that was asked for."),
)
POLICIES = ("first=scripted", "second=scripted?latency_s=1")
"""To talk with, where no others are named."""
GUIDELINES = """# Good tales

A good tale is **kind**: its hero helps somebody. It is about what was asked for, and it ends well.

- Length alone is no merit.
- Where both tales are equally good, say so; where both are useless, say that.
"""


def publish_demo(connection: sa.Connection, now: int) -> None:
    """A project for each kind of task, and one to chat in; those that are there stay as they are."""
    for kind, title in TITLES.items():
        config = ProjectConfig(
            kind=kind,
            rules=RULES if kind == "rules" else (),
            dwell=Dwell(least_s=1.0, most_s=3.0),
            repeat_share=0,
        )
        if _add(connection, now, f"demo-{kind}", config, title):
            publish_tasks(
                connection, now, f"demo-{kind}", [_task(kind, number) for number in range(TASKS_EACH)]
            )
    _add(connection, now, "demo-chat", ProjectConfig(chat=ChatOptions(max_turns=4)), "Talk with two models")


def _add(connection: sa.Connection, now: int, name: str, config: ProjectConfig, title: str) -> bool:
    if connection.execute(sa.select(project.c.id).where(project.c.id == name)).first() is not None:
        return False
    add_project(connection, now, name, config, title=title, guidelines=GUIDELINES)
    join_admins(connection, name)
    return True


def _task(kind: Kind, number: int) -> NewTask:
    rng = random.Random(f"{kind} {number}")
    cast = tales.Cast(rng.choice(list(tales.HEROES)), rng.choice(tales.ANIMALS), rng.choice(tales.THINGS))
    asked = f"Tell a tale of {cast.hero} the {cast.animal} who wanted a {cast.thing}."
    prompt = Prompt.of((Message(role="user", content=asked),), source=f"builtin:{tales.VERSION}")
    texts = [tales.write_tale(cast, rng) for _ in range(NUM_COMPLETIONS.get(kind, 0))]
    if kind == "steps":
        texts = _two_ways_on(texts)
    payload = {"rules": [rule.id for rule in RULES]} if kind == "rules" else None
    return NewTask(
        prompt=prompt,
        completions=tuple(_completion(prompt, text, place) for place, text in enumerate(texts)),
        kind=kind,
        id=content_id("demo", kind, number),
        payload=payload,
        strategy="random",
    )


def _two_ways_on(texts: list[str]) -> list[str]:
    """The first tale's beginning with the next sentence of either."""
    sentences = [text.split(". ") for text in texts]
    begin = ". ".join(sentences[0][:2]) + ". "
    return [f"{begin}{one[2].rstrip('.')}." for one in sentences]


def _completion(prompt: Prompt, text: str, place: int) -> Completion:
    return file_completion(prompt, text, place)
