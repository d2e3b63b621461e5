"""One function per stage of the loop: what it reads, its key, and the body that makes the artefact.

A stage function is called when the loop is planned, to know the key; its body runs when the artefact is built. Only
bodies import torch. Bodies read input files, call a part, write files and count rows.
"""

from prefloop.stages.labels import (
    annotate,
    generate,
    import_pairs,
    labels_per_prompt,
    mixed,
    replayed,
    select_pairs,
)
from prefloop.stages.measures import decided, evaluate, promote
from prefloop.stages.models import base_model, sft, train_policy
from prefloop.stages.people import decisions
from prefloop.stages.prompts import all_prompts, draw_prompts, invent_prompts, prompts
from prefloop.stages.reinforce import reinforce
from prefloop.stages.rewards import (
    import_preferences,
    import_reward,
    promote_reward,
    reward_model,
    rule_model,
)
from prefloop.stages.suites import answers, suite

__all__ = [
    "answers",
    "suite",
    "all_prompts",
    "annotate",
    "base_model",
    "decided",
    "decisions",
    "draw_prompts",
    "evaluate",
    "generate",
    "import_pairs",
    "import_preferences",
    "import_reward",
    "invent_prompts",
    "labels_per_prompt",
    "mixed",
    "replayed",
    "promote",
    "promote_reward",
    "prompts",
    "reinforce",
    "reward_model",
    "rule_model",
    "select_pairs",
    "sft",
    "train_policy",
]
