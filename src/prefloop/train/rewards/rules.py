"""Training a rule model: P(violated | dialogue, rule), one head for all rules in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.batches import Codec, TokenGroup, collate
from prefloop.forward import ScoresModule, all_scores
from prefloop.interfaces import Progress
from prefloop.launch import processes
from prefloop.losses import rule_loss
from prefloop.modeling import new_reward_model, note_reward, save_model
from prefloop.reward.rules import rule_group
from prefloop.train.loop import Metrics
from prefloop.train.rewards.job import RewardJob, fit_reward_group, fitted, verdict_accuracy
from prefloop.verdicts import RuleVerdict


@dataclass(frozen=True)
class JudgedDialogue:
    """A dialogue, the rules that it was judged by, and whether each is violated."""

    tokens: TokenGroup
    violated: tuple[float, ...]
    prompt_id: str
    name: str

    @property
    def weight(self) -> float:
        """Each verdict counts once."""
        return float(len(self.violated))


def train_rules(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the model to `job.out / "model"`; returns its statistics."""
    model, codec = new_reward_model(job.trunk, job.runtime)
    verdicts = [one for one in job.rows if isinstance(one, RuleVerdict)]
    held_out = [one for one in job.held_out if isinstance(one, RuleVerdict)]
    dialogues, cut_rows = encode_dialogues(verdicts, codec, job.options.max_length)
    module = ScoresModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    stats = fitted(
        job, module, dialogues, lambda trained, items: verdicts_loss(trained, items, module), progress
    )
    rules = list(dict.fromkeys(one.rule for one in verdicts))
    if processes(job.runtime).is_main_process:
        note_reward(module.model, kind=job.options.objective.kind, rules=rules)
        save_model(module.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats | {
        "num_rows": len(verdicts),
        "prompts": len(dialogues),
        "rules": len(rules),
        "violated": sum(one.violated for one in verdicts) / len(verdicts),
        "truncated": cut_rows,
        "validation": None,
        "held_out": _measure(module, held_out, codec, job) if held_out else None,
    }


def encode_dialogues(
    verdicts: Sequence[RuleVerdict], codec: Codec, max_length: int
) -> tuple[list[JudgedDialogue], int]:
    """The verdicts by dialogue, and how many rules stand after a dialogue that had to be cut on the left."""
    by_dialogue: dict[str, list[RuleVerdict]] = {}
    for one in verdicts:
        by_dialogue.setdefault(one.completion.id, []).append(one)
    dialogues, cut_rows = [], 0
    for same in by_dialogue.values():
        prompt, completion = same[0].prompt, same[0].completion
        answer = codec.answer_ids(prompt.messages, completion.text)
        whole = rule_group(codec, prompt, answer, [one.rule for one in same])
        tokens, number = fit_reward_group(whole, max_length)
        cut_rows += number
        violated = tuple(float(one.violated) for one in same)
        dialogues.append(JudgedDialogue(tokens, violated, prompt.id, completion.id))
    return dialogues, cut_rows


def verdicts_loss(
    trained: Any, items: Sequence[JudgedDialogue], module: ScoresModule
) -> tuple[Tensor, Metrics]:
    """Summed binary cross-entropy of the verdicts."""
    device = next(trained.parameters()).device
    tokens = [one.tokens for one in items]
    logits = trained(collate(tokens, share=module.shares, pad_id=module.pad_id, device=device))  # [C]
    violated = torch.tensor([label for one in items for label in one.violated], device=device)
    right = (logits > 0) == (violated > 0.5)
    return rule_loss(logits, violated).sum(), {"accuracy": right.float().sum()}


def _measure(
    module: ScoresModule, verdicts: Sequence[RuleVerdict], codec: Codec, job: RewardJob
) -> dict[str, Any]:
    dialogues, _ = encode_dialogues(verdicts, codec, job.options.max_length)
    logits = all_scores(module, [one.tokens for one in dialogues], job.runtime)
    flat = [one for row in logits for one in row]
    return verdict_accuracy(
        [one.prompt_id for one in dialogues for _ in one.violated],
        torch.tensor(flat).sigmoid().tolist(),
        [label for one in dialogues for label in one.violated],
    )
