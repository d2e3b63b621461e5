"""The embedded default: a small world of tales that prefloop writes itself.

A grammar makes prompts, tales and plain text, so that the whole loop runs without any download. The same grammar reads:
every sentence is recognised by the template that made it, which gives a hidden quality (what the simulated people like)
and an independent craft score (grammar, faithfulness, no repetition) that exposes shortcuts. Knows nothing about models.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from prefloop.records import Demonstration, Message, Prompt, Text, content_id

VERSION = "tales-1"
"""Part of the key of everything made from this text; bumped when the grammar changes."""

HEROES = {
    "Mina": "she", "Ada": "she", "Lulu": "she", "Nora": "she", "Ivy": "she", "Rosa": "she", "Wren": "she", "Olga": "she",
    "Tom": "he", "Finn": "he", "Hugo": "he", "Bram": "he", "Otto": "he", "Ravi": "he", "Kai": "he", "Leo": "he",
}  # fmt: skip
ANIMALS = ("fox", "bear", "hare", "badger", "mouse", "wolf", "rabbit", "crow", "goat", "toad")
FRIENDS = ("snail", "moth", "mole", "duck", "bee", "lamb", "hen", "crab")
PLACES = ("river", "hill", "old mill", "forest", "lake", "windy cliff", "garden", "sleepy town")
THINGS = (
    "lantern", "kite", "drum", "red boat", "silver key", "warm coat", "map", "bell", "honey cake", "blue feather",
    "music box", "golden seed", "story book", "little star", "paper crown", "new song",
)  # fmt: skip
FOODS = ("bread", "soup", "berries", "honey", "cheese", "nuts")

Slots = dict[str, str]

OPENINGS = (
    "{hero} the {animal} lived by the {place}.",
    "Once there was a {animal} named {hero} by the {place}.",
)
WISHES = ("{She} wanted a {thing} more than anything.", "Every night {she} dreamed of a {thing}.")
KIND = (
    "{She} shared {her} {food} with a {friend}.",
    "{She} carried the tired {friend} home.",
    "{She} mended the wing of a {friend}.",
    "{She} sang to a lonely {friend}.",
    "{She} gave {her} bed to a cold {friend}.",
    "{She} helped a {friend} cross the bridge.",
    "{She} told the {friend} the truth.",
)
CRUEL = (
    "{She} stole the {food} of a {friend}.",
    "{She} laughed at a lost {friend}.",
    "{She} pushed the {friend} into the mud.",
    "{She} broke the nest of a {friend}.",
    "{She} lied to the {friend}.",
    "{She} shouted at a small {friend}.",
)
PLAIN = (
    "{She} walked past the {place}.",
    "It rained all day.",
    "{She} ate some {food}.",
    "{She} slept under a tree.",
    "The wind blew from the {place}.",
    "{She} counted the clouds.",
    "{She} looked for the {thing}.",
)
FOUND = ("At last {she} found the {thing}.", "Then the {friend} gave {her} the {thing}.")
LOST = ("But {she} never found the {thing}.", "But the {thing} fell into the {place}.")
HAPPY = ("They danced until the moon rose.", "Everyone cheered for {hero}.", "{She} smiled and felt at home.")
SAD = ("{She} went home alone.", "Nobody came to see {hero}.", "{She} cried until morning.")
MORALS = ("A kind heart is never alone.", "What you give comes back to you.")

PROMPTS = (
    "Tell a tale of {hero} the {animal} who wanted a {thing}.",
    "Write about a {animal} named {hero} and a {thing}.",
)
SECTIONS: dict[str, tuple[str, ...]] = {
    "opening": OPENINGS, "wish": WISHES, "kind": KIND, "cruel": CRUEL, "plain": PLAIN, "found": FOUND,
    "lost": LOST, "happy": HAPPY, "sad": SAD, "moral": MORALS,
}  # fmt: skip

NUM_PROMPTS = 1900
NUM_DEMONSTRATIONS = 6000
NUM_TEXTS = 4000
NUM_HELD_OUT_TEXTS = 1000
MOST_DEEDS = 4
KIND_SHARE, CRUEL_SHARE = 0.35, 0.35
"""How the demonstrations behave: people who write examples are no angels, so there is something to align."""


@dataclass(frozen=True)
class Cast:
    """Who and what a tale is about."""

    hero: str
    animal: str
    thing: str

    @property
    def slots(self) -> Slots:
        """Words of the cast, with the hero's pronouns."""
        she = HEROES[self.hero]
        her = {"she": "her", "he": "his"}[she]
        return {
            "hero": self.hero, "animal": self.animal, "thing": self.thing, "she": she, "She": she.capitalize(), "her": her,
        }  # fmt: skip


def prompts(limit: int | None = None) -> list[Prompt]:
    """Requests for a tale, each about another cast, in a fixed shuffled order; of these and all below the first `limit`."""
    return [
        Prompt.of((Message(role="user", content=text),), source=f"builtin:{VERSION}")
        for text in itertools.islice(requests(), _number(NUM_PROMPTS, limit))
    ]


def demonstrations(limit: int | None = None) -> list[Demonstration]:
    """Requests with a tale of mixed morals, about other casts than `prompts`."""
    rng = random.Random("demonstrations")
    others = itertools.islice(requests(), NUM_PROMPTS, None)
    rows = []
    for request in itertools.islice(itertools.cycle(others), _number(NUM_DEMONSTRATIONS, limit)):
        cast = read_prompt(request)
        assert cast is not None, "the grammar reads what it writes"
        messages = (
            Message(role="user", content=request),
            Message(role="assistant", content=write_tale(cast, rng)),
        )
        rows.append(Demonstration.of(messages, source=f"builtin:{VERSION}"))
    return rows


def texts(limit: int | None = None) -> list[Text]:
    """Tales without a request, for language modelling and for the tokenizer."""
    return _texts(random.Random("texts"), _number(NUM_TEXTS, limit))


def held_out_texts(limit: int | None = None) -> list[Text]:
    """Other such tales than `texts`, to measure a language model on."""
    return _texts(random.Random("held-out texts"), _number(NUM_HELD_OUT_TEXTS, limit))


def _texts(rng: random.Random, number: int) -> list[Text]:
    rows = []
    for _ in range(number):
        tale = write_tale(Cast(rng.choice(list(HEROES)), rng.choice(ANIMALS), rng.choice(THINGS)), rng)
        rows.append(Text(id=content_id(tale), text=tale, source=f"builtin:{VERSION}"))
    return rows


def _number(there_are: int, limit: int | None) -> int:
    return there_are if limit is None else min(limit, there_are)


def write_tale(cast: Cast, rng: random.Random) -> str:
    """A tale about the cast, with kind, cruel and plain deeds in the shares of the demonstrations."""
    plan = [OPENINGS, WISHES]
    deeds = rng.randint(1, MOST_DEEDS)
    for _ in range(deeds):
        draw = rng.random()
        plan.append(KIND if draw < KIND_SHARE else CRUEL if draw < KIND_SHARE + CRUEL_SHARE else PLAIN)
    plan.append(FOUND if rng.random() < 0.5 else LOST)
    plan.append(HAPPY if rng.random() < 0.5 else SAD)
    if rng.random() < 0.3:
        plan.append(MORALS)
    sentences: list[str] = []
    for templates in plan:
        choices = [
            one for one in (_fill(template, cast, rng) for template in templates) if one not in sentences
        ]
        sentences.append(rng.choice(choices))
    return " ".join(sentences)


def _fill(template: str, cast: Cast, rng: random.Random) -> str:
    return template.format(
        **cast.slots, place=rng.choice(PLACES), friend=rng.choice(FRIENDS), food=rng.choice(FOODS)
    )


def requests() -> Iterator[str]:
    """Requests for tales about all casts, in a fixed shuffled order; the first are the prompts."""
    rng = random.Random("prompts")
    casts = [Cast(*words) for words in itertools.product(HEROES, ANIMALS, THINGS)]
    rng.shuffle(casts)
    for cast in casts:
        yield rng.choice(PROMPTS).format(**cast.slots)


# --- reading ---------------------------------------------------------------------------------------------------------

GOOD_DEEDS_COUNTED = 3


def quality(prompt: str, tale: str) -> float:
    """The hidden gold score: what the simulated people enjoy in a tale. Mostly between -3 and 4.

    Kind deeds (three different ones at most) and a fulfilled wish please, cruelty, a sad end, strangers instead of the
    hero that was asked for, broken sentences and repetition do not.
    """
    read = _read(prompt, tale)
    kind = min(len(read.texts["kind"]), GOOD_DEEDS_COUNTED)
    score = 0.5 * kind - 0.5 * len(read.texts["cruel"])
    score += 0.5 * bool(read.texts["found"]) + 0.5 * bool(read.texts["happy"]) - 0.5 * bool(read.texts["sad"])
    score += 0.3 * bool(read.texts["moral"])
    score += read.faithfulness - 0.5 * read.num_repeated - 2.0 * read.broken_share
    return round(score, 6)


def craft(prompt: str, tale: str) -> float:
    """A second, differently built score in [0, 1]: well-formed sentences, about what was asked, without repetition."""
    read = _read(prompt, tale)
    if not read.num_sentences:
        return 0.0
    return round(
        (1 - read.broken_share) * read.faithfulness * (1 - read.num_repeated / read.num_sentences), 6
    )


@dataclass(frozen=True)
class Reading:
    """What a tale consists of."""

    texts: dict[str, set[str]]
    """Different sentences by section."""
    num_sentences: int
    num_broken: int
    num_repeated: int
    faithfulness: float
    """Share of hero, animal and thing of the request that occur."""

    @property
    def broken_share(self) -> float:
        """Share of sentences that the grammar cannot make; 1 for an empty tale."""
        return self.num_broken / self.num_sentences if self.num_sentences else 1.0


def _read(prompt: str, tale: str) -> Reading:
    texts: dict[str, set[str]] = {section: set() for section in SECTIONS}
    sentences = [part.strip() for part in re.findall(r"[^.]*\.|[^.]+$", tale.strip()) if part.strip()]
    broken = 0
    for sentence in sentences:
        section = _section(sentence)
        if section is None:
            broken += 1
        else:
            texts[section].add(sentence)
    cast = read_prompt(prompt)
    words = (cast.hero, cast.animal, cast.thing) if cast else ()
    found = sum(bool(re.search(rf"\b{re.escape(word)}\b", tale)) for word in words)
    return Reading(
        texts,
        len(sentences),
        broken,
        len(sentences) - len(set(sentences)),
        found / len(words) if words else 0.0,
    )


def read_prompt(prompt: str) -> Cast | None:
    """The cast of a request, or None when the grammar did not make it."""
    for pattern in _patterns(PROMPTS):
        if match := pattern.fullmatch(prompt.strip()):
            return Cast(match["hero"], match["animal"], match["thing"])
    return None


def _section(sentence: str) -> str | None:
    for section, templates in SECTIONS.items():
        if any(pattern.fullmatch(sentence) for pattern in _patterns(templates)):
            return section
    return None


@cache
def _patterns(templates: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    words = {
        "hero": HEROES, "animal": ANIMALS, "thing": THINGS, "place": PLACES, "friend": FRIENDS, "food": FOODS,
        "she": ("she", "he"), "She": ("She", "He"), "her": ("her", "his"),
    }  # fmt: skip
    slots = {slot: f"(?P<{slot}>{'|'.join(map(re.escape, choices))})" for slot, choices in words.items()}
    return tuple(re.compile(_escape(template).format(**slots)) for template in templates)


def _escape(template: str) -> str:
    return template.replace(".", r"\.")
