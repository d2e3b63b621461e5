"""Scores from a scalar reward model, through its own chat template."""

from collections.abc import Iterable, Iterator

from transformers import PreTrainedModel

from prefloop.batches import Codec, Row
from prefloop.config import RuntimeSection
from prefloop.modeling import all_scores
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
        self.model = model
        self.codec = codec
        self.name = name
        self.same_tokens = same_tokens
        self.labels = labels
        self.runtime = runtime

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order; all groups given share batches."""
        together = list(groups)
        rows = [row for group in together for row in self._rows(group)]
        values = iter(all_scores(self.model, rows, pad_id=self.codec.pad_id, runtime=self.runtime))
        for group in together:
            for completion in group.completions:
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=next(values),
                    annotator=self.name,
                    labels=self.labels,
                )

    def _rows(self, group: Group) -> list[Row]:
        prompt = tuple(self.codec.prompt_ids(group.prompt.messages))
        rows = []
        for completion in group.completions:
            if self.same_tokens:
                ids = self.codec.completion_ids(group.prompt.messages, completion)
            else:
                ids = self.codec.answer_ids(group.prompt.messages, completion.text)
            rows.append(Row(prompt, tuple(ids)))
        return rows
