"""TRL's side: its trainers, and for an iteration the pipeline that one writes around them with transformers."""

from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
)
from transformers.utils import logging as transformers_logging
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from benchmarks.cases import Case, Done, Side
from benchmarks.data import TextGroup, text_groups, word_score
from benchmarks.machine import Moment, now, total
from benchmarks.settings import BETA, LEARNING_RATE, MAX_GRAD_NORM, SEED, WEIGHT_DECAY, Folders
from benchmarks.shapes import SHAPES
from prefloop.algorithms import ALGORITHMS
from prefloop.config import TrainingSection
from prefloop.train.loop import batches_of, planned_steps

SCORING_ROWS = 8
"""Completions scored side by side: one group of K = 8, so that padding is small."""


def run(case: Case, side: Side, folders: Folders, threads: int) -> Done:
    """The work of a case."""
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    groups = text_groups(case.data, SHAPES[case.model].vocabulary)
    match case.task:
        case "dpo":
            return train_dpo(case, side, [(one, 0, 1) for one in in_order(case, groups)], folders)
        case "reward":
            return train_ranking(case, side, in_order(case, groups), folders)
        case "iteration":
            return iterate(case, side, groups, folders)
        case "rl":
            return reinforce(case, side, groups, folders)


# --- data ------------------------------------------------------------------------------------------------------------


def in_order(case: Case, groups: list[TextGroup]) -> list[TextGroup]:
    """The groups in the order in which prefloop's first epoch takes them, so that losses can be compared step by step."""
    options = TrainingSection(batch_size=case.prompts_per_step)
    steps = batches_of(groups, options, steps=planned_steps(len(groups), options), seed=SEED)
    return [group for step in steps for group in step]


def dataset(picked: list[tuple[TextGroup, int, int]]) -> Dataset:
    """Pairs of chosen and rejected completions as conversations, with the length by which TRL can group them."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": group.prompt}],
                "chosen": [{"role": "assistant", "content": group.completions[chosen]}],
                "rejected": [{"role": "assistant", "content": group.completions[rejected]}],
                "length": len(group.prompt.split())
                + max(len(group.completions[index].split()) for index in (chosen, rejected)),
            }
            for group, chosen, rejected in picked
        ]
    )


# --- trainers --------------------------------------------------------------------------------------------------------


class TimedDPOTrainer(DPOTrainer):
    """DPOTrainer that notes how long the reference's log-probabilities take."""

    reference = Moment(0.0, 0.0)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        started = now()
        result = super()._precompute_ref_logps(dataset, name, batch_size)
        self.reference = now().since(started)
        return result


def arguments(case: Case, side: Side, folders: Folders) -> dict[str, Any]:
    """What both trainers are given, so that they do what prefloop does."""
    return {
        "output_dir": str(folders.out),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "num_train_epochs": case.epochs,
        "per_device_train_batch_size": side.microbatch,
        "gradient_accumulation_steps": case.pairs_per_step // side.microbatch,
        "gradient_checkpointing": side.gradient_checkpointing,
        "train_sampling_strategy": "group_by_length" if side.group_by_length else "sequential",
        "remove_unused_columns": False,  # the lengths stay, for grouping
        "max_length": None,
        "bf16": case.dtype == "bfloat16",
        "use_cpu": case.device == "cpu",
        "dataloader_pin_memory": case.device == "cuda",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": SEED,
    }


def train_dpo(case: Case, side: Side, picked: list[tuple[TextGroup, int, int]], folders: Folders) -> Done:
    """DPOTrainer on pairs."""
    data = dataset(picked)
    started = now()
    tokenizer = AutoTokenizer.from_pretrained(folders.policy)
    model = AutoModelForCausalLM.from_pretrained(
        folders.policy, dtype=torch.float32, attn_implementation="sdpa"
    )
    options = DPOConfig(
        beta=BETA,
        precompute_ref_log_probs=side.precomputed_reference,
        **arguments(case, side, folders),
    )
    trainer = TimedDPOTrainer(
        model=model,
        args=options,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=_adapters(case, "CAUSAL_LM"),
    )
    return _trained(case, trainer, started, folders, reference=trainer.reference)


def train_ranking(case: Case, side: Side, groups: list[TextGroup], folders: Folders) -> Done:
    """RewardTrainer on the pairs of every ranking; the head starts at zero, as prefloop's does."""
    number = range(case.data.num_completions)
    data = dataset(
        [(one, better, worse) for one in groups for better in number for worse in number[better + 1 :]]
    )
    started = now()
    tokenizer = AutoTokenizer.from_pretrained(folders.policy)
    model = AutoModelForSequenceClassification.from_pretrained(
        folders.policy, num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    )
    nn.init.zeros_(model.score.weight)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(case, side, folders)),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=_adapters(case, "SEQ_CLS"),
    )
    return _trained(case, trainer, started, folders)


def _adapters(case: Case, task: str) -> LoraConfig | None:
    """The adapters that prefloop makes from the same rank."""
    if not case.lora_rank:
        return None
    return LoraConfig(
        r=case.lora_rank, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type=task
    )


def _trained(
    case: Case,
    trainer: Any,
    started: Moment,
    folders: Folders,
    *,
    reference: Moment = TimedDPOTrainer.reference,
) -> Done:
    """Trains, saves and returns the figures."""
    trainer.remove_callback(PrinterCallback)
    begun = now()
    trainer.train()
    trained = now().since(begun)
    trainer.save_model(str(folders.out / "model"))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Done(
        whole=now().since(started),
        parts={"train": total(reference, trained)},
        train_s=trained.wall,
        num_pairs=len(trainer.train_dataset),
        num_steps=trainer.state.global_step,
        loss_first=losses[0],
        loss_last=losses[-1],
    )


# --- reinforcement ---------------------------------------------------------------------------------------------------


def reinforce(case: Case, side: Side, groups: list[TextGroup], folders: Folders) -> Done:
    """GRPOTrainer or RLOOTrainer; all samples of a step are made at once, and learned from `microbatch` at a time."""
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": one.prompt}]} for one in groups])
    started = now()
    settings = arguments(case, side, folders)
    samples = case.prompts_per_step * case.data.num_completions
    for name in ("train_sampling_strategy", "max_length"):
        del settings[name]
    settings |= {
        "gradient_accumulation_steps": samples // side.microbatch,
        "num_generations": case.data.num_completions,
        "max_completion_length": case.data.completion_length,
        "beta": ALGORITHMS[case.algorithm].kl_coef,
        "temperature": 1.0,
        "remove_unused_columns": True,
    }
    model = AutoModelForCausalLM.from_pretrained(
        folders.policy, dtype=torch.float32, attn_implementation="sdpa"
    )
    common = {
        "model": model,
        "reward_funcs": _word_scores,
        "train_dataset": data,
        "processing_class": AutoTokenizer.from_pretrained(folders.policy, padding_side="left"),
    }
    if case.algorithm == "grpo":
        trainer: Any = GRPOTrainer(args=GRPOConfig(loss_type="grpo", **settings), **common)
    else:
        trainer = RLOOTrainer(args=RLOOConfig(**settings), **common)
    return _trained(case, trainer, started, folders)


def _word_scores(completions: list[Any], **_: Any) -> list[float]:
    return [word_score(one[0]["content"]) for one in completions]


# --- iteration -------------------------------------------------------------------------------------------------------


def iterate(case: Case, side: Side, groups: list[TextGroup], folders: Folders) -> Done:
    """Decodes the samples, tokenises them for the reward model, scores them, chooses pairs and trains on them."""
    tokenizer = AutoTokenizer.from_pretrained(folders.reward_model)
    sampled = [[tokenizer(text).input_ids for text in one.completions] for one in groups]
    model = AutoModelForSequenceClassification.from_pretrained(
        folders.reward_model, dtype=torch.float32
    ).eval()
    model.to(case.device)
    started = now()
    decoded = [
        TextGroup(one.prompt, tuple(tokenizer.batch_decode(ids, skip_special_tokens=True)))
        for one, ids in zip(groups, sampled, strict=True)
    ]
    values = _scores(case, model, tokenizer, decoded)
    scored = now().since(started)
    picks = [(one.index(max(one)), one.index(min(one))) for one in values]
    picked = [(one, *pick) for one, pick in zip(decoded, picks, strict=True)]
    selected = now().since(started).since(scored)
    trained = train_dpo(case, side, picked, folders)
    return replace(
        trained,
        whole=total(scored, selected, trained.whole),
        parts={"score": scored, "select": selected, **trained.parts},
        picks=picks,
    )


@torch.inference_mode()
def _scores(case: Case, model: Any, tokenizer: Any, groups: list[TextGroup]) -> list[list[float]]:
    """The reward model's score of every completion, in padded batches."""
    conversations = [
        [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": text}]
        for one in groups
        for text in one.completions
    ]
    scores: list[float] = []
    for start in range(0, len(conversations), SCORING_ROWS):
        batch = tokenizer.apply_chat_template(
            conversations[start : start + SCORING_ROWS],
            tokenize=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(case.device)
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            scores += model(**batch, use_cache=False).logits[:, 0].float().tolist()
    size = case.data.num_completions
    return [scores[start : start + size] for start in range(0, len(scores), size)]
