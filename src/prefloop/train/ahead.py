"""Sampling one batch while the one before is learned from, by a copy of the weights as they were."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from prefloop.records import Group


class Ahead:
    """One batch under way at most. What it will be does not depend on when it is done, so checkpoints wait for it."""

    def __init__(self, spare: Any) -> None:
        """`spare` is a second model like the one in training; its weights are overwritten."""
        self._spare = spare
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sampling ahead")
        self._next: tuple[int, Future[list[Group]]] | None = None

    @torch.no_grad()
    def begin(self, number: int, model: Any, sample: Callable[[Any], list[Group]]) -> None:
        """Starts to sample a batch by the model's weights as they are."""
        for own, weight in zip(self._spare.parameters(), model.parameters(), strict=True):
            own.copy_(weight)
        self._spare.eval()
        self._next = number, self._pool.submit(sample, self._spare)

    def groups(self, number: int) -> list[Group] | None:
        """The batch, once it is there; None where nobody has begun it. Raises what sampling raised."""
        if self._next is None or self._next[0] != number:
            return None
        (_, future), self._next = self._next, None
        return future.result()

    def close(self) -> None:
        """Ends the thread, after what it is doing."""
        self._pool.shutdown(cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        """The batch that is under way, whole."""
        if self._next is None:
            return {"number": None, "groups": []}
        number, future = self._next
        return {"number": number, "groups": [one.model_dump(mode="json") for one in future.result()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the batch that was under way."""
        if state["number"] is not None:
            future: Future[list[Group]] = Future()
            future.set_result([Group.model_validate(one) for one in state["groups"]])
            self._next = state["number"], future
