"""Rules in words, put to a model that says how likely an answer breaks each of them (arXiv:2209.14375).

The dialogue with its answer is the shared prompt and the rules are its completions, so that K rules cost one dialogue.
"""

from collections.abc import Sequence

from prefloop.batches import Codec, TokenGroup
from prefloop.records import Prompt

RULE_FORMAT = "\n\nRule: {rule}"


def rule_group(codec: Codec, prompt: Prompt, answer: Sequence[int], rules: Sequence[str]) -> TokenGroup:
    """The dialogue up to the end of the answer, and each rule after it; the verdict is read at the terminator."""
    dialogue = (*codec.prompt_ids(prompt.messages), *answer)
    written = (codec.plain_ids(RULE_FORMAT.format(rule=one)) for one in rules)
    return TokenGroup(dialogue, tuple((*ids, codec.terminator_id) for ids in written))
