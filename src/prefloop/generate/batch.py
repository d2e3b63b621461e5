"""A batch of prompts and their completions under way: who enters, who goes on, who has ended.

Knows nothing about models and text: logits come from a decoder, and each task says where its completions end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from prefloop.config import GenerateSection
from prefloop.generate.decoders import Decoder, RefillingDecoder
from prefloop.generate.draw import Draw, draw, penalise
from prefloop.generate.sampling import temperatures_of

COMPACT_BELOW = 0.75
"""Free slots are given up when less than this share of all is used and no prompt is left to enter."""
REFILL_FROM = 0.25
"""Share of the slots that must be free before more prompts enter: reading them is a pass of its own."""


@dataclass
class Drawn:
    """One completion as it grows; the log-probabilities are those of `Draw`."""

    token_ids: list[int] = field(default_factory=list)
    token_logps: list[float] = field(default_factory=list)
    sampled_logps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """A prompt on its way through the batch."""

    number: int
    """Of the request."""
    part: int
    """Of its completions, where not all run side by side."""
    ids: Sequence[int]
    budget: int
    """Tokens that a completion may have."""
    stops: Callable[[Sequence[int]], bool]
    """Whether a completion has come to its end by itself."""
    uniforms: Tensor
    """[C, budget], C completions"""
    temperatures: Tensor
    """[C]"""
    drawn: tuple[Drawn, ...]


class Slots:
    """The places of a batch for prompts, each with as many rows as copies: that of a completion is slot * copies + copy."""

    def __init__(self, decoder: Decoder, number: int, copies: int) -> None:
        self.copies = copies
        self.refills = isinstance(decoder, RefillingDecoder)
        """Whether prompts may enter while others run."""
        self._decoder = decoder
        self._tasks: list[Task | None] = [None] * number

    def __getitem__(self, slot: int) -> Task:
        task = self._tasks[slot]
        assert task is not None, "asked only of slots that are used"
        return task

    @property
    def used(self) -> list[int]:
        """Slots with a prompt."""
        return [slot for slot, one in enumerate(self._tasks) if one is not None]

    @property
    def room(self) -> int:
        """How many prompts may enter now."""
        free = self._tasks.count(None)
        if free == len(self._tasks):
            return free
        return free if self.refills and free >= REFILL_FROM * len(self._tasks) else 0

    def take(self, tasks: Sequence[Task]) -> list[int]:
        """Puts prompts into free slots; says which."""
        free = [slot for slot, one in enumerate(self._tasks) if one is None][: len(tasks)]
        for slot, task in zip(free, tasks, strict=True):
            self._tasks[slot] = task
        return free

    def leave(self, slot: int) -> Task:
        """Frees a slot."""
        task = self[slot]
        self._tasks[slot] = None
        return task

    def give_up_free(self) -> dict[int, int]:
        """Makes the batch smaller where that is worth it; returns the new number of each slot that is left."""
        used = self.used
        decoder = self._decoder
        if len(used) < COMPACT_BELOW * len(self._tasks) and isinstance(decoder, RefillingDecoder):
            decoder.keep(used)
            self._tasks = [self._tasks[slot] for slot in used]
            return {slot: place for place, slot in enumerate(used)}
        return {slot: slot for slot in used}


class Owner(NamedTuple):
    """Whose a row is."""

    slot: int
    task: Task
    drawn: Drawn


@dataclass
class _Rows:
    """The rows that run, in ascending order, and what each brings along: A of each."""

    numbers: list[int]
    owners: list[Owner]
    at: Tensor
    """[A], the numbers for the decoder; the same tensor as long as the same rows run."""
    logits: Tensor
    """[A, V], of what follows."""
    uniforms: Tensor
    """[A, T], for the tokens that are still to be drawn."""
    temperatures: Tensor
    """[A]"""
    seen: Tensor
    """[A, V], tokens of prompt and completion; [A, 0] where nobody asks."""

    def only(self, places: list[int]) -> "_Rows":
        """Those at these places."""
        return _Rows(
            [self.numbers[one] for one in places],
            [self.owners[one] for one in places],
            *(one[places] for one in (self.at, self.logits, self.uniforms, self.temperatures, self.seen)),
        )

    def joined(self, others: "_Rows") -> "_Rows":
        """Both, in ascending order."""
        longest = max(self.uniforms.shape[1], others.uniforms.shape[1])
        uniforms = [
            functional.pad(one.uniforms, (0, longest - one.uniforms.shape[1])) for one in (self, others)
        ]
        both = _Rows(
            self.numbers + others.numbers,
            self.owners + others.owners,
            torch.cat([self.at, others.at]),
            torch.cat([self.logits, others.logits]),
            torch.cat(uniforms),
            torch.cat([self.temperatures, others.temperatures]),
            torch.cat([self.seen, others.seen]),
        )
        return both.only(sorted(range(len(both.numbers)), key=both.numbers.__getitem__))


class Batch:
    """Prompts in slots, and the rows that run; changed in place."""

    def __init__(self, decoder: Decoder, num_slots: int, num_copies: int, options: GenerateSection) -> None:
        self._decoder = decoder
        self._options = options
        self._slots = Slots(decoder, num_slots, num_copies)
        self._has_temperature = any(one != 1 for one in temperatures_of(options))
        self._rows: _Rows | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no row runs."""
        return self._rows is None

    @property
    def refills(self) -> bool:
        """Whether prompts may enter while others run."""
        return self._slots.refills

    @property
    def room(self) -> int:
        """How many prompts may enter now."""
        return self._slots.room

    @torch.inference_mode()
    def enter(self, tasks: Sequence[Task]) -> None:
        """Puts prompts into free slots."""
        if not tasks:
            return
        slots = self._slots.take(tasks)
        logits = self._decoder.enter(slots, [one.ids for one in tasks])
        rows = self._new_rows(slots, tasks, logits.repeat_interleave(self._slots.copies, 0))
        self._rows = rows if self._rows is None else self._rows.joined(rows)

    def _new_rows(self, slots: Sequence[int], tasks: Sequence[Task], logits: Tensor) -> _Rows:
        numbers = [slot * self._slots.copies + copy for slot in slots for copy in range(self._slots.copies)]
        longest = max(one.budget for one in tasks)
        uniforms = torch.cat([functional.pad(one.uniforms, (0, longest - one.budget)) for one in tasks])
        return _Rows(
            numbers,
            [
                Owner(slot, task, drawn)
                for slot, task in zip(slots, tasks, strict=True)
                for drawn in task.drawn
            ],
            torch.tensor(numbers, device=logits.device),
            logits,
            uniforms.to(logits.device),
            torch.cat([one.temperatures for one in tasks]).to(logits.device),
            self._seen_in(tasks, logits),
        )

    def _seen_in(self, tasks: Sequence[Task], logits: Tensor) -> Tensor:
        if self._options.repetition_penalty == 1:
            return torch.empty(len(logits), 0, dtype=torch.bool, device=logits.device)
        seen = torch.zeros_like(logits, dtype=torch.bool)
        copies = self._slots.copies
        for place, task in enumerate(tasks):
            seen[place * copies : (place + 1) * copies, list(task.ids)] = True
        return seen

    @torch.inference_mode()
    def give_up_free_slots(self) -> None:
        """Makes the batch smaller; for when nobody is left to enter."""
        new = self._slots.give_up_free()
        rows, copies = self._rows, self._slots.copies
        if rows is None or all(slot == number for slot, number in new.items()):
            return
        numbers = [new[row // copies] * copies + row % copies for row in rows.numbers]
        rows.owners = [one._replace(slot=new[one.slot]) for one in rows.owners]
        rows.numbers, rows.at = numbers, torch.tensor(numbers, device=rows.at.device)

    @torch.inference_mode()
    def step(self) -> list[Task]:
        """Draws one token for every row, and reads it where the row goes on; returns the tasks that have ended."""
        rows = self._rows
        assert rows is not None, "called only while rows run"
        drawn = self._draw(rows)
        tokens, going = drawn.tokens, _write_down(rows, drawn)
        ended: list[Task] = []
        if len(going) < len(rows.numbers):
            ran = {one.slot for one in rows.owners}
            rows, tokens = rows.only(going), tokens[going]
            ended = [self._slots.leave(slot) for slot in sorted(ran - {one.slot for one in rows.owners})]
        if going:
            rows.logits = self._decoder.step(rows.at, tokens)
        self._rows = rows if going else None
        return ended

    def _draw(self, rows: _Rows) -> Draw:
        options = self._options
        penalised = None
        if options.repetition_penalty != 1:
            penalised = penalise(rows.logits, rows.seen, options.repetition_penalty)
        found = draw(
            rows.logits,
            rows.uniforms[:, 0],
            rows.temperatures if self._has_temperature else None,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            penalised=penalised,
        )
        rows.uniforms = rows.uniforms[:, 1:]
        if penalised is not None:
            rows.seen.scatter_(1, found.tokens.unsqueeze(1), True)
        return found


def _write_down(rows: _Rows, drawn: Draw) -> list[int]:
    """Adds what was drawn to the completions; returns the places of the rows that go on."""
    going = []
    values = zip(rows.owners, *(one.tolist() for one in drawn), strict=True)
    for place, ((_, task, one), token, logp, sampled_logp) in enumerate(values):
        one.token_ids.append(token)
        one.token_logps.append(logp)
        one.sampled_logps.append(sampled_logp)
        if len(one.token_ids) < task.budget and not task.stops(one.token_ids):
            going.append(place)
    return going
