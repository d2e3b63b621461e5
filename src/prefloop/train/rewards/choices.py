"""From preferences to choices: the best option of a turn against the others and random statements of other dialogues."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.batches import Codec, TokenGroup
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, Message, PreferencePair, Prompt, Record, messages_id
from prefloop.train.rewards.losses import ChoiceGroup

RANDOM_STATEMENTS = 3
"""Tells the random numbers that draw statements from others of the same seed."""
ALL_BAD = -1
Ids = tuple[int, ...]


class RandomStatements(Record):
    """Which statements of other dialogues an answer was trained against."""

    prompt_id: str
    completion_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Turn:
    prompt: Prompt
    options: tuple[Completion, ...]
    chosen: int


@dataclass(frozen=True)
class _Statement:
    dialogue: str
    id: str
    ids: Ids


def choices(
    pairs: Sequence[PreferencePair],
    all_bad: Sequence[Group],
    codec: Codec,
    *,
    random_per_option: int,
    seed: int,
) -> tuple[list[ChoiceGroup], int]:
    """The choice of each turn with its random statements; and the number of turns without a single best option."""
    turns, unclear = _turns(pairs)
    turns += [_Turn(one.prompt, one.completions, ALL_BAD) for one in all_bad]
    encoded = [
        tuple(tuple(codec.completion_ids(one.prompt.messages, option)) for option in one.options)
        for one in turns
    ]
    pool = [
        _Statement(dialogue_of(one.prompt.messages), option.id, ids)
        for one, options in zip(turns, encoded, strict=True)
        for option, ids in zip(one.options, options, strict=True)
    ]
    sizes = Counter(statement.dialogue for statement in pool)
    rng = np.random.default_rng([seed, RANDOM_STATEMENTS])
    groups = []
    for one, options in zip(turns, encoded, strict=True):
        dialogue = dialogue_of(one.prompt.messages)
        number = min(random_per_option * len(options), len(pool) - sizes[dialogue])
        if random_per_option and not number:
            raise InputError(
                "reward.objective.random_per_option: there is no other dialogue to take statements from; set it to 0"
            )
        drawn = _draw(pool, dialogue, number, rng)
        groups.append(
            ChoiceGroup(
                TokenGroup(tuple(codec.prompt_ids(one.prompt.messages)), (*options, *(s.ids for s in drawn))),
                num_options=len(options),
                chosen=one.chosen,
                name=one.prompt.id,
                random_ids=tuple(statement.id for statement in drawn),
            )
        )
    return groups, unclear


def dialogue_of(messages: Sequence[Message]) -> str:
    """What turns of one dialogue have in common: how it begins, up to the first thing that the user says."""
    place = next((place for place, one in enumerate(messages) if one.role == "user"), 0)
    return messages_id(tuple(messages[: place + 1]))


def _turns(pairs: Sequence[PreferencePair]) -> tuple[list[_Turn], int]:
    by_prompt: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt.id, []).append(pair)
    turns, unclear = [], 0
    for same in by_prompt.values():
        options = list({one.text: one for pair in same for one in (pair.chosen, pair.rejected)}.values())
        beaten = {pair.rejected.text for pair in same}
        best = [place for place, one in enumerate(options) if one.text not in beaten]
        if len(best) == 1:
            turns.append(_Turn(same[0].prompt, tuple(options), best[0]))
        unclear += len(best) != 1
    return turns, unclear


def _draw(
    pool: Sequence[_Statement], dialogue: str, number: int, rng: np.random.Generator
) -> list[_Statement]:
    """So many different statements of other dialogues."""
    drawn: dict[int, _Statement] = {}
    while len(drawn) < number:
        place = int(rng.integers(len(pool)))
        if pool[place].dialogue != dialogue:
            drawn.setdefault(place, pool[place])
    return list(drawn.values())
