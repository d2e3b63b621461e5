"""Whether the log-probabilities that an engine wrote down are those that training computes for the same tokens.

They differ where an engine runs other weights than it should, feeds other tokens, or puts them in other places: mistakes
that nothing else shows. Knows nothing about engines.
"""

from collections.abc import Sequence

import torch

from prefloop.batches import Codec, TokenGroup
from prefloop.config import RuntimeSection
from prefloop.forward import LogpsModule, all_token_logps
from prefloop.interfaces import PrefloopError
from prefloop.modeling import Dtype
from prefloop.records import Group

TOLERANCE = 1e-4
"""Of a token's log-probability in float32; in bfloat16 single differences are only reported."""
MEAN_TOLERANCE = 0.25
"""Of their mean where one side computes in bfloat16: rounding comes to a few hundredths, other weights to much more. Weights
that differ little are not found there."""
GROUPS_CHECKED = 8


def compare_with_trainer(
    groups: Sequence[Group],
    module: LogpsModule,
    codec: Codec,
    runtime: RuntimeSection,
    *,
    dtype: Dtype,
    engine_dtype: Dtype | None = None,
) -> float | None:
    """The largest difference of a token's log-probability in the first few groups; None where no engine wrote any.

    The engine computes in `engine_dtype`; left out, in `dtype`. Raises PrefloopError with the first token whose difference
    is beyond the tolerance where both are float32, and otherwise when the mean difference is beyond rounding.
    """
    checked = [one for one in groups if all(c.token_ids and c.token_logps for c in one.completions)]
    checked = checked[:GROUPS_CHECKED]
    tokens = [
        TokenGroup(
            tuple(codec.prompt_ids(group.prompt.messages)),
            tuple(one.token_ids or () for one in group.completions),
        )
        for group in checked
    ]
    with torch.autocast(module.model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        trained = all_token_logps(module, tokens, runtime)
    exact = dtype == "float32" and engine_dtype in (None, "float32")
    all_gaps: list[torch.Tensor] = []
    for group, rows in zip(checked, trained, strict=True):
        for completion, logps in zip(group.completions, rows, strict=True):
            gaps = (torch.tensor(completion.token_logps) - logps).abs()
            all_gaps.append(gaps)
            if exact and not gaps.max() <= TOLERANCE:
                place = int((~(gaps <= TOLERANCE)).nonzero()[0])
                assert completion.token_ids is not None and completion.token_logps is not None
                token = codec.tokenizer.convert_ids_to_tokens(completion.token_ids[place])
                raise PrefloopError(
                    f"prompt {group.prompt.id}, completion {completion.id}, token {place} ({token!r}): the engine says its "
                    f"log-probability is {completion.token_logps[place]:.6f}, training computes {float(logps[place]):.6f}; "
                    "the engine runs other weights or reads other tokens than training will, or computes less exactly. "
                    "Nothing was kept"
                )
    if not all_gaps:
        return None
    every = torch.cat(all_gaps)
    if not every.mean() <= MEAN_TOLERANCE:
        raise PrefloopError(
            f"the engine's log-probabilities of {len(checked)} groups differ by {float(every.mean()):.3f} on average from "
            f"those that training computes, which rounding to bfloat16 does not explain (at most {MEAN_TOLERANCE:g}); the "
            "engine runs other weights or reads other tokens than training will. Nothing was kept"
        )
    return round(float(every.max()), 8)
