"""Rows of the known data sets, in one shape.

A row of any format becomes an `Example`: the turns before the answers, the answers, and what the row says
about them. Formats are recognised by their fields. Knows nothing about files: the caller names the row.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import get_args

from prefloop.config import DataFormat
from prefloop.fields import (
    BadRowError,
    DroppedRowError,
    Row,
    label_of,
    list_field,
    missing_field,
    number_of,
    present_field,
    raw_field,
    score_of,
    text_field,
    text_of,
    wrong_type,
)
from prefloop.records import Message, Role

Turns = tuple[Message, ...]

SIGNATURES: tuple[tuple[DataFormat, frozenset[str]], ...] = (
    ("ultrafeedback", frozenset({"chosen", "rejected", "score_chosen", "score_rejected"})),
    ("preference", frozenset({"chosen", "rejected"})),
    ("unpaired", frozenset({"prompt", "completion", "label"})),
    ("prompt_completion", frozenset({"prompt", "completion"})),
    ("prompt_completion", frozenset({"question", "answer"})),
    ("online_rlhf", frozenset({"prompt", "responses", "rewards"})),
    ("online_rlhf", frozenset({"context_messages"})),
    ("groups", frozenset({"prompt", "responses"})),
    ("groups", frozenset({"prompt", "ranked_responses"})),
    ("groups", frozenset({"messages", "ranked_responses"})),
    ("groups", frozenset({"prompt", "completions"})),
    ("llmbar", frozenset({"input", "output_1", "output_2", "label"})),
    ("ultrafeedback", frozenset({"instruction", "completions"})),
    ("alpaca", frozenset({"instruction"})),
    ("prompt", frozenset({"prompt"})),
    ("prompt", frozenset({"question"})),
    ("sharegpt", frozenset({"conversations"})),
    ("messages", frozenset({"messages"})),
    ("text", frozenset({"text"})),
)
"""Fields that give a format away, most telling first."""
PROMPT_FIELDS = ("prompt", "context_messages", "messages", "question")
COMPLETIONS_FIELDS = ("responses", "ranked_responses", "completions")
SHAREGPT_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}
ROLES: dict[str, Role] = {role: role for role in get_args(Role)}
HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
"""Start of a turn in an HH-RLHF transcript."""
HH_ANSWER = "\n\nAssistant:"
ALL_BAD = "all_bad"
"""In place of a choice, where no completion was good enough."""
GSM8K_MARK = "####"
"""What comes before the final answer in a GSM8K solution."""


@dataclass(frozen=True)
class Example:
    """A row in one shape, whatever its format was."""

    turns: Turns
    """Everything before the completions; the whole conversation where the format sets no answer apart."""
    completions: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()
    """One a completion, where the row has scores; None is not judged."""
    ranked: bool = False
    """Whether the completions are in order of preference, best first."""
    margin: float = 1.0
    """Of the first completion over the last, where they are ranked; 1 is a certain comparison."""
    ranks: tuple[float | None, ...] = ()
    """One a completion, where the row has ranks, 1 for the best; equal ones are ties, None is not judged."""
    all_bad: bool = False
    """Whether none of the completions was found good enough to choose."""
    answer: str | None = None
    """The reference answer."""
    desirable: bool = True
    """False where the row labels its completion as bad."""

    @property
    def values(self) -> tuple[float | None, ...]:
        """One a completion, larger for the better, from the order, the ranks or the scores; nothing where none are."""
        if self.ranked:
            return tuple(-float(place) for place in range(len(self.completions)))
        return tuple(None if rank is None else -rank for rank in self.ranks) or self.scores

    def lead(self, better: int, worse: int) -> float:
        """Margin of one completion over another: the difference of scores; 1 where a ranking only orders them."""
        if self.ranked or self.ranks:
            return self.margin
        high, low = self.scores[better], self.scores[worse]
        assert high is not None and low is not None, "the caller compares judged completions"
        return high - low


def detect(row: Row, readable: Collection[DataFormat]) -> DataFormat | None:
    """The format that the row's fields give away, one of the readable where several fit; None for none."""
    present = {name for name, value in row.items() if value is not None}
    fitting: list[DataFormat] = [format for format, fields in SIGNATURES if fields <= present]
    if "preference" in fitting and _is_transcript(row["chosen"]):
        fitting.insert(0, "hh")
    usable: list[DataFormat] = [format for format in fitting if format in readable]
    return (usable or fitting or [None])[0]


def parse(row: Row, format: DataFormat) -> Example:
    """The row as an example. Raises BadRowError and DroppedRowError."""
    match format:
        case "prompt":
            return Example(_prompt(row), answer=_reference_answer(row))
        case "prompt_completion" | "unpaired":
            return _prompt_completion(row)
        case "preference":
            return _preference(row)
        case "messages":
            return Example(_turns(row, "messages"), answer=_reference_answer(row))
        case "sharegpt":
            return Example(_turns(row, "conversations", ROLES | SHAREGPT_ROLES))
        case "hh":
            return _hh(row)
        case "ultrafeedback":
            return _ultrafeedback(row)
        case "online_rlhf" | "groups":
            return _group(row)
        case "alpaca":
            return _alpaca(row)
        case "llmbar":
            return _llmbar(row)
        case "text":
            return Example((), (text_field(row, "text"),))
        case "auto":
            raise ValueError("the format of the row must be known")


def check_turns(turns: Turns) -> None:
    """Raises BadRowError unless user and assistant take turns, user first, after an optional system turn."""
    talk = turns[1:] if turns and turns[0].role == "system" else turns
    if not talk:
        raise BadRowError("empty_prompt", "no user turn; a prompt needs one")
    for place, turn in enumerate(talk):
        expected = ("user", "assistant")[place % 2]
        number = place + 1 + len(turns) - len(talk)
        if turn.role != expected:
            raise BadRowError(
                "not_alternating",
                f"turn {number} is the {turn.role}'s, not the {expected}'s; the two must take turns",
            )
        if not turn.content.strip() and place < len(talk) - 1:
            raise BadRowError("empty_turn", f"turn {number} is empty; every turn needs text")


# --- formats ------------------------------------------------------------------------------------------------


def _prompt_completion(row: Row) -> Example:
    name = "answer" if "question" in row and "completion" not in row else "completion"
    turns, completion = _answered(row, name, _prompt(row))
    label = label_of(row["label"]) if row.get("label") is not None else True
    return Example(turns, (completion,), answer=_reference_answer(row), desirable=label)


def _preference(row: Row) -> Example:
    prompt = _prompt(row, "prompt") if row.get("prompt") is not None else ()
    turns, chosen = _answered(row, "chosen", prompt)
    other_turns, rejected = _answered(row, "rejected", prompt)
    if turns != other_turns:
        raise DroppedRowError("unequal_prompts")
    if not turns:
        raise missing_field(row, "prompt")
    margin = 1.0
    if row.get("margin") not in (None, ""):
        margin = number_of(row["margin"], "margin")
    elif row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        margin = number_of(row["score_chosen"], "score_chosen")
        margin -= number_of(row["score_rejected"], "score_rejected")
    return Example(turns, (chosen, rejected), ranked=True, margin=margin)


def _hh(row: Row) -> Example:
    chosen, rejected = (text_field(row, name) for name in ("chosen", "rejected"))
    if chosen.rpartition(HH_ANSWER)[0] != rejected.rpartition(HH_ANSWER)[0]:
        raise DroppedRowError("unequal_prompts")
    *turns, answer = _transcript(chosen, "chosen")
    *_, other_answer = _transcript(rejected, "rejected")
    return Example(tuple(turns), (answer.content, other_answer.content), ranked=True)


def _llmbar(row: Row) -> Example:
    label = str(raw_field(row, "label"))
    if label not in ("1", "2"):
        raise BadRowError(
            "bad_label", f"label is {row['label']!r}; it is 1 or 2, the number of the better output"
        )
    outputs = [text_field(row, name) for name in ("output_1", "output_2")]
    better = int(label) - 1
    turns = (Message(role="user", content=text_field(row, "input")),)
    return Example(turns, (outputs[better], outputs[1 - better]), ranked=True)


def _is_transcript(value: object) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def _transcript(text: str, name: str) -> Turns:
    before, *parts = HH_TURN.split(text)
    speakers = parts[::2]
    wanted = [("Human", "Assistant")[place % 2] for place in range(len(speakers))]
    if before or not parts or speakers != wanted or speakers[-1] != "Assistant":
        raise BadRowError(
            "not_a_transcript",
            f"{name} is not a transcript in which Human and Assistant take turns and Assistant comes last; "
            "fix the row, or skip such rows with bad_rows: drop",
        )
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(role=roles[who], content=said) for who, said in zip(speakers, parts[1::2], strict=True)
    )


def _ultrafeedback(row: Row) -> Example:
    if row.get("completions") is None:
        return _preference(row)
    turns = (_user(raw_field(row, "instruction"), "instruction"),)
    answers = list_field(row, "completions")
    scores = [_ultrafeedback_score(answer, place) for place, answer in enumerate(answers)]
    return Example(turns, _completion_texts(answers), scores=tuple(scores))


def _ultrafeedback_score(answer: object, place: int) -> float | None:
    """The overall score, or else the mean of the aspects' ratings."""
    if not isinstance(answer, Mapping):
        return None
    if (overall := answer.get("overall_score")) is not None:
        return number_of(overall, f"the overall_score of completion {place}")
    annotations = answer.get("annotations")
    aspects = annotations.values() if isinstance(annotations, Mapping) else ()
    ratings = [aspect.get("Rating") for aspect in aspects if isinstance(aspect, Mapping)]
    numbers = [
        number_of(one, f"a rating of completion {place}") for one in ratings if one not in (None, "N/A")
    ]
    return sum(numbers) / len(numbers) if numbers else None


def _group(row: Row) -> Example:
    name = present_field(row, COMPLETIONS_FIELDS)
    prompt = Example(_prompt(row), answer=_reference_answer(row))
    if name is None and row.get("context_messages") is not None:
        return prompt
    name = name or COMPLETIONS_FIELDS[0]
    texts = _completion_texts(list_field(row, name))
    said = replace(prompt, completions=texts, ranked=name == "ranked_responses")
    if row.get("choice") is not None:
        return _choice(said, row["choice"])
    return replace(
        said, scores=_per_completion(row, "rewards", texts), ranks=_per_completion(row, "ranks", texts)
    )


def _per_completion(row: Row, name: str, texts: tuple[str, ...]) -> tuple[float | None, ...]:
    """One number or None a completion; nothing where the row does not have them."""
    if row.get(name) is None:
        return ()
    values = list_field(row, name)
    noun = "scores" if name == "rewards" else name
    if len(values) != len(texts):
        message = f"{len(values)} {noun} for {len(texts)} completions; give one each, null for not judged"
        raise BadRowError("unequal_lengths", message)
    return tuple(score_of(value, place, noun.removesuffix("s")) for place, value in enumerate(values))


def _choice(said: Example, value: object) -> Example:
    """A choice of the best: the place of a completion, from 0, or that all are bad."""
    if value == ALL_BAD:
        return replace(said, all_bad=True)
    places = range(len(said.completions))
    if isinstance(value, bool) or not isinstance(value, int) or value not in places:
        raise BadRowError(
            "bad_choice",
            f"choice is {value!r}; use the place of the best completion, 0 to {len(places) - 1}, or {ALL_BAD!r}",
        )
    return replace(said, ranks=tuple(1.0 if place == value else 2.0 for place in places))


def _alpaca(row: Row) -> Example:
    instruction = text_field(row, "instruction")
    if row.get("instances") is not None:  # the data that Alpaca grew out of nests input and output
        instances = list_field(row, "instances")
        if len(instances) != 1 or not isinstance(instances[0], Mapping):
            raise BadRowError("wrong_type", f"{len(instances)} instances; write one row for each")
        row = {**row, **instances[0]}
    extra = text_of(row.get("input") or "", "input")
    turns = (_user(f"{instruction}\n\n{extra}" if extra.strip() else instruction, "instruction"),)
    if row.get("output") is None:
        return Example(turns)
    return Example(turns, (text_of(row["output"], "output"),))


# --- fields -------------------------------------------------------------------------------------------------


def _reference_answer(row: Row) -> str | None:
    """The field `answer`; of a worked solution only what follows its mark."""
    prompt = row.get("prompt")
    value = prompt.get("answer") if isinstance(prompt, Mapping) else row.get("answer")
    if value is None:
        return None
    text = str(value) if isinstance(value, int | float) else text_of(value, "answer")
    return text.rpartition(GSM8K_MARK)[2].strip()


def _user(value: object, name: str) -> Message:
    return Message(role="user", content=text_of(value, name))


def _prompt(row: Row, name: str | None = None) -> Turns:
    name = name or present_field(row, PROMPT_FIELDS) or PROMPT_FIELDS[0]
    value = raw_field(row, name)
    if isinstance(value, Mapping):  # a prompt as prefloop writes it
        return _turns(value, "messages")
    return (_user(value, name),) if isinstance(value, str) else _turns(row, name)


def _answered(row: Row, name: str, prompt: Turns) -> tuple[Turns, str]:
    """The turns before an answer, and the answer: text, or turns that follow the prompt or repeat it."""
    value = raw_field(row, name)
    if isinstance(value, Mapping):  # a completion as prefloop writes it
        return prompt, text_of(raw_field(value, "text"), name)
    if isinstance(value, str):
        return prompt, text_of(value, name)
    turns = _turns(row, name)
    if not turns or turns[-1].role != "assistant":
        raise BadRowError("no_answer", f"{name} does not end with an assistant turn; it must")
    if turns[0].role == "assistant":
        return (*prompt, *turns[:-1]), turns[-1].content
    if any(turn not in turns[:-1] for turn in prompt):
        raise DroppedRowError("unequal_prompts")
    return turns[:-1], turns[-1].content


def _turns(row: Row, name: str, roles: Mapping[str, Role] = ROLES) -> Turns:
    turns: list[Message] = []
    for number, turn in enumerate(list_field(row, name, "text or a list of turns"), 1):
        if not isinstance(turn, Mapping):
            raise wrong_type(f"{name}, turn {number},", turn, "an object with role and content")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in roles:
            raise BadRowError("unknown_role", f"{name}, turn {number}: role {role!r}; use {', '.join(roles)}")
        content = turn.get("content", turn.get("value"))
        turns.append(Message(role=roles[role], content=text_of(content, f"{name}, turn {number}: content")))
    return tuple(turns)


def _completion_texts(answers: list[object]) -> tuple[str, ...]:
    texts: list[str] = []
    for place, answer in enumerate(answers):
        if isinstance(answer, Mapping):
            answer = answer.get("response", answer.get("text"))
        texts.append(text_of(answer, f"completion {place}"))
    return tuple(texts)
