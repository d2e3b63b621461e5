"""Brings the answers of conversations, beside the requests: who sent a turn may leave, the answers come all the same.

All answers of a turn are asked for at once and stored together when the slowest has come, so that neither the order nor
the time of their coming tells which policy wrote which. A turn whose server died is begun again by the next one.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from prefloop.interfaces import InputError, PrefloopError
from prefloop.labels import attempts
from prefloop.labels.attempts import Answered, Attempt, Draw
from prefloop.labels.database import Database
from prefloop.web.answering import TIMEOUT_S, Answerer, Wish

AT_ONCE = 16
"""Answers of one policy that are written at the same time; further ones wait."""
SWEEP_S = 5.0
SLACK_S = 60.0
"""On top of what an attempt may take: until then its turn is no other server's."""
REDRAWS = 2
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Talks:
    """The answers that are being brought. Lives in the loop of the app."""

    def __init__(
        self,
        database: Database,
        answerers: Mapping[str, Answerer],
        *,
        timeout_s: float = TIMEOUT_S,
        sweep_s: float = SWEEP_S,
    ) -> None:
        self._database = database
        self.answerers = dict(answerers)
        self._timeout_s = timeout_s
        self._sweep_s = sweep_s
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: set[tuple[str, int]] = set()

    @property
    def served(self) -> dict[str, str]:
        """The policies that can be talked with, and where they are."""
        return {name: one.uri for name, one in self.answerers.items()}

    def begin(self, conversation_id: str, number: int) -> None:
        """Starts to bring the answers of a turn, and returns at once."""
        turn = (conversation_id, number)
        if turn in self._begun:
            return
        self._begun.add(turn)
        task = asyncio.create_task(self._bring(conversation_id, number), name=f"answers {conversation_id}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, turn))

    def _done(self, task: asyncio.Task[None], turn: tuple[str, int]) -> None:
        self._tasks.discard(task)
        self._begun.discard(turn)
        if not task.cancelled() and (error := task.exception()) is not None:
            # the turn is begun again when its time is over
            logger.error("answers broke conversation=%s turn=%s", *turn, exc_info=error)

    async def run(self) -> None:
        """Looks after turns that nobody brings answers for, for as long as the app runs."""
        if (
            self._database.is_sqlite
        ):  # one server at a time: what was begun before it was begun by one that is no more
            await self._write(attempts.forget_attempts)
        while True:
            try:
                waiting = await run_in_threadpool(
                    self._database.read,
                    lambda connection: attempts.unfinished(connection, self._database.now()),
                )
                for conversation_id, number in waiting:
                    self.begin(conversation_id, number)
            except PrefloopError as error:  # the store is away
                logger.warning("conversations wait error=%s", error)
            await asyncio.sleep(self._sweep_s)

    async def close(self) -> None:
        """Gives up what is under way; the next server begins it again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self.answerers.values():
            await one.close()

    async def _write(self, work: Callable[[Connection], T]) -> T:
        if self._database.is_sqlite:
            # what is being written is written, even if this app ends meanwhile
            return await asyncio.shield(asyncio.wrap_future(self._database.write_soon(work)))
        return await run_in_threadpool(self._database.write, work)

    # --- one turn ---

    async def _bring(self, conversation_id: str, number: int) -> None:
        now = self._database.now()
        longest_s = self._timeout_s * (1 + REDRAWS) + SLACK_S
        until = now + round(longest_s * 1000)
        attempt = await self._write(
            lambda connection: attempts.begin_attempt(connection, now, conversation_id, number, until=until)
        )
        if attempt is None:
            return
        found = await asyncio.gather(
            *(self._answer(attempt, draw) for draw in attempt.draws), return_exceptions=True
        )
        answers = [one for one in found if isinstance(one, Answered)]
        if len(answers) == len(attempt.draws):
            await self._write(
                lambda connection: attempts.reveal(connection, self._database.now(), attempt, answers)
            )
            return
        why = "; ".join(
            f"{draw.policy}: {type(one).__name__}: {one}"
            for draw, one in zip(attempt.draws, found, strict=True)
            if isinstance(one, BaseException)
        )
        logger.warning("no answer conversation=%s turn=%s error=%s", conversation_id, number, why)
        await self._write(lambda connection: attempts.fail(connection, attempt, why))

    async def _answer(self, attempt: Attempt, draw: Draw) -> Answered:
        source = self.answerers.get(draw.policy)
        if source is None:
            raise InputError("this policy is not served any more")
        async with self._gates.setdefault(draw.policy, asyncio.Semaphore(AT_ONCE)):
            return await self._drawn(attempt, draw, source)

    async def _drawn(self, attempt: Attempt, draw: Draw, source: Answerer) -> Answered:
        options, seed = attempt.options, draw.seed
        answered: Answered | None = None
        for number in range(1 + REDRAWS if options.identity == "redraw" else 1):
            if number:
                seed = attempts.drawn_seed(draw.seed, number)
            began = time.monotonic()
            wish = Wish(options.temperature, options.max_new_tokens, seed)
            answer = await asyncio.wait_for(source.answer(attempt.messages, wish), self._timeout_s)
            answered = Answered(
                answer.text,
                seed,
                answer.finish_reason,
                answer.token_ids,
                answer.token_logps,
                round((time.monotonic() - began) * 1000),
                () if options.identity == "keep" else names_in(answer.text, options.identity_names),
            )
            if not answered.names:
                break
        assert answered is not None, "there is one draw at least"
        return answered


def names_in(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names that are in a text as whole words, in any case."""
    if not names:
        return ()
    said = {one.lower() for one in _pattern(tuple(names)).findall(text)}
    return tuple(one for one in names if one.lower() in said)


@lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    # Chinese has no blanks between words: a name in it may stand anywhere
    parts = [
        rf"(?<![\w.-]){re.escape(one)}(?![\w])" if one.isascii() else re.escape(one)
        for one in sorted(names, key=len, reverse=True)
    ]
    return re.compile("|".join(parts), re.IGNORECASE)
