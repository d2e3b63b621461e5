"""In which order a person sees completions: by a secret, but balanced over the people who see the same task."""

import hashlib
import hmac


def presented_order(secret: str, task_id: str, slot: int, num_completions: int) -> tuple[int, ...]:
    """Indices of the completions from first to last, for the judgement number `slot` of a task.

    Two completions are shown one way round in even slots and the other in odd ones. More are shown by the rows of a
    Williams square (1949), in which every completion has every place once, and follows every other equally often. Which
    row comes first, and which completion is which, says HMAC(secret, task), so no order tells who wrote what.
    """
    if num_completions < 2:
        return tuple(range(num_completions))
    digest = hmac.new(secret.encode(), task_id.encode(), hashlib.sha256).digest()
    names = sorted(range(num_completions), key=lambda place: hashlib.sha256(digest + bytes([place])).digest())
    rows = williams_square(num_completions)
    row = rows[(digest[0] + slot) % len(rows)]
    return tuple(names[place] for place in row)


def williams_square(size: int) -> list[tuple[int, ...]]:
    """Rows of a design balanced for order and carry-over: `size` of them, or twice as many where it is odd."""
    zigzag = [0]
    for step in range(1, size):
        zigzag.append((step + 1) // 2 if step % 2 else size - step // 2)
    rows = [tuple((one + shift) % size for one in zigzag) for shift in range(size)]
    return rows if size % 2 == 0 else rows + [row[::-1] for row in rows]
