"""Judgements that somebody looks at again: who disagrees with whom, and what the reviewer says.

Three disagreements are looked for: people among themselves, people and the reward model, people and AI judges. What the
reviewer says is kept beside the judgements and changes none of them. Which tasks are worth a look is decided elsewhere,
from the candidates that are read here.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from prefloop.labels import database
from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.orders import presented_order
from prefloop.labels.people import Person
from prefloop.labels.publish import project_config
from prefloop.labels.schema import adjudication, completion, judgement, prompt, round_, task
from prefloop.labels.values import p_a_of, stored_value

Against = Literal["human", "reward", "ai"]
"""With whom people disagree: other people, the reward model, AI judges."""
AGAINST: tuple[Against, ...] = get_args(Against)
Outcome = Literal["human_right", "model_right", "ambiguous"]
KINDS = ("pairwise", "steps")
"""Tasks that say which of two is better."""
WEAKEST = (4, 5)
"""Strengths of somebody who can hardly tell; they decide nothing."""
LONGEST_REASON = 10_000


# --- what could be looked at -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A task on which a disagreement can be seen."""

    task_id: str
    people: float
    """Share of people for the first completion; a tie is half a vote. Among themselves: how far they are from halves."""
    other: float
    """The same of the reward model or of the judges. Of people among themselves it is 1: all of one mind."""
    confidence: float
    """How sure the other side is, 0 to 1."""


def candidates(
    connection: sa.Connection, project_id: str, against: Against, *, round_number: int | None = None
) -> list[Candidate]:
    """Judged tasks that were not adjudicated on this question yet; gold and repeats have their own checks."""
    votes = _votes(connection, project_id, round_number)
    found = []
    for id, (people, judges, reward_p, confidence) in votes.items():
        if against == "human" and len(people) > 1:
            found.append(Candidate(id, abs(2 * _mean(people) - 1), 1.0, 1.0))
        elif against == "reward" and people and reward_p is not None:
            found.append(Candidate(id, _mean(people), reward_p, 1.0 if confidence is None else confidence))
        elif against == "ai" and people and judges:
            found.append(Candidate(id, _mean(people), _mean(judges), 1.0))
    return found


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _votes(
    connection: sa.Connection, project_id: str, round_number: int | None
) -> dict[str, tuple[list[float], list[float], float | None, float | None]]:
    newer = judgement.alias("newer")
    statement = (
        sa.select(
            task.c.id,
            task.c.reward_p,
            task.c.reward_confidence,
            judgement.c.kind,
            judgement.c.value["choice"].as_string().label("choice"),
            judgement.c.value["p_a"].as_float().label("p_a"),
        )
        .join(task, task.c.id == judgement.c.task_id)
        .where(judgement.c.project_id == project_id, judgement.c.state == "valid", task.c.kind.in_(KINDS))
        .where(~task.c.is_gold, task.c.for_annotator.is_(None))
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .where(~sa.exists().where(adjudication.c.task_id == task.c.id))
        .order_by(task.c.ordinal, task.c.id)
    )
    if round_number is not None:
        statement = statement.join(round_, round_.c.id == task.c.round_id).where(
            round_.c.number == round_number
        )
    found: dict[str, tuple[list[float], list[float], float | None, float | None]] = {}
    for row in connection.execute(statement):
        value = {"choice": row.choice} if row.p_a is None else {"p_a": row.p_a}
        if (p_first := p_a_of(value)) is None:
            continue
        if row.id not in found:
            found[row.id] = ([], [], row.reward_p, row.reward_confidence)
        people, judges, _, _ = found[row.id]
        (people if row.kind == "human" else judges).append(p_first)
    return found


# --- a task to look at -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opinion:
    """What somebody said about the task, as the reviewer sees it."""

    who: int
    """People and judges are numbered, never named."""
    is_ai: bool
    value: Mapping[str, Any]
    """In the reviewer's order of the texts."""
    comment: str
    state: str


@dataclass(frozen=True)
class Case:
    """A task in front of a reviewer."""

    task_id: str
    kind: str
    messages: Sequence[Mapping[str, str]]
    texts: tuple[str, ...]
    """In the reviewer's order."""
    presented: tuple[int, ...]
    people: tuple[Opinion, ...]
    judges: tuple[Opinion, ...]
    """Shown after the reviewer's own vote: their word is the machine's side of the question."""
    reward_p: float | None
    """P(the first shown text is better); shown after the vote, too."""
    ties: bool
    both_bad: bool


def case(connection: sa.Connection, project_id: str, task_id: str, reviewer: Person) -> Case:
    """A task as a reviewer sees it, in an order of its own. Raises NotFound, and Conflict for who judged it themselves."""
    row = _task(connection, project_id, task_id)
    newer = judgement.alias("newer")
    said = connection.execute(
        sa.select(judgement)
        .where(judgement.c.task_id == task_id, judgement.c.state.in_(("valid", "surplus", "late", "skipped")))
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .order_by(judgement.c.id)
    ).all()
    if any(one.annotator_id == reviewer.id for one in said):
        raise Conflict("you judged this task yourself; leave it to somebody else")
    presented = presented_order(
        database.secret(connection), f"{task_id}/{reviewer.id}", 0, len(row.completion_ids)
    )
    answers = sa.select(completion.c.id, completion.c.text).where(completion.c.id.in_(row.completion_ids))
    texts = {one.id: one.text for one in connection.execute(answers)}
    config = project_config(connection, project_id)
    is_turned = presented[0] != 0
    return Case(
        task_id=row.id,
        kind=row.kind,
        messages=connection.execute(sa.select(prompt.c.messages).where(prompt.c.id == row.prompt_id)).scalar()
        or (),
        texts=tuple(texts[row.completion_ids[place]] for place in presented),
        presented=presented,
        people=_opinions(said, is_turned, "human"),
        judges=_opinions(said, is_turned, "ai"),
        reward_p=None if row.reward_p is None else 1 - row.reward_p if is_turned else row.reward_p,
        ties=config.ties,
        both_bad=config.both_bad,
    )


def judged_by(connection: sa.Connection, reviewer: Person, ids: Iterable[str]) -> set[str]:
    """Those of the tasks that this person judged: nobody reviews themselves."""
    wanted = sa.select(judgement.c.task_id).where(
        judgement.c.annotator_id == reviewer.id, judgement.c.task_id.in_(list(ids))
    )
    return set(connection.execute(wanted).scalars())


def _opinions(said: Sequence[sa.Row[Any]], is_turned: bool, kind: str) -> tuple[Opinion, ...]:
    of = [one for one in said if one.kind == kind]
    return tuple(
        Opinion(
            number,
            kind == "ai",
            _turned(one.value or {}) if is_turned else one.value or {},
            one.comment,
            one.state,
        )
        for number, one in enumerate(of, start=1)
    )


def shown_to(value: Mapping[str, Any], presented: Sequence[int]) -> Mapping[str, Any]:
    """A stored value of two texts in the order in which somebody saw them."""
    return value if presented[0] == 0 else _turned(value)


TURNED = {"a": "b", "b": "a"}


def _turned(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same of two texts that have changed places."""
    found = dict(value)
    if "choice" in value:
        found["choice"] = TURNED.get(value["choice"], value["choice"])
    if value.get("strength") is not None:
        found["strength"] = 9 - value["strength"]
    if "p_a" in value:
        found["p_a"] = 1 - value["p_a"]
    if "labels" in value:
        found["labels"] = list(value["labels"])[::-1]
    return found


def _task(connection: sa.Connection, project_id: str, task_id: str) -> sa.Row[Any]:
    row = connection.execute(
        sa.select(task).where(task.c.id == task_id, task.c.project_id == project_id)
    ).first()
    if row is None or row.kind not in KINDS or len(row.completion_ids) != 2:
        raise NotFound("there is no such pair in this project")
    return row


# --- what the reviewer says ------------------------------------------------------------------------------------------


def adjudicate(
    connection: sa.Connection,
    now: int,
    project_id: str,
    task_id: str,
    reviewer: Person,
    said: Mapping[str, Any],
    reason: str,
    against: Against,
    *,
    drawn: str = "",
    probability: float | None = None,
) -> tuple[int, Outcome]:
    """Keeps a reviewer's verdict, given in the order that they saw, and what follows from it. Raises Invalid, Conflict.

    `drawn` and `probability` say how the task came into the queue, so that flip rates can be compared and weighed.
    """
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise Invalid(f"reason: say in 1 to {LONGEST_REASON} signs why; others learn from it")
    if against not in AGAINST:
        raise Invalid(f"queue: choose one of {', '.join(AGAINST)}")
    connection.execute(sa.select(task.c.id).where(task.c.id == task_id).with_for_update())
    own = connection.execute(sa.select(adjudication.c.id).where(adjudication.c.task_id == task_id)).first()
    if own is not None:
        raise Conflict("this task was adjudicated meanwhile; take the next one")
    seen = case(connection, project_id, task_id, reviewer)
    value = stored_value("pairwise", said, seen.presented, project_config(connection, project_id))
    outcome = outcome_of(value, *_sides(connection, project_id, task_id, against))
    id = connection.execute(
        sa.insert(adjudication)
        .values(
            task_id=task_id,
            annotator_id=reviewer.id,
            value=value
            | {
                "presented": list(seen.presented),
                "against": against,
                "drawn": drawn,
                "probability": probability,
            },
            outcome=outcome,
            reason=reason.strip(),
            created_at=now,
        )
        .returning(adjudication.c.id)
    ).scalar_one()
    return id, outcome


def reveal(connection: sa.Connection, project_id: str, task_id: str, reviewer: Person) -> sa.Row[Any]:
    """Notes that the reviewer looks at the other side now; returns their verdict. Raises NotFound before they gave one."""
    row = connection.execute(
        sa.select(adjudication)
        .join(task, task.c.id == adjudication.c.task_id)
        .where(adjudication.c.task_id == task_id, adjudication.c.annotator_id == reviewer.id)
        .where(task.c.project_id == project_id)
    ).first()
    if row is None:
        raise NotFound("vote first; then you can see what the others say")
    connection.execute(sa.update(adjudication).where(adjudication.c.id == row.id).values(revealed=True))
    return row


def _sides(
    connection: sa.Connection, project_id: str, task_id: str, against: Against
) -> tuple[float | None, float | None]:
    """P(first is better) of people, and of whom they are compared with; None for who says nothing."""
    newer = judgement.alias("newer")
    rows = connection.execute(
        sa.select(judgement.c.kind, judgement.c.value)
        .where(judgement.c.task_id == task_id, judgement.c.state == "valid")
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
    ).all()
    by_kind: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (p_first := p_a_of(row.value)) is not None:
            by_kind[row.kind].append(p_first)
    people = _mean(by_kind["human"]) if by_kind["human"] else None
    if against == "ai":
        return people, _mean(by_kind["ai"]) if by_kind["ai"] else None
    row = _task(connection, project_id, task_id)
    return people, row.reward_p


def outcome_of(value: Mapping[str, Any], people: float | None, model: float | None) -> Outcome:
    """Who the reviewer sides with.

    Ambiguous where the reviewer cannot tell, or stands alone: then the label is to be softened. With people who are split
    it is the model that is right or wrong; without a model, those people who said what the reviewer says.
    """
    own = None if value.get("strength") in WEAKEST else _side(p_a_of(value))
    theirs, its = _side(people), _side(model)
    if own is None:
        return "ambiguous"
    if theirs == own:
        return "human_right"
    if its == own:
        return "model_right"
    return "human_right" if theirs is None and people is not None else "ambiguous"


def _side(p_first: float | None) -> bool | None:
    """Whether it is the first; None for neither."""
    return None if p_first is None or p_first == 0.5 else p_first > 0.5


# --- what came of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flips:
    """How adjudications of one kind ended."""

    against: str
    drawn: str
    """top | control: whether the disagreement or chance brought them up."""
    human_right: int
    model_right: int
    ambiguous: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.human_right + self.model_right + self.ambiguous


def flips(connection: sa.Connection, project_id: str, *, round_number: int | None = None) -> list[Flips]:
    """How adjudications ended, by the disagreement that they were about and by how they were drawn."""
    against = adjudication.c.value["against"].as_string().label("against")
    drawn = adjudication.c.value["drawn"].as_string().label("drawn")
    found = (
        sa.select(against, drawn, adjudication.c.outcome)
        .join(task, task.c.id == adjudication.c.task_id)
        .where(task.c.project_id == project_id)
    )
    if round_number is not None:
        found = found.join(round_, round_.c.id == task.c.round_id).where(round_.c.number == round_number)
    each = found.subquery()
    counts = [
        sa.func.sum(sa.case((each.c.outcome == one, 1), else_=0)).label(one) for one in get_args(Outcome)
    ]
    rows = connection.execute(
        sa.select(each.c.against, each.c.drawn, *counts)
        .group_by(each.c.against, each.c.drawn)
        .order_by(each.c.against, each.c.drawn.desc())
    )
    return [
        Flips(row.against or "", row.drawn or "", row.human_right, row.model_right, row.ambiguous)
        for row in rows
    ]
