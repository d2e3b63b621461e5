"""A label store in which every text that comes from people, models, files or settings is hostile.

Each project has all kinds of tasks, people, rounds, conversations and the rest, filled with its own share of PAYLOADS; the
last project, WHOLE, has all of them in each of its long texts. A text begins with the name of its column in letters
(`marker`), so that a test can tell which texts a page shows.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from prefloop.labels import people, publish, qualification, schema, webhooks
from prefloop.labels.audit import audit
from prefloop.labels.database import Database, open_database
from prefloop.labels.projects import (
    KINDS,
    ChatOptions,
    Dwell,
    FormField,
    Kind,
    ProjectConfig,
    Qualification,
    Rule,
)
from prefloop.labels.publish import NewTask
from prefloop.records import Completion, Message, Prompt
from web.payloads import PAYLOADS

TEXTS = tuple(text.encode("utf-8", "replace").decode() for text in PAYLOADS.values())
"""Without halves of surrogate pairs, which no database takes."""
EACH = 9
"""Payloads of a long text."""
FILLED = 20
"""Projects with tasks, people and all else, which together have all payloads in each of their long texts."""
SHARES = 62
"""Projects; the others have a title, and what a project says of itself."""
WHOLE = SHARES
"""The number of the project with everything in each long text."""
NUM_COMPLETIONS: dict[Kind, int] = {"pairwise": 2, "rank": 3, "form": 1, "rules": 1, "edit": 1, "steps": 2}

SHORT = (
    "project.title",
    "prompt.id",
    "prompt.source",
    "prompt.split",
    "prompt.lang",
    "prompt.safety_tag",
    "policy.id",
    "policy.uri",
    "policy.parent_id",
    "policy.digest",
    "completion.id",
    "round.reward_in",
    "round.reward_out",
    "task.strategy",
    "task.skill",
    "task.lang",
    "annotator.name",
    "annotator.email",
    "invite.email",
    "api_token.name",
    "webhook.url",
    "delivery.error",
    "audit.object",
)  # fmt: skip
LONG = (
    "project.config_source",
    "guideline.text",
    "prompt.answer",
    "completion.text",
    "decision.reason",
    "gold.why",
    "judgement.comment",
    "flag.comment",
    "adjudication.reason",
    "turn.text",
    "turn.error",
)  # fmt: skip
NESTED = (
    "project.config",
    "prompt.messages",
    "prompt.tags",
    "completion.sampling",
    "round.evaluation",
    "task.payload",
    "annotator.skills",
    "annotator.languages",
    "annotator.groups",
    "judgement.value",
    "judgement.judge",
    "adjudication.value",
    "conversation.policies",
    "conversation.payload",
    "conversation.ending",
    "export.filter",
    "delivery.body",
    "audit.detail",
    "lease.draft",
)
"""Columns that hold JSON with texts of others in it."""
OURS = (
    *(
        "completion.policy_id",
        "round.policy_in",
        "round.policy_out",
        "decision.policy_id",
        "decision.actor",
        "annotator.id",
        "annotator.role",
        "annotator.password_hash",
        "annotator.preferences",
        "annotator.state",
        "audit.actor",
        "audit.action",
        "invite.token_hash",
        "invite.role",
        "invite.project_ids",
        "invite.created_by",
        "invite.used_by",
        "policy.state",
        "project.id",
        "project.state",
        "prompt.user_hash",
        "prompt.dedupe_hash",
        "prompt.author_id",
        "setting.key",
        "setting.value",
        "api_token.token_hash",
        "api_token.id",
        "api_token.annotator_id",
        "api_token.scopes",
        "completion.prompt_id",
        "completion.token_ids",
        "completion.token_logps",
        "completion.finish_reason",
        "completion.tree_node",
        "conversation.id",
        "conversation.project_id",
        "conversation.annotator_id",
        "conversation.kind",
        "conversation.state",
        "export.id",
        "export.project_id",
        "export.format",
        "export.sha256",
        "export.code_version",
        "export.created_by",
        "guideline.project_id",
        "login_link.token_hash",
        "login_link.annotator_id",
        "login_link.created_by",
        "member.project_id",
        "member.annotator_id",
        "member.consent_version",
        "member.qualification",
        "quality.project_id",
        "quality.annotator_id",
        "quality.day",
        "quality.figures",
        "round.id",
        "round.project_id",
        "round.state",
        "session.token_hash",
        "session.annotator_id",
        "session.csrf",
        "session.opened_by",
        "webhook.id",
        "webhook.project_id",
        "webhook.secret",
        "webhook.events",
        "webhook.state",
        "decision.project_id",
        "decision.round_id",
        "decision.verdict",
        "delivery.id",
        "delivery.webhook_id",
        "delivery.event",
        "delivery.state",
        "task.id",
        "task.project_id",
        "task.round_id",
        "task.kind",
        "task.prompt_id",
        "task.completion_ids",
        "task.state",
        "task.repeat_of",
        "task.for_annotator",
        "task.author_id",
        "task.expires_with_policy",
        "adjudication.task_id",
        "adjudication.annotator_id",
        "adjudication.outcome",
        "flag.task_id",
        "flag.annotator_id",
        "flag.reason",
        "flag.resolution",
        "flag.resolved_by",
        "gold.task_id",
        "gold.expected",
        "judgement.task_id",
        "judgement.project_id",
        "judgement.round_id",
        "judgement.annotator_id",
        "judgement.kind",
        "judgement.state",
        "judgement.presented",
        "judgement.client_uuid",
        "judgement.body_hash",
        "lease.token",
        "lease.task_id",
        "lease.project_id",
        "lease.annotator_id",
        "lease.kind",
        "lease.presented",
        "lease.state",
        "turn.conversation_id",
        "turn.key",
        "turn.state",
        "turn.task_id",
        "turn.chosen_id",
        "ledger.project_id",
        "ledger.round_id",
        "ledger.annotator_id",
        "ledger.reason",
    ),
)
"""Hashes, secrets, words of which there are only a few, ids that are drawn, and where an id stands again."""


def marker(column: str) -> str:
    """Letters that Markdown and browsers leave alone."""
    return f"zq{re.sub('[^a-z]', '', column)}qz"


class Words:
    """The texts of one project: of every column other payloads first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._count = itertools.count()

    def short(self, column: str) -> str:
        """One payload, as short as a name, that no other row has."""
        count = next(self._count)
        text = TEXTS[(self._place(column) + count) % len(TEXTS)][:150]
        return f"{marker(column)} {self.number}-{count} {text}"

    def long(self, column: str) -> str:
        """A few payloads; all of them in the last project."""
        place, number = self._place(column), len(TEXTS) if self.number == WHOLE else EACH
        chosen = [TEXTS[(place + one) % len(TEXTS)] for one in range(number)]
        return "\n\n".join((marker(column), *chosen))

    def _place(self, column: str) -> int:
        return (EACH * self.number + 7 * sum(map(ord, column))) % len(TEXTS)


# --- the store -------------------------------------------------------------------------------------------------------


def hostile_store(path: Path, numbers: Iterable[int]) -> Database:
    """The store, with the projects of these numbers. Its person "root" is admin and a member of all."""
    database = open_database(str(path))

    def work(connection: sa.Connection) -> None:
        for role in ("admin", "lead", "reviewer", "annotator"):
            person = people.add_person(connection, database.now(), f"{role} who looks", role=role)
            words = Words(len(role))
            changed = {name: [words.short(f"annotator.{name}")] for name in ("skills", "languages", "groups")}
            changed |= {"name": words.short("annotator.name"), "id": role}
            connection.execute(
                sa.update(schema.annotator).where(schema.annotator.c.id == person.id).values(changed)
            )
        for number in numbers:
            _Project(connection, database.now(), number).fill()

    database.write(work)
    return database


def project_id(number: int) -> str:
    return f"p{number}"


def is_filled(number: int) -> bool:
    return number < FILLED or number == WHOLE


class _Project:
    """A project that is being filled."""

    def __init__(self, connection: sa.Connection, now: int, number: int) -> None:
        self.connection, self.now, self.id = connection, now, project_id(number)
        self.words = Words(number)
        self.short, self.long = self.words.short, self.words.long
        self.config = self._config()

    def put(self, table: sa.Table, **values: Any) -> int:
        """Inserts a row; its id, where that counts up."""
        done = self.connection.execute(sa.insert(table).values(**values))
        return (done.inserted_primary_key or [0])[0]

    def fill(self) -> None:
        publish.add_project(
            self.connection,
            self.now,
            self.id,
            self.config,
            title=self.short("project.title"),
            guidelines=self.long("guideline.text"),
            source=self.long("project.config_source"),
        )
        publish.publish_guidelines(
            self.connection, self.now, self.id, "# New\n\n" + self.long("guideline.text")
        )
        if not is_filled(self.words.number):
            self._join(self.config.consent_version)
            return
        self._rounds()
        people_here = self._people()
        self._tasks()
        self._judgements(people_here)
        self._conversations()
        self._beside(people_here[0])

    def _config(self) -> ProjectConfig:
        rules = tuple(Rule(id=f"rule_{one}", text=self.long("project.config")) for one in "ab")
        form = (
            FormField(name="overall", label=self.short("project.config"), type="likert"),
            FormField(name="seen", label=self.short("project.config"), type="flag", key="q"),
            FormField(name="sort", label=self.short("project.config"), type="choice",
                      options=(self.short("project.config"), "b")),
            FormField(name="why", label=self.short("project.config"), type="text"),
        )  # fmt: skip
        return ProjectConfig(
            overlap=9,
            form=form,
            rules=rules,
            axes=("helpful",),
            gold_share=0,
            repeat_share=0,
            dwell=Dwell(least_s=0, per_character_ms=0, most_s=0),
            chat=ChatOptions(identity_names=(self.short("project.config"),)),
            qualification=Qualification(tasks=1, pass_mark=0),
            consent=self.long("project.config"),
            warning=self.long("project.config"),
        )

    def _rounds(self) -> None:
        policies = [self.short("policy.id") for _ in range(3)]
        for name in policies:
            about = {column: self.short(f"policy.{column}") for column in ("uri", "parent_id", "digest")}
            self.put(schema.policy, id=name, **about)
        self.policies = policies
        for number, state in enumerate(("promoted", "frozen", "open"), start=1):
            self.put(
                schema.round_,
                id=f"{self.id}-{number}",
                project_id=self.id,
                number=number,
                state=state,
                opened_at=self.now,
                policy_in=policies[0],
                reward_in=self.short("round.reward_in"),
                policy_out=policies[1] if number < 3 else "",
                reward_out=self.short("round.reward_out"),
                evaluation={
                    "score": {"mean": 0.5},
                    self.short("round.evaluation"): self.short("round.evaluation"),
                },
                watermark=10**6 if number < 3 else None,
            )
        self.put(
            schema.decision,
            project_id=self.id,
            round_id=f"{self.id}-1",
            policy_id=policies[1],
            verdict="promote",
            reason=self.long("decision.reason"),
            actor="lead",
            created_at=self.now,
        )

    def _people(self) -> list[str]:
        """Two who judged and one judge, beside those who look."""
        ids = [f"{self.id}-{name}" for name in ("one", "two", "judge")]
        for id in ids:
            self.put(
                schema.annotator,
                id=id,
                name=self.short("annotator.name"),
                email=self.short("annotator.email"),
                role="judge" if id.endswith("judge") else "annotator",
                skills=[self.short("annotator.skills")],
                languages=[self.short("annotator.languages")],
                groups=[self.short("annotator.groups")],
                created_at=self.now,
            )
        self._join(self.config.consent_version, *ids)
        return ids

    def _join(self, consent: str, *ids: str) -> None:
        """Makes people members, who have agreed to everything, but for the annotator who looks."""
        for id in (*ids, "admin", "lead", "reviewer", "annotator"):
            agreed = "" if id == "annotator" else consent
            self.put(schema.member, project_id=self.id, annotator_id=id, consent_version=agreed)

    def _tasks(self) -> None:
        new = [self._task(kind, reward_p=0.1 if kind == "pairwise" else None) for kind in KINDS]
        again = self._task("pairwise", reward_p=0.1, name="pairwise-2")
        gold = self._task(
            "pairwise",
            name="gold",
            strategy=qualification.STRATEGY,
            expected={"choice": "a"},
            why=self.long("gold.why"),
        )
        talk = [self._task("pairwise", name=f"talk-{number}", for_annotator="admin") for number in (1, 2)]
        ids = publish.publish_tasks(
            self.connection, self.now, self.id, [*new, again, gold, *talk], round_id=f"{self.id}-3"
        )
        for id in ids:
            if id.endswith("gold"):
                continue
            is_taken = id.endswith(("pairwise-2", "talk-1", "talk-2"))  # by somebody without skills
            columns = ("strategy",) if is_taken else ("strategy", "skill", "lang")
            values = {column: self.short(f"task.{column}") for column in columns}
            self.connection.execute(sa.update(schema.task).where(schema.task.c.id == id).values(values))
            own = sa.select(schema.task.c.prompt_id).where(schema.task.c.id == id).scalar_subquery()
            about = {column: self.short(f"prompt.{column}") for column in ("lang", "safety_tag")}
            self.connection.execute(sa.update(schema.prompt).where(schema.prompt.c.id == own).values(about))
            sampling = {
                "temperature": self.short("completion.sampling"),
                self.short("completion.sampling"): 1,
            }
            texts = schema.completion.c.prompt_id == own
            self.connection.execute(sa.update(schema.completion).where(texts).values(sampling=sampling))
        later = (
            sa.update(schema.task).where(schema.task.c.id.like(f"{self.id}-talk%")).values(not_before=2**53)
        )
        self.connection.execute(later)

    def _task(self, kind: Kind, *, name: str = "", **about: Any) -> NewTask:
        said = [self.long("prompt.messages") for _ in range(3)]
        prompt = Prompt.of(
            (
                Message(role="user", content=f"{self.id} {name or kind}\n\n{said[0]}"),
                Message(role="assistant", content=said[1]),
                Message(role="user", content=said[2]),
            ),
            source=self.short("prompt.source"),
        ).model_copy(update={"answer": self.long("prompt.answer"), "id": self.short("prompt.id")})
        common = "Step one.\n" if kind == "steps" else ""
        completions = tuple(
            Completion(
                id=self.short("completion.id"),
                prompt_id=prompt.id,
                text=f"{common}{place} {self.long('completion.text')}",
                finish_reason="stop",
                policy=self.policies[place],
            )
            for place in range(NUM_COMPLETIONS.get(kind, 0))
        )
        payloads: dict[str, dict[str, Any]] = {
            "rules": {"rules": ["rule_a", "rule_b", self.short("task.payload")]},
            "prompt": {"use_case": "", "instruction": self.long("task.payload")},
            "steps": {"prefix": common},
        }
        return NewTask(
            prompt,
            completions,
            kind=kind,
            id=f"{self.id}-{name or kind}",
            payload=payloads.get(kind),
            tags=(self.short("prompt.tags"),),
            split=self.short("prompt.split"),
            **about,
        )

    def _judgements(self, people_here: Sequence[str]) -> None:
        one, two, judge = people_here
        values: dict[str, dict[str, Any]] = {
            "pairwise": {"choice": "a", "strength": 1, "axes": {"helpful": 2},
                         "spans": [{"completion": 0, "start": 0, "end": 4, "note": self.long("judgement.value")}]},
            "rank": {"groups": [[0], [1, 2]], "unrankable": []},
            "form": {"ratings": {"overall": 6}, "flags": {"seen": True}, "choices": {"sort": self.config.form[2].options[0]},
                     "texts": {"why": self.long("judgement.value")}},
            "rules": {"levels": {"rule_a": "unsure", "rule_b": "probably_break"},
                      "attack": {"success": 2, "harm": 1, "actionability": 1, "task": self.long("judgement.value")}},
            "edit": {"text": self.long("judgement.value")},
            "demonstration": {"text": self.long("judgement.value")},
            "prompt": {"text": self.long("judgement.value"), "style": "few_shot", "use_case": "", "is_sensitive": False,
                       "examples": [[self.long("judgement.value"), self.long("judgement.value")]]},
            "steps": {"choice": "b", "strength": 7, "labels": ["correct", "incorrect"]},
        }  # fmt: skip
        self.own: list[int] = []
        for kind, value in values.items():
            for person in (one, two, "admin", "annotator"):
                if kind == "pairwise" and person in ("admin", "annotator"):
                    continue  # these look at it as reviewers
                other = {**value, "choice": "b"} if person == two and kind == "pairwise" else value
                id = self._judgement(f"{self.id}-{kind}", person, other, NUM_COMPLETIONS.get(kind, 0))
                if person == "admin":
                    self.own.append(id)
        for name in ("pairwise", "pairwise-2"):
            model = {"model": self.short("judgement.judge"), "principle": self.long("judgement.judge")}
            said = {"choice": "b", "strength": None, "p_a": 0.2}
            self._judgement(f"{self.id}-{name}", judge, said, 2, kind="ai", judge=model)
        for person, choice in ((one, "a"), (two, "b")):
            self._judgement(f"{self.id}-pairwise-2", person, {"choice": choice, "strength": None}, 2)
        self.put(
            schema.adjudication,
            task_id=f"{self.id}-pairwise",
            annotator_id="admin",
            value={"choice": "a", "strength": 2, "spans": [], "note": self.long("adjudication.value")},
            outcome="human_right",
            reason=self.long("adjudication.reason"),
            revealed=True,
            created_at=self.now,
        )
        self._judgement(f"{self.id}-gold", one, {"choice": "b", "strength": 7}, 2)
        for reason, about in (("personal_data", "pairwise"), ("bug", "pairwise"), ("appeal", "gold")):
            self.put(
                schema.flag,
                task_id=f"{self.id}-{about}",
                annotator_id=one,
                reason=reason,
                comment=self.long("flag.comment"),
                created_at=self.now,
                resolved_at=self.now if reason == "bug" else None,
                resolution="upheld" if reason == "bug" else "",
                resolved_by=two if reason == "bug" else "",
            )

    def _judgement(
        self,
        task_id: str,
        person: str,
        value: Mapping[str, Any],
        places: int,
        *,
        kind: str = "human",
        judge: Any = None,
    ) -> int:
        return self.put(
            schema.judgement,
            task_id=task_id,
            project_id=self.id,
            round_id=f"{self.id}-3",
            annotator_id=person,
            kind=kind,
            value=dict(value),
            judge=judge,
            presented=list(range(places)),
            client_uuid=f"{task_id} {person}",
            comment=self.long("judgement.comment"),
            active_ms=9000,
            created_at=self.now,
        )

    def _conversations(self) -> None:
        for kind in ("live", "probe"):
            id = f"{self.id}-{kind}"
            rule = {"rule": {"id": "rule_a", "text": self.long("conversation.payload")}}
            self.put(
                schema.conversation,
                id=id,
                project_id=self.id,
                annotator_id="admin",
                kind=kind,
                policies=[self.short("conversation.policies") for _ in range(2)],
                payload=rule if kind == "probe" else None,
                state="open" if kind == "live" else "ended",
                ending={"rating": 3, "comment": self.long("conversation.ending")}
                if kind == "probe"
                else None,
                created_at=self.now,
            )
            for number, state in ((1, "chosen"), (2, "failed" if kind == "probe" else "shown")):
                task = f"{self.id}-talk-{number}"
                chosen = sa.select(schema.task.c.completion_ids).where(schema.task.c.id == task)
                self.put(
                    schema.turn,
                    conversation_id=id,
                    number=number,
                    text=self.long("turn.text"),
                    key=f"{id}-{number}",
                    state=state,
                    task_id=task if kind == "live" else None,
                    chosen_id=self.connection.execute(chosen).scalar_one()[0] if state == "chosen" else None,
                    error=self.long("turn.error"),
                    created_at=self.now,
                    shown_at=self.now,
                )

    def _beside(self, person: str) -> None:
        for name in ("x", "y", "z"):
            self._beside_once(person, f"{self.id}-{name}")

    def _beside_once(self, person: str, name: str) -> None:
        hook = webhooks.add_webhook(
            self.connection, self.now, self.id, "https://example.org/x", webhooks.EVENTS[:1], actor="admin"
        )[0]
        url = self.short("webhook.url")
        self.connection.execute(sa.update(schema.webhook).where(schema.webhook.c.id == hook).values(url=url))
        self.put(
            schema.delivery,
            id=f"{name}-delivery",
            webhook_id=hook,
            event=webhooks.EVENTS[0],
            body={"data": self.long("delivery.body")},
            state="dead",
            attempts=9,
            error=self.short("delivery.error"),
            next_at=self.now,
            created_at=self.now,
        )
        self.put(
            schema.api_token,
            token_hash=f"{name}-token",
            id=f"{name}-token",
            annotator_id=person,
            name=self.short("api_token.name"),
            scopes=["tasks:read"],
            created_at=self.now,
            expires_at=self.now + 10**9,
        )
        self.put(
            schema.invite,
            token_hash=f"{name}-invite",
            project_ids=[self.id],
            email=self.short("invite.email"),
            created_by="admin",
            created_at=self.now,
            expires_at=self.now + 10**9,
        )
        self.put(
            schema.export,
            id=f"{name}-export",
            project_id=self.id,
            format="pairs",
            filter={
                "project": self.id,
                "text": self.short("export.filter"),
                "tag": self.short("export.filter"),
            },
            watermark=10**6,
            created_by=person,
            created_at=self.now,
        )
        audit(
            self.connection,
            self.now,
            person,
            "project.configure",
            self.short("audit.object"),
            {"reason": self.short("audit.detail"), self.short("audit.detail"): [self.short("audit.detail")]},
        )
