"""How well a policy still models text that nobody asked it for: the mean loss of a token.

What it was fine-tuned or reinforced for is paid for here (the alignment tax of arXiv:2203.02155). Knows nothing about where
texts come from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.batches import TokenGroup
from prefloop.config import EvaluateSection, RuntimeSection
from prefloop.forward import LogpsModule, all_token_logps
from prefloop.interfaces import InputError
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Text
from prefloop.statistics import clustered_interval


def text_loss(
    texts: Sequence[Text], *, policy: Path, max_tokens: int, options: EvaluateSection, runtime: RuntimeSection
) -> dict[str, Any]:
    """Mean negative log-probability of a token of the texts, the terminator included, in nats, and how many were cut.

    The interval resamples texts, whose tokens are not independent. Raises InputError where there is no token to predict.
    """
    codec = load_codec(policy)
    rows = [codec.text_ids(one.text) for one in texts]
    groups = [TokenGroup(tuple(ids[:1]), (tuple(ids[1:max_tokens]),)) for ids in rows if len(ids) > 1]
    module = LogpsModule(load_policy(policy, runtime), pad_id=codec.pad_id, runtime=runtime)
    losses = [(-logps).tolist() for (logps,) in all_token_logps(module, groups, runtime)]
    mean = clustered_interval(
        [loss for one in losses for loss in one],
        [place for place, one in enumerate(losses) for _ in one],
        confidence=options.confidence,
        resamples=options.resamples,
    )
    if mean is None:
        raise InputError("evaluate.text: every text is empty")
    return {"text_loss": mean, "texts": len(groups), "texts_cut": sum(len(ids) > max_tokens for ids in rows)}
