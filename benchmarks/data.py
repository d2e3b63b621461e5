"""Random words with exactly as many tokens as a case asks for: every word and every mark of the template is one token."""

import random
from typing import NamedTuple

from benchmarks.cases import Data

PAD, UNKNOWN, END, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPT_MARKS, COMPLETION_MARKS = 2, 1


class TextGroup(NamedTuple):
    """A prompt and its completions, best first."""

    prompt: str
    completions: tuple[str, ...]


def vocabulary(size: int) -> dict[str, int]:
    """Special tokens, then words."""
    return {
        word: index for index, word in enumerate([*SPECIAL, *(f"w{n}" for n in range(size - len(SPECIAL)))])
    }


def word_score(text: str) -> float:
    """The share of words whose number ends in 0 or 5."""
    words = text.split()
    return sum(word[-1:] in "05" for word in words) / max(1, len(words))


def text_groups(data: Data, vocabulary_size: int) -> list[TextGroup]:
    """The texts of every group; the same on every machine."""
    rng = random.Random(data.seed + 1)

    def words(number: int) -> str:
        return " ".join(f"w{rng.randrange(vocabulary_size - len(SPECIAL))}" for _ in range(number))

    return [
        TextGroup(
            words(one.prompt - PROMPT_MARKS),
            tuple(words(length - COMPLETION_MARKS) for length in one.completions),
        )
        for one in data.lengths()
    ]
