"""Where two texts differ, in words.

Words that occur once in both texts are anchors, as in patience diff; between anchors the longest common subsequence is
found as long as a budget of comparisons lasts, and what is left counts as different. So the time is bounded for texts of
any kind: two long texts that share nothing are simply marked as a whole.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]"  # scripts without spaces: each sign
    r"|[\w\u200c\u200d]+|\s+"
    "|.[\ufe0e\ufe0f\u200d\U0001f3fb-\U0001f3ff]*",
    re.DOTALL,
)
MOST_COMPARISONS = 1_000_000
"""Pairs of words compared between anchors, together; about a fifth of a second."""
DEEPEST = 8
"""Rounds of anchors inside the gaps of anchors."""

Span = tuple[int, int]


def differing(a: str, b: str) -> tuple[list[Span], list[Span]]:
    """The parts of each text that the other does not have, as places of characters, in order."""
    words_a, words_b = (list(WORD.finditer(text)) for text in (a, b))
    matches = _Matching([one[0] for one in words_a], [one[0] for one in words_b]).matches()
    shared_a, shared_b = {i for i, _ in matches}, {j for _, j in matches}
    return _unshared(words_a, shared_a), _unshared(words_b, shared_b)


def _unshared(words: Sequence[re.Match[str]], shared: set[int]) -> list[Span]:
    spans: list[Span] = []
    for number, word in enumerate(words):
        if number in shared:
            continue
        if spans and spans[-1][1] == word.start():
            spans[-1] = (spans[-1][0], word.end())
        else:
            spans.append(word.span())
    return spans


class _Matching:
    """One comparison of two lists of words, and what is left of its budget."""

    def __init__(self, a: Sequence[str], b: Sequence[str]) -> None:
        self.a = a
        self.b = b
        self.budget = MOST_COMPARISONS

    def matches(self) -> list[tuple[int, int]]:
        return list(self._between(0, len(self.a), 0, len(self.b), DEEPEST))

    def _between(self, a: int, a_end: int, b: int, b_end: int, rounds: int) -> Iterator[tuple[int, int]]:
        while a < a_end and b < b_end and self.a[a] == self.b[b]:
            yield a, b
            a, b = a + 1, b + 1
        tail = 0
        while a < a_end - tail and b < b_end - tail and self.a[a_end - tail - 1] == self.b[b_end - tail - 1]:
            tail += 1
        a_end, b_end = a_end - tail, b_end - tail
        if a < a_end and b < b_end:
            anchors = self._anchors(a, a_end, b, b_end) if rounds else []
            if anchors:
                for i, j in anchors:
                    yield from self._between(a, i, b, j, rounds - 1)
                    yield i, j
                    a, b = i + 1, j + 1
                yield from self._between(a, a_end, b, b_end, rounds - 1)
            elif (size := (a_end - a) * (b_end - b)) <= self.budget:
                self.budget -= size
                yield from self._common(a, a_end, b, b_end)
        yield from ((a_end + k, b_end + k) for k in range(tail))

    def _anchors(self, a: int, a_end: int, b: int, b_end: int) -> list[tuple[int, int]]:
        """Words that occur once in both parts, as many as stand in the same order."""
        counts_a, counts_b = Counter(self.a[a:a_end]), Counter(self.b[b:b_end])
        places_b = {self.b[j]: j for j in range(b, b_end)}
        pairs = [
            (i, places_b[word])
            for i in range(a, a_end)
            if counts_a[word := self.a[i]] == 1 and counts_b[word] == 1
        ]
        return _longest_rise(pairs)

    def _common(self, a: int, a_end: int, b: int, b_end: int) -> Iterator[tuple[int, int]]:
        """The longest common subsequence of two short parts, by the table of its lengths."""
        width = b_end - b
        lengths = [
            [0] * (width + 1)
        ]  # row r: lengths for the last r words of a and the words of b from a place on
        for i in range(a_end - 1, a - 1, -1):
            below, row, word = lengths[-1], [0] * (width + 1), self.a[i]
            for j in range(width - 1, -1, -1):
                row[j] = below[j + 1] + 1 if word == self.b[b + j] else max(below[j], row[j + 1])
            lengths.append(row)
        i, j = a, 0
        while i < a_end and j < width:
            here, below = lengths[a_end - i], lengths[a_end - i - 1]
            if self.a[i] == self.b[b + j]:
                yield i, b + j
                i, j = i + 1, j + 1
            elif below[j] >= here[j + 1]:
                i += 1
            else:
                j += 1


def _longest_rise(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest chain of pairs whose second numbers rise; the first ones do already. Patience sorting."""
    ends: list[int] = []  # second numbers that end the shortest chains so far, by length
    last: list[int] = []  # the pair each of them is
    before: list[int] = []
    for number, (_, j) in enumerate(pairs):
        length = bisect_left(ends, j)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1] = [j]
        last[length : length + 1] = [number]
    chain: list[tuple[int, int]] = []
    number = last[-1] if last else -1
    while number >= 0:
        chain.append(pairs[number])
        number = before[number]
    return chain[::-1]
