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
"""Of a token's log-probability in float32; in bfloat16 the difference is only reported."""
GROUPS_CHECKED = 8


def compare_with_trainer(
    groups: Sequence[Group], module: LogpsModule, codec: Codec, runtime: RuntimeSection, *, dtype: Dtype
) -> float | None:
    """The largest difference of a token's log-probability in the first few groups; None where no engine wrote any.

    Raises PrefloopError with the first token whose difference is beyond the tolerance of float32.
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
    largest = None
    for group, rows in zip(checked, trained, strict=True):
        for completion, logps in zip(group.completions, rows, strict=True):
            gaps = (torch.tensor(completion.token_logps) - logps).abs()
            largest = max(largest or 0.0, float(gaps.max()))
            if dtype == "float32" and largest > TOLERANCE:
                place = int((gaps > TOLERANCE).nonzero()[0])
                assert completion.token_ids is not None and completion.token_logps is not None
                token = codec.tokenizer.convert_ids_to_tokens(completion.token_ids[place])
                raise PrefloopError(
                    f"prompt {group.prompt.id}, completion {completion.id}, token {place} ({token!r}): the engine says its "
                    f"log-probability is {completion.token_logps[place]:.6f}, training computes {float(logps[place]):.6f}; "
                    "the engine runs other weights or reads other tokens than training will. Nothing was kept"
                )
    return None if largest is None else round(largest, 8)
