"""All formats that judgements leave in, by name."""

from prefloop.interfaces import InputError
from prefloop.labels.formats import argilla, hh, labelstudio, raw, rules, trl, ultrafeedback
from prefloop.labels.formats.shapes import Format

SIDES = ("prompt", "chosen", "rejected")

FORMATS = {
    one.name: one
    for one in (
        Format(
            "trl-preference",
            "pairs for DPO, as turns",
            trl.trl_preference,
            trl.preference_columns,
            SIDES,
        ),
        Format(
            "trl-preference-implicit",
            "pairs for reward models, as whole conversations",
            trl.trl_preference_implicit,
            trl.implicit_columns,
            ("chosen", "rejected"),
        ),
        Format(
            "trl-unpaired",
            "completions labelled good or bad, for KTO",
            trl.trl_unpaired,
            trl.unpaired_columns,
            ("prompt", "completion"),
        ),
        Format(
            "trl-stepwise",
            "steps labelled right or wrong, for process reward models",
            trl.trl_stepwise,
            trl.stepwise_columns,
            ("prompt", "completions"),
        ),
        Format("trl-prompt", "prompts", trl.trl_prompt, trl.prompt_columns, ("prompt",)),
        Format("sft", "conversations to imitate", trl.sft, trl.sft_columns, ("messages",)),
        Format("soft-pref", "pairs with the share of the votes", trl.soft_pref, trl.soft_columns, SIDES),
        Format("hh-rlhf", "pairs of transcripts", hh.hh_rlhf, hh.hh_columns, ("chosen", "rejected")),
        Format("hh-redteam", "attacks and how they went", hh.hh_redteam, hh.redteam_columns, ("transcript",)),
        Format(
            "rule-verdicts",
            "dialogues, rules and levels, for rule models",
            rules.rule_verdicts,
            rules.verdict_columns,
            ("messages", "rule"),
        ),
        Format("ultrafeedback", "completions with ratings", ultrafeedback.ultrafeedback, None),
        Format(
            "ultrafeedback-binarized",
            "pairs with scores",
            ultrafeedback.ultrafeedback_binarized,
            ultrafeedback.binarized_columns,
            ("chosen", "rejected"),
        ),
        Format(
            "llama2-margin",
            "pairs with the class of their strength",
            raw.llama2_margin,
            raw.llama2_columns,
            SIDES,
        ),
        Format(
            "argilla",
            "records and settings of Argilla 2",
            argilla.argilla,
            None,
            keeps="valid",
            companion=argilla.SETTINGS,
        ),
        Format(
            "labelstudio",
            "tasks and configuration of Label Studio",
            labelstudio.labelstudio,
            None,
            keeps="valid",
            companion=labelstudio.CONFIG,
        ),
        Format(
            "judgements-raw",
            "every judgement with all that is known",
            raw.judgements_raw,
            raw.raw_columns,
            keeps="all",
        ),
        Format("pairs", "preference pairs of the loop", raw.pairs, None),
        Format("judgements", "judgements of the loop", raw.judgements, None),
    )
}
"""Default first."""


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError."""
    if name not in FORMATS:
        raise InputError(f"no export format {name!r}; choose {', '.join(FORMATS)}")
    return FORMATS[name]
