"""Beam search: the K completions of a prompt that are the most likely ones K beams find (Lowerre, 1976).

Step by step the K best continuations of all beams go on. What ends is ranked by log-probability / tokens ^ length_penalty,
and the search of a prompt is over when its best beam, ranked as if it ended there, no longer beats the worst of the K best
that have ended. These are the rules of transformers' `generate(num_beams=K, num_return_sequences=K)`, whose completions
they give. Knows nothing about models and text.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefloop.generate.batch import Slots, Task
from prefloop.generate.decoders import Decoder


class Beam(NamedTuple):
    """A completion as far as it goes."""

    token_ids: tuple[int, ...] = ()
    token_logps: tuple[float, ...] = ()
    logp: float = 0.0
    """Of all its tokens."""


class Continuation(NamedTuple):
    """A beam and one more token."""

    beam: int
    """Number of the beam."""
    token: int
    token_logp: float
    logp: float
    """Of all tokens; minus infinity behind a beam that does not exist."""


class Search:
    """The beams of one prompt, and what has ended; changed in place."""

    def __init__(self, task: Task, num_beams: int, length_penalty: float) -> None:
        self.task = task
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.beams: list[Beam] = [Beam()]
        """At most `num_beams`, best first."""
        self.ended: list[tuple[float, Beam]] = []
        """At most `num_beams` with their ranks, best first."""

    def go_on(self, best: Sequence[Continuation]) -> list[Continuation]:
        """Takes the best continuations of all beams, in order; returns those that are read next, none where it is over.

        Of what ends only those are kept that are among the first `num_beams`.
        """
        going: list[tuple[Continuation, Beam]] = []
        for place, one in enumerate(best):
            if one.logp == -math.inf:
                break
            before = self.beams[one.beam]
            beam = Beam((*before.token_ids, one.token), (*before.token_logps, one.token_logp), one.logp)
            ends = len(beam.token_ids) == self.task.budget or self.task.stops(beam.token_ids)
            if ends and place < self.num_beams:
                self.ended.append((self._rank(beam), beam))
            elif not ends and len(going) < self.num_beams:
                going.append((one, beam))
        self.ended = sorted(self.ended, key=lambda one: -one[0])[: self.num_beams]
        self.beams = [beam for _, beam in going]
        return [] if self._is_over() else [one for one, _ in going]

    def _is_over(self) -> bool:
        if not self.beams:
            return True
        return len(self.ended) == self.num_beams and self._rank(self.beams[0]) <= self.ended[-1][0]

    def _rank(self, beam: Beam) -> float:
        return beam.logp / len(beam.token_ids) ** self.length_penalty


class BeamBatch:
    """Prompts in slots, whose rows are beams; changed in place. All rows of a prompt run until its search is over."""

    def __init__(
        self, decoder: Decoder, num_slots: int, num_beams: int, *, num_stops: int, length_penalty: float
    ) -> None:
        self._decoder = decoder
        self._slots = Slots(decoder, num_slots, num_beams)
        self._num_beams = num_beams
        # as many that some go on even if each beam ends with each of the tokens that end one
        self._num_best = num_beams * (1 + num_stops)
        self._length_penalty = length_penalty
        self._searches: dict[int, Search] = {}  # by slot
        self._logits: dict[int, Tensor] = {}  # [K, V] each

    @property
    def is_empty(self) -> bool:
        """Whether no search is under way."""
        return not self._searches

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
        for slot, task, of_prompt in zip(slots, tasks, logits, strict=True):
            self._searches[slot] = Search(task, self._num_beams, self._length_penalty)
            self._logits[slot] = of_prompt.expand(self._num_beams, -1)

    @torch.inference_mode()
    def give_up_free_slots(self) -> None:
        """Makes the batch smaller; for when nobody is left to enter."""
        new = self._slots.give_up_free()
        self._searches = {new[slot]: one for slot, one in self._searches.items()}
        self._logits = {new[slot]: one for slot, one in self._logits.items()}

    @torch.inference_mode()
    def step(self) -> list[Task]:
        """Lets every beam grow by a token; returns the tasks whose search is over."""
        rows, sources, tokens, ended = [], [], [], []
        for slot, best in self._best().items():
            search = self._searches[slot]
            going = search.go_on(best)
            if not going:
                ended.append(self._end(slot))
                continue
            # beams that do not exist read what the first one reads
            filled = going + going[:1] * (self._num_beams - len(going))
            first = slot * self._num_beams
            rows += range(first, first + self._num_beams)
            sources += [first + one.beam for one in filled]
            tokens += [one.token for one in filled]
        if rows:
            self._read(rows, sources, tokens)
        return ended

    def _best(self) -> dict[int, list[Continuation]]:
        """The best continuations of every search, best first, by slot in ascending order."""
        slots = sorted(self._searches)
        logits = torch.stack([self._logits[slot] for slot in slots])  # [S, K, V]
        logps = logits.log_softmax(-1)
        sums = torch.full((len(slots), self._num_beams, 1), -torch.inf)
        for place, slot in enumerate(slots):
            beams = self._searches[slot].beams
            sums[place, : len(beams), 0] = torch.tensor([one.logp for one in beams])
        all_sums = (sums.to(logps.device) + logps).flatten(1)  # [S, K * V]
        best = all_sums.topk(min(self._num_best, all_sums.shape[1]), dim=-1)
        token_logps = logps.flatten(1).gather(1, best.indices)
        size = logps.shape[-1]
        return {
            slot: [
                Continuation(place // size, place % size, token_logp, logp)
                for place, token_logp, logp in zip(*row, strict=True)
            ]
            for slot, *row in zip(
                slots, best.indices.tolist(), token_logps.tolist(), best.values.tolist(), strict=True
            )
        }

    def _read(self, rows: list[int], sources: list[int], tokens: list[int]) -> None:
        device = next(iter(self._logits.values())).device
        at = torch.tensor(rows, device=device)
        self._decoder.rearrange(at, torch.tensor(sources, device=device))
        logits = self._decoder.step(at, torch.tensor(tokens, device=device))
        parts = logits.split(self._num_beams)
        self._logits = {
            row // self._num_beams: part for row, part in zip(rows[:: self._num_beams], parts, strict=True)
        }

    def _end(self, slot: int) -> Task:
        """Hands the completions over, best first."""
        search = self._searches.pop(slot)
        del self._logits[slot]
        for drawn, (_, beam) in zip(search.task.drawn, search.ended, strict=True):
            drawn.token_ids += beam.token_ids
            drawn.token_logps += beam.token_logps
        return self._slots.leave(slot)
