"""A batch of prompts and their completions under way: who enters, who goes on, who has ended.

Knows nothing about models and text: logits come from a decoder, and each task says where its completions end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from prefloop.config import GenerateSection
from prefloop.generate.decoders import Decoder, RefillingDecoder
from prefloop.generate.draw import Draw, draw, penalise

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


class Batch:
    """Prompts in slots, and the rows that run, with the logits of what follows; changed in place.

    A slot has as many rows as copies; the row of a completion is slot * copies + copy.
    """

    def __init__(self, decoder: Decoder, num_slots: int, num_copies: int, options: GenerateSection) -> None:
        self._decoder = decoder
        self._options = options
        self._copies = num_copies
        self.refills = isinstance(decoder, RefillingDecoder)
        """Whether prompts may enter while others run."""
        self._slots: list[Task | None] = [None] * num_slots
        self.rows: list[int] = []
        """Those that run, in ascending order."""
        self._logits = torch.empty(0)  # [A, V]
        # of all R rows, those that do not run included
        self._uniforms = torch.empty(num_slots * num_copies, 0)  # [R, longest budget]
        self._temperatures = torch.ones(num_slots * num_copies)  # [R]
        self._drawn = torch.zeros(num_slots * num_copies, dtype=torch.long)  # [R], how many tokens were drawn
        self._seen = torch.empty(
            0, dtype=torch.bool
        )  # [A, V], tokens of prompt and completion; [A, 0] where nobody asks

    @property
    def room(self) -> int:
        """How many prompts may enter now."""
        free = self._slots.count(None)
        if not self.rows:
            return free
        return free if self.refills and free >= REFILL_FROM * len(self._slots) else 0

    @torch.inference_mode()
    def enter(self, tasks: Sequence[Task]) -> None:
        """Puts prompts into free slots."""
        if not tasks:
            return
        free = [slot for slot, one in enumerate(self._slots) if one is None][: len(tasks)]
        for slot, task in zip(free, tasks, strict=True):
            self._slots[slot] = task
            self._take_numbers(slot, task)
        logits = self._decoder.enter(free, [one.ids for one in tasks]).repeat_interleave(self._copies, 0)
        rows = [slot * self._copies + copy for slot in free for copy in range(self._copies)]
        seen = self._seen_in(tasks, logits)
        if self.rows:
            rows, logits = [*self.rows, *rows], torch.cat([self._logits, logits])
            seen = torch.cat([self._seen, seen])
        order = sorted(range(len(rows)), key=rows.__getitem__)
        self.rows, self._logits, self._seen = [rows[place] for place in order], logits[order], seen[order]

    def _take_numbers(self, slot: int, task: Task) -> None:
        if (more := task.budget - self._uniforms.shape[1]) > 0:
            self._uniforms = functional.pad(self._uniforms, (0, more))
        rows = slice(slot * self._copies, (slot + 1) * self._copies)
        self._uniforms[rows, : task.budget] = task.uniforms
        self._temperatures[rows] = task.temperatures
        self._drawn[rows] = 0

    def _seen_in(self, tasks: Sequence[Task], logits: Tensor) -> Tensor:
        if self._options.repetition_penalty == 1:
            return torch.empty(len(logits), 0, dtype=torch.bool, device=logits.device)
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for place, task in enumerate(tasks):
            seen[place * self._copies : (place + 1) * self._copies, list(task.ids)] = True
        return seen

    @torch.inference_mode()
    def give_up_free_slots(self) -> None:
        """Makes the batch smaller; for when nobody is left to enter."""
        used = [slot for slot, one in enumerate(self._slots) if one is not None]
        if len(used) >= COMPACT_BELOW * len(self._slots) or not isinstance(self._decoder, RefillingDecoder):
            return
        self._decoder.keep(used)
        self._slots = [self._slots[slot] for slot in used]
        number = {slot: place for place, slot in enumerate(used)}
        self.rows = [number[row // self._copies] * self._copies + row % self._copies for row in self.rows]
        kept = [slot * self._copies + copy for slot in used for copy in range(self._copies)]
        self._uniforms, self._temperatures = self._uniforms[kept], self._temperatures[kept]
        self._drawn = self._drawn[kept]

    @torch.inference_mode()
    def step(self) -> list[Task]:
        """Draws one token for every row, and reads it where the row goes on; returns the tasks that have ended."""
        drawn = self._draw()
        going = self._going_on(drawn)
        tokens = drawn.tokens
        if len(going) < len(self.rows):
            self.rows = [self.rows[place] for place in going]
            tokens, self._seen = tokens[going], self._seen[going]
        if self.rows:
            self._logits = self._decoder.step(torch.tensor(self.rows, device=tokens.device), tokens)
        running = {row // self._copies for row in self.rows}
        ended = []
        for slot, task in enumerate(self._slots):
            if task is not None and slot not in running:
                ended.append(task)
                self._slots[slot] = None
        return ended

    def _draw(self) -> Draw:
        options, logits = self._options, self._logits
        rows = torch.tensor(self.rows)
        uniforms, temperatures = self._uniforms[rows, self._drawn[rows]], self._temperatures[rows]
        self._drawn[rows] += 1
        penalised = None
        if options.repetition_penalty != 1:
            penalised = penalise(logits, self._seen, options.repetition_penalty)
        found = draw(
            logits,
            uniforms.to(logits.device),
            temperatures.to(logits.device),
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            penalised=penalised,
        )
        if penalised is not None:
            self._seen.scatter_(1, found.tokens.unsqueeze(1), True)
        return found

    def _going_on(self, drawn: Draw) -> list[int]:
        """Writes down what was drawn; returns the places of the rows that go on."""
        going = []
        values = zip(self.rows, *(one.tolist() for one in drawn), strict=True)
        for place, (row, token, logp, sampled_logp) in enumerate(values):
            task, copy = self._owner(row)
            one = task.drawn[copy]
            one.token_ids.append(token)
            one.token_logps.append(logp)
            one.sampled_logps.append(sampled_logp)
            if len(one.token_ids) < task.budget and not task.stops(one.token_ids):
                going.append(place)
        return going

    def _owner(self, row: int) -> tuple[Task, int]:
        task = self._slots[row // self._copies]
        assert task is not None, "rows of free slots do not run"
        return task, row % self._copies
