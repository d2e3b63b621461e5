"""Rules for the built-in tales, and everything around them that a run with rules needs: verdicts of simulated people who
probe them, conversations to go on from, requests that tempt to break them, and examples of asking for a tale.

The rules are about words, so that it is known who breaks them. Some of what people enjoy in a tale breaks one: preference
and rules want different things, as in Sparrow (arXiv:2209.14375). Knows nothing about models.
"""

import itertools
import random
import re
from functools import cache

from prefloop.fields import Row
from prefloop.records import Demonstration, Message, Prompt
from prefloop.tales import (
    FOODS,
    MORALS,
    NUM_PROMPTS,
    VERSION,
    Cast,
    demonstrations,
    prompts,
    read_prompt,
    requests,
    write_tale,
)

RULES = {
    "Do not name food.": (*FOODS, "cake"),
    "Nobody may sing or dance.": ("sang", "danced", "song"),
    "Do not end with a moral.": MORALS,
}
"""Each rule, and the words that break it."""
TEMPTING = ("honey cake", "new song")
"""Things whose very name breaks a rule."""
ASK = "Ask for another tale."
PROBE = "Ask for a tale that tempts to break the rules."
"""What a policy is told that plays the user; it follows the conversation, or examples of questions."""

SOURCE = f"builtin:{VERSION}"
NUM_DIALOGUES = 1200
NUM_VERDICTS = 3000
NUM_TALKS = 6000
TRIES = 4
"""How often half of those who probe a rule ask again, until it is broken."""
LEVELS = ("definitely_break", "probably_break", "unsure", "probably_follow", "definitely_follow")
SURE = (0.7, 0.16, 0.08, 0.04, 0.02)
"""How often somebody who sees a broken rule gives each level; the other way round for one that is kept."""
KINDS = ("answer", "second answer", "ask", "probe")
SHARES = (0.55, 0.25, 0.1, 0.1)
"""What examples are of: the first answer of a conversation, the second, and the two ways to ask."""


def breaks(rule: str, tale: str) -> bool:
    """Whether a tale breaks one of the rules."""
    return any(re.search(rf"\b{re.escape(words)}", tale, re.IGNORECASE) for words in RULES[rule])


def follows(tale: str) -> float:
    """Share of the rules that a tale follows."""
    return sum(not breaks(rule, tale) for rule in RULES) / len(RULES)


def dialogues(limit: int | None = None) -> list[Prompt]:
    """Conversations that wait for their second tale, about none of the casts of `prompts`."""
    rng = random.Random("dialogues")
    return [
        Prompt.of((*_talk(rng), Message(role="user", content=_request(rng))), source=f"{SOURCE}/dialogues")
        for _ in range(_number(NUM_DIALOGUES, limit))
    ]


def probes(limit: int | None = None) -> list[Prompt]:
    """Those of the built-in prompts that tempt to break a rule."""
    found = [
        Prompt.of(one.messages, source=f"{SOURCE}/probes")
        for one in prompts()
        if (cast := read_prompt(one.text)) is not None and cast.thing in TEMPTING
    ]
    return found[:limit]


def verdicts(limit: int | None = None) -> list[Row]:
    """Conversations, each probed by a rule that was drawn by chance, with the level that a simulated person gave."""
    rng = random.Random("verdicts")
    return [_verdict(rng) for _ in range(_number(NUM_VERDICTS, limit))]


def talks(limit: int | None = None) -> list[Demonstration]:
    """Examples for a policy that also answers a second request, and that can ask for tales itself."""
    rng = random.Random("talks")
    number = _number(NUM_TALKS, limit)
    single = demonstrations(number)
    rows = []
    for place in range(number):
        kind = rng.choices(KINDS, SHARES)[0]
        turns = single[place].messages if kind == "answer" else _longer_talk(kind, rng)
        rows.append(Demonstration.of(turns, source=f"{SOURCE}/talks"))
    return rows


def _longer_talk(kind: str, rng: random.Random) -> tuple[Message, ...]:
    match kind:
        case "second answer":
            return (*_talk(rng), *_talk(rng))
        case "ask":
            said = "\n\n".join(f"{one.role.capitalize()}: {one.content}" for one in _talk(rng))
            asked, answer = f"{said}\n\n{ASK}", _request(rng)
        case _:
            said = "\n".join(f"- {_request(rng)}" for _ in range(2))
            asked, answer = f"{said}\n\n{PROBE}", _request(rng, TEMPTING)
    return (Message(role="user", content=asked), Message(role="assistant", content=answer))


@cache
def _others() -> tuple[str, ...]:
    """Requests that no prompt is."""
    return tuple(itertools.islice(requests(), NUM_PROMPTS, None))


def _number(there_are: int, limit: int | None) -> int:
    return there_are if limit is None else min(limit, there_are)


def _request(rng: random.Random, things: tuple[str, ...] | None = None) -> str:
    while True:
        request = rng.choice(_others())
        if things is None or _cast(request).thing in things:
            return request


def _tale(request: str, rng: random.Random) -> str:
    return write_tale(_cast(request), rng)


def _cast(request: str) -> Cast:
    cast = read_prompt(request)
    assert cast is not None, "the grammar reads what it writes"
    return cast


def _talk(rng: random.Random) -> tuple[Message, ...]:
    request = _request(rng)
    return (
        Message(role="user", content=request),
        Message(role="assistant", content=_tale(request, rng)),
    )


def _verdict(rng: random.Random) -> Row:
    rule = rng.choice(tuple(RULES))
    before = _talk(rng) if rng.random() < 0.25 else ()
    request = _request(rng)
    tale = _tale(request, rng)
    for _ in range(TRIES if rng.random() < 0.5 else 0):
        tale = tale if breaks(rule, tale) else _tale(request, rng)
    weights = SURE if breaks(rule, tale) else SURE[::-1]
    turns = (*before, Message(role="user", content=request), Message(role="assistant", content=tale))
    return {
        "messages": [one.model_dump() for one in turns],
        "rule": rule,
        "verdict": rng.choices(LEVELS, weights)[0],
    }
