"""Comparisons by a language model that answers A or B, averaged over both orders."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from transformers import PreTrainedModel

from prefloop.annotate.reward_model import finite
from prefloop.batches import Codec
from prefloop.config import PAIRWISE_TEMPLATE, PairwiseAnnotator, RuntimeSection
from prefloop.forward import LogpsModule
from prefloop.interfaces import InputError, PairTask
from prefloop.modeling import load_policy, load_tokenizer, reward_notes
from prefloop.records import Comparison, Refusal
from prefloop.reward.questions import Questions, over_both_orders, p_shown

TASKS_AT_ONCE = 64
LABELS_PER_TASK = 2
"""Both orders are asked."""
TOO_LONG = "too_long"


class PairwiseComparer:
    """A causal language model that says which of two completions is better."""

    def __init__(
        self, model: PreTrainedModel, codec: Codec, *, name: str, template: str, runtime: RuntimeSection
    ) -> None:
        self.name = name
        self.module = LogpsModule(model, pad_id=codec.pad_id, runtime=runtime)
        self.runtime = runtime
        self._questions = Questions(codec, template=template, name=name)
        self._max_length: int | None = getattr(model.config, "max_position_embeddings", None)

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields one row a task, in order. Texts that do not fit into the model are refused, never cut."""
        remaining = iter(tasks)
        while chunk := list(islice(remaining, TASKS_AT_ONCE)):
            yield from self._compare(chunk)

    def p_shown(self, tasks: Sequence[PairTask]) -> list[tuple[float, float] | None]:
        """P(the one shown first is better) for a shown first, then for b; None where a task does not fit the model."""
        return p_shown(self.module, self._questions, tasks, self.runtime, max_length=self._max_length)

    def _compare(self, tasks: Sequence[PairTask]) -> Iterator[Comparison | Refusal]:
        for task, shown in zip(tasks, self.p_shown(tasks), strict=True):
            if shown is None:
                yield Refusal(
                    prompt_id=task.prompt.id,
                    completion_ids=(task.a.id, task.b.id),
                    annotator=self.name,
                    reason=TOO_LONG,
                    labels=0,
                )
                continue
            yield Comparison(
                prompt_id=task.prompt.id,
                a=task.a.id,
                b=task.b.id,
                p_a=over_both_orders(*(finite(one, self.name, task.prompt) for one in shown)),
                annotator=self.name,
                presented="both",
                labels=LABELS_PER_TASK,
            )


def load_pairwise(
    options: PairwiseAnnotator, runtime: RuntimeSection, *, name: str | None = None
) -> PairwiseComparer:
    """The comparer of a model folder or hub name. Raises InputError for reward models and classifiers."""
    if options.model is None:
        raise InputError("annotator pairwise: name a model; the loop has none of its own that compares")
    model = load_policy(options.model, runtime)
    codec = Codec(load_tokenizer(options.model))
    template = options.template
    if template == "auto":
        template = reward_notes(model.config).get("template", PAIRWISE_TEMPLATE)
    return PairwiseComparer(
        model, codec, name=name or f"pairwise/{options.model}", template=template, runtime=runtime
    )
