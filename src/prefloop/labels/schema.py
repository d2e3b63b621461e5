"""The tables of the label store.

Times are milliseconds since 1970. Prompts, completions and policies keep the loop's content ids; other ids are random,
but those of judgements and of the audit count up, so that a watermark is a number. Rows of `judgement`, `ledger` and
`audit` are only ever added.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
COUNTED_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite counts up integers only."""


def _text(name: str, *, default: str = "") -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default=default)


def _count(name: str, *, default: int = 0) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=str(default))


def _time(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _json(name: str, *, nullable: bool = True) -> sa.Column:
    return sa.Column(name, JSON, nullable=nullable)


def _ref(name: str, target: str, *, nullable: bool = False, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, sa.ForeignKey(target), nullable=nullable, primary_key=primary_key)


setting = sa.Table(
    "setting",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    _text("value"),
)
"""What the store keeps for itself: the secret of the presentation orders."""

# --- what is judged --------------------------------------------------------------------------------------------------

project = sa.Table(
    "project",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("title"),
    _text("config", default="{}"),  # a `ProjectConfig`, as JSON
    _text("config_source"),  # the YAML that it was written as, with its comments
    _count("guideline_version"),
    _count("cursor_version"),  # grows when tasks come that members may have passed; see `choosing`
    _text("state", default="open"),  # open | closed
    _time("created_at"),
)

guideline = sa.Table(
    "guideline",
    metadata,
    _ref("project_id", "project.id", primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    _text("text"),
    _time("created_at"),
)

prompt = sa.Table(
    "prompt",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _json("messages", nullable=False),
    sa.Column("answer", sa.Text),
    _text("source"),
    _text("split", default="train"),  # by source user or conversation, never by row
    _text("user_hash"),
    _json("tags"),
    _text("lang"),
    _text("safety_tag"),
    _text("dedupe_hash"),
    sa.Column("author_id", sa.Text),  # of a person who wrote its last turn, and never judges answers to it
)

policy = sa.Table(
    "policy",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("uri"),
    sa.Column("parent_id", sa.Text),
    _count("iteration"),
    _text("digest"),
    _text("state", default="candidate"),  # candidate | current | retired
)

completion = sa.Table(
    "completion",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("prompt_id", "prompt.id"),
    _text("policy_id"),
    _text("text"),
    _json("sampling"),
    sa.Column("sequence_logp", sa.Float),
    sa.Column("num_tokens", sa.Integer),
    _json("token_ids"),
    _json("token_logps"),
    sa.Column("finish_reason", sa.Text),
    sa.Column("latency_ms", sa.Integer),
    _json("tree_node"),
)

round_ = sa.Table(
    "round",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("project_id", "project.id"),
    _count("number"),
    _text("state", default="open"),  # open | frozen | training | evaluating | promoted | rejected
    _text("policy_in"),
    _text("reward_in"),
    _text("policy_out"),
    _text("reward_out"),
    sa.Column("budget_cents", sa.Integer),  # null: no limit
    _count("spent_cents"),
    _count("reserved_cents"),
    sa.Column("watermark", sa.BigInteger),  # the last judgement that counts, once frozen
    _json("evaluation"),
    _time("opened_at"),
    _time("frozen_at", nullable=True),
    _time("closed_at", nullable=True),
    sa.UniqueConstraint("project_id", "number"),
)
"""One turn of the outer loop, as people see it: the questions of one label batch. Its id is a hash of what is asked."""

decision = sa.Table(
    "decision",
    metadata,
    sa.Column("id", COUNTED_ID, primary_key=True, autoincrement=True),
    _ref("project_id", "project.id"),
    _ref("round_id", "round.id"),
    _text("policy_id"),  # the policy that was trained on the round
    _text("verdict"),  # promote | reject
    _text("reason"),
    _text("actor"),
    _time("created_at"),
)
"""What people decided about a trained policy, over the head of the loop's gate. The last one on a policy counts."""

task = sa.Table(
    "task",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("project_id", "project.id"),
    _ref("round_id", "round.id", nullable=True),
    _text("kind"),  # see `values.Kind`
    _ref("prompt_id", "prompt.id", nullable=True),
    _json("completion_ids", nullable=False),
    _json("payload"),  # what else the kind needs: rules, steps, few-shot examples
    _count("overlap", default=1),  # valid judgements of people wanted
    _count("ai_overlap"),  # and of judges
    sa.Column("priority", sa.Float, nullable=False, server_default="0"),
    _count("ordinal"),  # the order of publication
    _text("strategy"),  # how it was chosen: random | active | gold | repeat | …
    sa.Column("score", sa.Float),  # of that strategy
    sa.Column("probability", sa.Float),  # of having been chosen, so that statistics can weigh by importance
    sa.Column("reward_p", sa.Float),  # P(first completion is better) by the reward model of the round
    sa.Column("reward_confidence", sa.Float),
    _text("state", default="open"),  # open | closed | retired: of a gold task whose answers count no more
    _count("guideline_version"),
    sa.Column("is_gold", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("is_sensitive", sa.Boolean, nullable=False, server_default=sa.text("false")),
    _ref("repeat_of", "task.id", nullable=True),  # of a gold task: the one that it was made of
    _ref("for_annotator", "annotator.id", nullable=True),
    _ref("author_id", "annotator.id", nullable=True),  # who wrote the prompt or the edit; never judges it
    _text("skill"),
    _text("lang"),
    _text("expires_with_policy"),
    sa.Column("not_before", sa.BigInteger, nullable=False, server_default="0"),
    # kept up to date in the transaction that changes them; claims read nothing else
    _count("valid"),
    _count("leased"),
    _count("ai_valid"),
    _count("ai_leased"),
    _count("skips"),
    _time("reopened_at", nullable=True),  # when a place was last given back
    _time("created_at"),
    _time("done_at", nullable=True),
)
HAS_ROOM = {
    "human": sa.text("state = 'open' AND NOT is_gold AND for_annotator IS NULL AND overlap > valid + leased"),
    "ai": sa.text(
        "state = 'open' AND NOT is_gold AND for_annotator IS NULL AND ai_overlap > ai_valid + ai_leased"
    ),
}
"""The tasks a claim looks through: the conditions of two partial indexes, word for word. SQLite takes such an index only
where the comparison begins with a column."""
for _kind, _condition in HAS_ROOM.items():
    sa.Index(
        f"ix_task_room_{_kind}",
        task.c.project_id,
        task.c.priority.desc(),
        task.c.ordinal,
        sqlite_where=_condition,
        postgresql_where=_condition,
    )
_REOPENED = sa.text("reopened_at IS NOT NULL")
sa.Index(
    "ix_task_reopened",
    task.c.project_id,
    task.c.reopened_at,
    sqlite_where=_REOPENED,
    postgresql_where=_REOPENED,
)
OWN_HAS_ROOM = sa.text("state = 'open' AND for_annotator IS NOT NULL AND overlap > valid + leased")
"""The same of tasks that are for one person alone."""
sa.Index(
    "ix_task_for_annotator",
    task.c.for_annotator,
    task.c.project_id,
    task.c.not_before,
    task.c.ordinal,
    sqlite_where=OWN_HAS_ROOM,
    postgresql_where=OWN_HAS_ROOM,
)
sa.Index("ix_task_round", task.c.round_id)
IS_GOLD = sa.text("is_gold")
sa.Index("ix_task_gold", task.c.project_id, task.c.ordinal, sqlite_where=IS_GOLD, postgresql_where=IS_GOLD)

gold = sa.Table(
    "gold",
    metadata,
    _ref("task_id", "task.id", primary_key=True),
    _json("expected", nullable=False),
    _count("tolerance"),
    _text("why"),
)

# --- who judges ------------------------------------------------------------------------------------------------------

annotator = sa.Table(
    "annotator",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("email", sa.Text, unique=True),
    _text("role", default="annotator"),  # annotator | reviewer | lead | admin | judge
    sa.Column("password_hash", sa.Text),
    _json("skills"),
    _json("languages"),
    _json("groups"),
    _json("preferences"),  # language of the pages, keys
    sa.Column("exposure_cap", sa.Integer),  # sensitive tasks a day; null: none are shown
    _text("state", default="active"),  # active | disabled | deleted
    _time("created_at"),
)

member = sa.Table(
    "member",
    metadata,
    _ref("project_id", "project.id", primary_key=True),
    _ref("annotator_id", "annotator.id", primary_key=True),
    _count("guideline_version"),  # the last one acknowledged
    _text("consent_version"),  # what was agreed to last; see `ProjectConfig.consent_version`
    _text("qualification", default="none"),  # none | passed | failed
    # the last answer that does not count, since they may try again; the last one whose feedback was read
    sa.Column("qualification_after", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("qualification_seen", sa.BigInteger, nullable=False, server_default="0"),
    _count("served"),  # tasks claimed, which says when gold and repeats are due
    # where the next search begins; see `choosing`
    sa.Column("cursor_priority", sa.Float),
    _count("cursor_ordinal"),
    _count("cursor_version"),
    _time("cursor_since", nullable=True),
)

invite = sa.Table(
    "invite",
    metadata,
    sa.Column("token_hash", sa.Text, primary_key=True),
    _text("role", default="annotator"),
    _json("project_ids", nullable=False),
    _text("email"),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    sa.Column("used_by", sa.Text),
)

login_link = sa.Table(
    "login_link",
    metadata,
    sa.Column("token_hash", sa.Text, primary_key=True),
    _ref("annotator_id", "annotator.id"),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
)

session = sa.Table(
    "session",
    metadata,
    sa.Column("token_hash", sa.Text, primary_key=True),
    _ref("annotator_id", "annotator.id"),
    _text("csrf"),
    _text("opened_by", default="password"),  # password | link | invite
    _time("created_at"),
    _time("seen_at"),
    _time("expires_at"),
)

api_token = sa.Table(
    "api_token",
    metadata,
    sa.Column("token_hash", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    _ref("annotator_id", "annotator.id"),
    _text("name"),
    _json("scopes", nullable=False),
    _time("created_at"),
    _time("expires_at"),
    _time("revoked_at", nullable=True),
    _time("used_at", nullable=True),
)

# --- judging ---------------------------------------------------------------------------------------------------------

lease = sa.Table(
    "lease",
    metadata,
    sa.Column("token", sa.Text, primary_key=True),
    _ref("task_id", "task.id"),
    _ref("project_id", "project.id"),
    _ref("annotator_id", "annotator.id"),
    _text("kind"),  # human | ai
    _count("slot"),
    _json("presented", nullable=False),  # indices of the completions, in the order shown
    _text("state", default="open"),  # open | expired
    _count("cents"),  # reserved
    _time("created_at"),
    _time("expires_at"),
    _time("limit_at"),
    _json("draft"),
    sa.UniqueConstraint("task_id", "annotator_id"),
)
_IS_OPEN = sa.text("state = 'open'")
sa.Index(
    "uq_lease_open",
    lease.c.project_id,
    lease.c.annotator_id,
    unique=True,
    sqlite_where=_IS_OPEN,
    postgresql_where=_IS_OPEN,
)
sa.Index(
    "ix_lease_expiry",
    lease.c.project_id,
    lease.c.expires_at,
    sqlite_where=_IS_OPEN,
    postgresql_where=_IS_OPEN,
)

judgement = sa.Table(
    "judgement",
    metadata,
    sa.Column("id", COUNTED_ID, primary_key=True, autoincrement=True),
    _ref("task_id", "task.id"),
    _ref("project_id", "project.id"),
    _ref("round_id", "round.id", nullable=True),
    _ref("annotator_id", "annotator.id"),
    _text("kind", default="human"),  # human | ai | rule | outcome
    _text("state", default="valid"),  # valid | surplus | late | skipped | withdrawn
    _json("value"),  # about completions, never about sides; see `values`
    _json("presented"),
    _count("slot"),
    _count("guideline_version"),
    sa.Column("client_uuid", sa.Text, nullable=False, unique=True),
    _text("body_hash"),
    _count("revision"),
    sa.Column("supersedes", COUNTED_ID, sa.ForeignKey("judgement.id"), unique=True),
    sa.Column("active_ms", sa.Integer),
    sa.Column("first_action_ms", sa.Integer),
    _text("comment"),
    _json("judge"),  # model, prompt_sha, principle, temperature
    _count("cents"),
    _time("created_at"),
    sa.UniqueConstraint("task_id", "annotator_id", "revision"),
    sqlite_autoincrement=True,
)
sa.Index("ix_judgement_annotator", judgement.c.annotator_id, judgement.c.id)
sa.Index("ix_judgement_day", judgement.c.annotator_id, judgement.c.created_at)
sa.Index("ix_judgement_project", judgement.c.project_id, judgement.c.id)
sa.Index("ix_judgement_round", judgement.c.round_id)

flag = sa.Table(
    "flag",
    metadata,
    sa.Column("id", COUNTED_ID, primary_key=True, autoincrement=True),
    _ref("task_id", "task.id"),
    _ref("annotator_id", "annotator.id"),
    _text("reason"),  # personal_data | unsafe | bug | reject_prompt | appeal
    _text("comment"),
    _time("created_at"),
    _time("resolved_at", nullable=True),
    _text("resolution"),  # dismissed | upheld
    _text("resolved_by"),
)
sa.Index("ix_flag_task", flag.c.task_id)

adjudication = sa.Table(
    "adjudication",
    metadata,
    sa.Column("id", COUNTED_ID, primary_key=True, autoincrement=True),
    _ref("task_id", "task.id"),
    _ref("annotator_id", "annotator.id"),
    _json("value"),
    _text("outcome"),  # human_right | model_right | ambiguous
    _text("reason"),
    sa.Column("revealed", sa.Boolean, nullable=False, server_default=sa.text("false")),
    _time("created_at"),
)
sa.Index("ix_adjudication_task", adjudication.c.task_id)

# --- conversations ---------------------------------------------------------------------------------------------------

conversation = sa.Table(
    "conversation",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("project_id", "project.id"),
    _ref("annotator_id", "annotator.id"),
    _text("kind", default="live"),  # live | probe
    _json("policies", nullable=False),  # pinned at the start
    _json("payload"),  # the rule of a probe
    _text("state", default="open"),  # open | ended
    _json("ending"),  # the form at the end
    _time("created_at"),
    _time("ended_at", nullable=True),
)
sa.Index(
    "uq_conversation_open",
    conversation.c.project_id,
    conversation.c.annotator_id,
    conversation.c.kind,
    unique=True,
    sqlite_where=_IS_OPEN,
    postgresql_where=_IS_OPEN,
)

turn = sa.Table(
    "turn",
    metadata,
    _ref("conversation_id", "conversation.id", primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    _text("text"),
    sa.Column("key", sa.Text, nullable=False, unique=True),  # the browser's, so that a retry is the same turn
    _text("state", default="waiting"),  # waiting | shown | chosen | rejected | failed
    _ref("task_id", "task.id", nullable=True),
    sa.Column("chosen_id", sa.Text),
    _text("error"),  # names policies: for the lead, never for the page
    _count("attempts"),
    _count("renewed"),  # how often other answers were asked for
    _count("num_tokens"),  # of all its answers
    _time("busy_until", nullable=True),  # while a server is at it
    _time("created_at"),
    _time("shown_at", nullable=True),
)
_IS_WAITING = sa.text("state = 'waiting'")
sa.Index("ix_turn_waiting", turn.c.busy_until, sqlite_where=_IS_WAITING, postgresql_where=_IS_WAITING)

# --- what the work costs and where it goes ----------------------------------------------------------------------------

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", COUNTED_ID, primary_key=True, autoincrement=True),
    _ref("project_id", "project.id"),
    _ref("round_id", "round.id", nullable=True),
    _ref("annotator_id", "annotator.id"),
    sa.Column("judgement_id", COUNTED_ID, sa.ForeignKey("judgement.id")),
    _count("cents"),
    _text("reason"),
    _time("created_at"),
)

quality = sa.Table(
    "quality",
    metadata,
    _ref("project_id", "project.id", primary_key=True),
    _ref("annotator_id", "annotator.id", primary_key=True),
    sa.Column("day", sa.Text, primary_key=True),
    _json("figures", nullable=False),
)

export = sa.Table(
    "export",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("project_id", "project.id"),
    _text("format"),
    _json("filter"),
    sa.Column("watermark", sa.BigInteger, nullable=False),
    _text("sha256"),
    _count("rows"),
    _text("code_version"),
    _text("created_by"),
    _time("created_at"),
)

webhook = sa.Table(
    "webhook",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("project_id", "project.id"),
    _text("url"),
    _text("secret"),
    _json("events", nullable=False),
    _text("state", default="active"),
    _time("created_at"),
)

delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _ref("webhook_id", "webhook.id"),
    _text("event"),
    _json("body", nullable=False),
    _count("attempts"),
    _text("state", default="waiting"),  # waiting | delivered | dead
    _text("error"),
    _time("next_at"),
    _time("created_at"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", COUNTED_ID, primary_key=True, autoincrement=True),
    _time("time"),
    _text("actor"),
    _text("action"),
    _text("object"),
    _json("detail"),
)
