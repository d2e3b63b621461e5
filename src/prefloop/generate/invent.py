"""Prompts from several sources: drawn ones, those of another file, and two kinds that the policy itself makes: it plays the
user of a conversation, or asks what a careless assistant would answer badly (the four sources of arXiv:2209.14375).

Knows nothing about files: receives prompts and a generator of one completion a prompt.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from prefloop.config import AdversarialSource, PromptSource, SelfPlaySource
from prefloop.interfaces import Generator
from prefloop.records import Group, Message, Prompt

Turns = tuple[Message, ...]
Writer = Literal["user", "assistant"]
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


class Dropped(NamedTuple):
    """Why a drawn prompt became no new one."""

    reason: str


def invent(
    drawn: Sequence[Prompt],
    sources: Sequence[PromptSource],
    generator: Generator,
    *,
    seed: int,
    others: Sequence[Sequence[Prompt] | None] = (),
) -> list[Prompt | Dropped]:
    """What becomes of each drawn prompt, in order. Each source takes its share from the front of what is left; the rest
    stays as it was drawn. `others` are the prompts that a source has of its own, as many as its share; None for none."""
    made: list[Prompt | Dropped] = []
    for source, own in zip(sources, others or [None] * len(sources), strict=True):
        drawn_part = drawn[len(made) : len(made) + share_of(source, len(drawn))]
        part = drawn_part if own is None else own
        match source.kind:
            case "file":
                made += part
                continue
            case "self_play":
                talks = _played(part, source, generator)
            case "adversarial":
                talks = _asked(part, drawn, source, generator, seed=seed)
        made += [
            one if isinstance(one, Dropped) else Prompt.of(one, source=f"{source.kind}:{before.source}")
            for before, one in zip(part, talks, strict=True)
        ]
    return [*made, *drawn[len(made) :]]


def share_of(source: PromptSource, number: int) -> int:
    """How many of so many prompts are the source's."""
    return round(source.share * number)


def _played(prompts: Sequence[Prompt], source: SelfPlaySource, generator: Generator) -> list[Turns | Dropped]:
    talks: list[Turns | Dropped] = [one.messages for one in prompts]
    for _ in range(source.turns):
        talks = _extended(talks, "assistant", generator, lambda turns: turns)
        talks = _extended(talks, "user", generator, lambda turns: _as_user(turns, source.template))
    return talks


def _asked(
    prompts: Sequence[Prompt],
    examples: Sequence[Prompt],
    source: AdversarialSource,
    generator: Generator,
    *,
    seed: int,
) -> list[Turns | Dropped]:
    rng = np.random.default_rng(seed)
    number = min(source.num_examples, len(examples))

    def told(_: Turns) -> Turns:
        shown = rng.choice(len(examples), number, replace=False)
        return _told(source.template, "{examples}", "\n".join(f"- {examples[one].text}" for one in shown))

    return _extended([() for _ in prompts], "user", generator, told)


def _extended(
    talks: Sequence[Turns | Dropped],
    role: Writer,
    generator: Generator,
    asked: Callable[[Turns], Turns],
) -> list[Turns | Dropped]:
    """Every conversation with one more turn, which the policy writes when it reads what `asked` makes of it."""
    going = [one for one in talks if not isinstance(one, Dropped)]
    groups = generator.generate([Prompt.of(asked(one)) for one in going])
    longer = (_with_turn(one, role, group) for one, group in zip(going, groups, strict=True))
    return [one if isinstance(one, Dropped) else next(longer) for one in talks]


def _with_turn(turns: Turns, role: Writer, group: Group) -> Turns | Dropped:
    if not group.completions:
        return Dropped("prompt_too_long")
    (one,) = group.completions
    if one.finish_reason == "length":
        return Dropped("unfinished")
    text = one.text.strip()
    return (*turns, Message(role=role, content=text)) if text else Dropped("empty")


def _as_user(turns: Turns, template: str) -> Turns:
    shown = "\n\n".join(f"{SPEAKERS[one.role]}: {one.content}" for one in turns)
    return _told(template, "{conversation}", shown)


def _told(template: str, place: str, text: str) -> Turns:
    return (Message(role="user", content=template.replace(place, text)),)
