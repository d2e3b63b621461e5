"""Verdicts on rules, as rule models read them: a dialogue with its answer, a rule in words, and a level."""

from collections.abc import Iterator

from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.shapes import NOT_FOR_THIS_FORMAT, Column, Made, Refused, Rows, answer, turns

NO_WORDS = "rule_without_words"


def rule_verdicts(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """A row for each rule that an answer was judged by; a judgement that names a rule without its words stays behind."""
    for row in rows:
        levels = row.value.get("levels")
        if row.task_kind != "rules" or not isinstance(levels, dict) or not levels or not row.completions:
            yield Refused(row, NOT_FOR_THIS_FORMAT)
            continue
        words = (row.payload or {}).get("rule_texts")
        if not isinstance(words, dict) or not all(isinstance(words.get(rule), str) for rule in levels):
            yield Refused(row, NO_WORDS)
            continue
        said = turns(row.prompt.messages) + answer(row.completions[0].text)
        for rule, level in levels.items():
            yield Made({"messages": said, "rule": words[rule], "verdict": level}, (row,))


def verdict_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `rule-verdicts`."""
    return {"messages": "turns", "rule": "text", "verdict": "text"}
