"""Scores from a scalar reward model, through its own chat template."""

from collections.abc import Iterable, Iterator

from transformers import PreTrainedModel

from prefloop.batches import Codec, TokenGroup
from prefloop.config import RuntimeSection
from prefloop.forward import ScoresModule, all_scores
from prefloop.records import Group, Score


class RewardModelScorer:
    """Scores every completion with the raw value of the scalar head.

    With `same_tokens` the sampler's token ids are scored as they are; otherwise the text is tokenised by the reward
    model's own tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        name: str,
        same_tokens: bool,
        labels: int,
        runtime: RuntimeSection,
    ) -> None:
        self.module = ScoresModule(model, pad_id=codec.pad_id, runtime=runtime)
        self.codec = codec
        self.name = name
        self.same_tokens = same_tokens
        self.labels = labels
        self.runtime = runtime

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order; all groups given share batches."""
        together = list(groups)
        scores = all_scores(self.module, [self._tokens(group) for group in together], self.runtime)
        for group, values in zip(together, scores, strict=True):
            for completion, value in zip(group.completions, values, strict=True):
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=value,
                    annotator=self.name,
                    labels=self.labels,
                )

    def _tokens(self, group: Group) -> TokenGroup:
        messages = group.prompt.messages
        completions = (
            self.codec.completion_ids(messages, one)
            if self.same_tokens
            else self.codec.answer_ids(messages, one.text)
            for one in group.completions
        )
        return TokenGroup(tuple(self.codec.prompt_ids(messages)), tuple(map(tuple, completions)))
