"""What a labelling project is: which tasks, how many judgements, what people are asked and paid.

A project is written as YAML; unknown keys are errors. Every key has a default that works.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from prefloop.config.annotate import MOST_RANKED
from prefloop.config.section import Section
from prefloop.labels.errors import Invalid

Kind = Literal["pairwise", "rank", "form", "rules", "edit", "demonstration", "prompt", "steps"]
"""What a task asks. A turn of a conversation is a `pairwise` or `rank` task."""
COMPLETIONS: dict[Kind, range] = {
    "pairwise": range(2, 3),
    "rank": range(2, MOST_RANKED + 1),
    "form": range(1, 2),
    "rules": range(1, 2),
    "edit": range(1, 2),
    "demonstration": range(1),
    "prompt": range(1),
    "steps": range(2, MOST_RANKED + 1),
}
"""How many completions a task of each kind can show."""
KINDS = tuple(COMPLETIONS)
FieldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
MINUTE_MS = 60_000


class FormField(Section):
    """One question of the absolute form."""

    name: FieldName
    """Under which the answer is stored."""
    label: str
    """What people read."""
    type: Literal["likert", "flag", "choice", "text"] = "flag"
    """`likert`: 1 to 7; `flag`: yes or no; `choice`: one of `options`; `text`: a line."""
    options: tuple[str, ...] = ()
    """For `choice`."""
    key: str = Field(default="", max_length=1)
    """Key that sets a flag."""
    required: bool = False
    """Whether the form can be sent without it."""

    @model_validator(mode="after")
    def _options_fit(self) -> "FormField":
        if (self.type == "choice") != bool(self.options):
            raise ValueError("options belong to fields of type choice, which need them")
        return self


class Rule(Section):
    """A rule that answers should keep."""

    id: FieldName
    """Under which levels are stored."""
    text: str
    """The rule in words."""


def _flag(name: str, label: str, key: str) -> FormField:
    return FormField(name=name, label=label, key=key)


INSTRUCTGPT_FORM = (
    FormField(name="overall", label="Overall quality", type="likert", required=True),
    _flag("fails_instruction", "Fails to follow the correct instruction or task", "i"),
    _flag("inappropriate", "Inappropriate for a customer assistant", "a"),
    _flag("hallucination", "Hallucination", "l"),
    _flag("satisfies_constraint", "Satisfies the constraint in the instruction", "c"),
    _flag("sexual", "Contains sexual content", "x"),
    _flag("violent", "Contains violent content", "v"),
    _flag(
        "encourages_harm", "Encourages or fails to discourage violence, abuse, terrorism or self-harm", "e"
    ),
    _flag("denigrates", "Denigrates a protected class", "d"),
    _flag("harmful_advice", "Gives harmful advice", "g"),
    _flag("opinion", "Expresses an opinion", "o"),
    _flag("moral_judgement", "Expresses a moral judgement", "m"),
)
"""The metadata of InstructGPT's labelers (arXiv:2203.02155, Table 3)."""


class Dwell(Section):
    """How long a task must have been in view before it can be answered."""

    least_s: float = Field(default=3.0, ge=0)
    """Seconds, whatever the length."""
    per_character_ms: float = Field(default=15.0, ge=0)
    """Milliseconds for each character that is shown."""
    most_s: float = Field(default=10.0, ge=0)
    """Never longer than this."""

    def milliseconds(self, characters: int) -> int:
        """What a text of this many characters needs."""
        return int(min(max(self.least_s * 1000, self.per_character_ms * characters), self.most_s * 1000))


VENDOR_NAMES = (
    *(
        "OpenAI",
        "ChatGPT",
        "GPT-3",
        "GPT-3.5",
        "GPT-4",
        "GPT-4o",
        "GPT-5",
        "Anthropic",
        "Claude",
        "DeepMind",
        "Gemini",
    ),
    *(
        "Meta AI",
        "Llama",
        "Mistral",
        "Mixtral",
        "Qwen",
        "通义千问",
        "Alibaba Cloud",
        "阿里云",
        "DeepSeek",
        "深度求索",
    ),
    *(
        "Baidu",
        "文心一言",
        "Kimi",
        "Moonshot AI",
        "ChatGLM",
        "智谱",
        "Phi-3",
        "Phi-4",
        "Gemma",
        "Grok",
        "xAI",
        "Cohere",
    ),
)
"""By which an answer tells who wrote it, most often because its model was trained on another's answers."""


class ChatOptions(Section):
    """Live conversations, in which people choose among the answers of every turn."""

    num_completions: int = Field(default=2, ge=2, le=9)
    """Answers a turn."""
    probe_completions: int = Field(default=1, ge=1, le=9)
    """Answers a turn while a rule is probed; with 1 the answer is taken without a choice."""
    max_turns: int = Field(default=10, ge=1)
    """Turns of a person before the conversation ends."""
    max_characters: int = Field(default=4000, ge=1)
    """Longest turn of a person."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    max_tokens: int = Field(default=32_768, ge=1)
    """Tokens that policies may write in one conversation, all answers together."""
    max_tokens_per_day: int = Field(default=200_000, ge=1)
    """Tokens that policies may write for one person in 24 hours."""
    max_renewals: int = Field(default=3, ge=0)
    """How often other answers can be asked for in a turn."""
    identity: Literal["keep", "flag", "redraw"] = "flag"
    """What becomes of answers that name a vendor or model: nothing, a note for the lead, or up to two other draws first."""
    identity_names: tuple[str, ...] = VENDOR_NAMES
    """The names that are looked for, as whole words."""


class Qualification(Section):
    """Tasks with known answers that come before the real ones."""

    tasks: int = Field(default=0, ge=0)
    """How many; 0 lets everybody in."""
    pass_mark: float = Field(default=0.75, ge=0, le=1)
    """Share that must be right (InstructGPT screened at 75 % agreement)."""


class ProjectConfig(Section):
    """A labelling project."""

    kind: Kind = "pairwise"
    """What its tasks ask, where a task does not say."""
    overlap: int = Field(default=1, ge=1)
    """Valid judgements of people wanted for each task."""
    ai_overlap: int = Field(default=0, ge=0)
    """Judgements of AI judges wanted beside those of people; they never count as people's."""
    ties: bool = True
    """Whether two answers can be called equally good."""
    both_bad: bool = True
    """Whether all answers can be called unusable."""
    axes: tuple[FieldName, ...] = ()
    """Further questions beside which answer is better, each on the same strip: for instance helpful, harmless."""
    form: tuple[FormField, ...] = INSTRUCTGPT_FORM
    """Fields of the absolute form."""
    rules: tuple[Rule, ...] = ()
    """Rules that `rules` tasks ask about."""
    gold_share: float = Field(default=0.04, ge=0, le=0.5)
    """Share of tasks whose answer is known; an alarm, not a wage."""
    repeat_share: float = Field(default=0.04, ge=0, le=0.5)
    """Share of tasks that come again after a day, the other way round."""
    repeat_after_hours: float = Field(default=24.0, ge=0)
    """How long until then."""
    random_share: float = Field(default=0.2, ge=0, le=1)
    """Share of tasks chosen by chance where others are chosen by uncertainty."""
    lease_minutes: float = Field(default=15.0, gt=0)
    """How long a task is kept for a person who shows no sign of life."""
    lease_limit_minutes: float = Field(default=120.0, gt=0)
    """How long at most."""
    dwell: Dwell = Dwell()
    """How soon an answer is taken."""
    cents: dict[Kind, int] = {}
    """What a judgement is paid, by kind of task; kinds that are not named are not paid."""
    budget_cents: int | None = Field(default=None, ge=0)
    """What a round may cost; left out, there is no limit."""
    chat: ChatOptions | None = None
    """Options of live conversations; left out, there are none."""
    qualification: Qualification = Qualification()
    """Who is let in."""
    consent: str = ""
    """What people agree to before their first task."""
    warning: str = ""
    """A warning about what they may read."""
    support_url: str = ""
    """Where people who read harmful text find help."""
    break_after_minutes: float = Field(default=60.0, gt=0)
    """After how much work a break is proposed."""

    @model_validator(mode="after")
    def _is_whole(self) -> "ProjectConfig":
        if self.kind == "rules" and not self.rules:
            raise ValueError("rules: tasks of this kind need rules")
        names = [one.name for one in self.form]
        if len(set(names)) < len(names):
            raise ValueError("form: two fields have the same name")
        if self.support_url and not re.match(r"https?://", self.support_url):
            raise ValueError("support_url: give an http or https address")
        return self

    @property
    def consent_version(self) -> str:
        """Names the words that people agree to, consent and warning; empty where there are none."""
        if not self.consent and not self.warning:
            return ""
        return hashlib.sha256(f"{self.consent}\0{self.warning}".encode("utf-8", "surrogatepass")).hexdigest()[
            :16
        ]


def parse_config(text: str) -> ProjectConfig:
    """A project written in YAML. Raises Invalid, which names the line and the key of every error."""
    try:
        value: Any = yaml.safe_load(text) if text.strip() else {}
        node = yaml.compose(text, Loader=yaml.SafeLoader) if text.strip() else None
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise Invalid(f"line {line}: not YAML: {error.problem}") from error
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
    ) as error:  # a control character, or a date like 2024-13-01
        raise Invalid(f"not YAML: {str(error).splitlines()[0]}") from error
    if value is not None and not isinstance(value, dict):
        raise Invalid("line 1: write keys and values, such as `kind: pairwise`")
    try:
        return ProjectConfig.model_validate(value or {})
    except ValidationError as error:
        raise Invalid(
            "\n".join(_error_line(node, one["loc"], one["msg"]) for one in error.errors())
        ) from error


def _error_line(node: yaml.Node | None, place: Sequence[int | str], message: str) -> str:
    key = ".".join(str(one) for one in place)
    said = message.removeprefix("Value error, ")
    return f"line {_line_of(node, place)}: {key}: {said}" if key else f"line 1: {said}"


def _line_of(node: yaml.Node | None, place: Sequence[int | str]) -> int:
    """The line of a key, or of the nearest one around it that is written down."""
    line = 1
    for step in place:
        inner: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, inner = _line(key), value
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            inner = node.value[step]
            line = _line(inner)
        if inner is None:
            break
        node = inner
    return line


def _line(node: yaml.Node | None) -> int:
    return 1 if node is None or node.start_mark is None else node.start_mark.line + 1
