"""Scores by built-in rules: tales, words, length, mathematical answers."""

import re
from collections.abc import Callable, Iterable, Iterator

from prefloop.config import RuleAnnotator
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, Prompt, Score

Rule = Callable[[Prompt, Completion], float]


class RuleScorer:
    """Scores every completion by one rule; each verdict is one label."""

    def __init__(self, options: RuleAnnotator) -> None:
        self.name = f"rule/{options.rule}"
        self._rule = _rule(options)

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order."""
        for group in groups:
            for completion in group.completions:
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=self._rule(group.prompt, completion),
                    annotator=self.name,
                )


def _rule(options: RuleAnnotator) -> Rule:
    match options.rule:
        case "words":
            patterns = _word_patterns(options.words)
            return lambda _, completion: share_of_words(patterns, completion.text)
        case "length":
            return lambda _, completion: length_score(completion.text, target_length=options.target_length)
        case "math_answer":
            return _math_answer
        case "tales":
            from prefloop.tales import quality

            return lambda prompt, completion: quality(prompt.text, completion.text)
        case "tales_craft":
            from prefloop.tales import craft

            return lambda prompt, completion: craft(prompt.text, completion.text)
        case "tales_rules":
            from prefloop.tale_rules import follows

            return lambda _, completion: follows(completion.text)


def share_of_words(patterns: list[re.Pattern[str]], text: str) -> float:
    """Share of the patterns that occur in the text."""
    return sum(pattern.search(text) is not None for pattern in patterns) / len(patterns)


def length_score(text: str, *, target_length: int) -> float:
    """Length in characters, or minus the distance from the wanted length where that is not 0."""
    return float(-abs(len(text) - target_length) if target_length else len(text))


def _word_patterns(words: list[str]) -> list[re.Pattern[str]]:
    if not words or not all(word.strip() for word in words):
        raise InputError(f"rule words: words = {words!r}; list at least one word, and no empty ones")
    # not \b, which would never match beside a word that ends in a sign, such as "C++"
    return [re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE) for word in words]


def _math_answer(prompt: Prompt, completion: Completion) -> float:
    from prefloop.annotate.math_answer import grade

    if prompt.answer is None:
        raise InputError(
            f"prompt {prompt.id}: rule math_answer needs the reference answer; give the row a field `answer`"
        )
    return grade(completion.text, prompt.answer)
