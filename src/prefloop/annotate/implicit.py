"""The reward that a policy implies: how much likelier it makes a completion than the policy that it started from does."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from prefloop.annotate.reward_model import Texts, finite
from prefloop.config import RuntimeSection
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Group, Score


class ImplicitScorer:
    """log pi(y|x) - log pi_ref(y|x), the reward of DPO up to its beta and a term of the prompt alone (arXiv:2305.18290).

    Scores of one prompt's completions compare; those of different prompts do not.
    """

    def __init__(self, policy: Path, reference: Path, *, name: str, runtime: RuntimeSection) -> None:
        self.name = name
        self.codec = load_codec(policy)
        self.models = tuple(load_policy(one, runtime) for one in (policy, reference))
        self._texts = Texts(self.codec, same_tokens=False)
        self._modules = [LogpsModule(one, pad_id=self.codec.pad_id, runtime=runtime) for one in self.models]
        self._runtime = runtime

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order."""
        together = list(groups)
        tokens = [self._texts.group(one) for one in together]
        ours, theirs = (all_sequence_logps(one, tokens, self._runtime) for one in self._modules)
        for group, new, old in zip(together, ours, theirs, strict=True):
            for completion, after, before in zip(group.completions, new, old, strict=True):
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=finite(after - before, self.name, group.prompt),
                    annotator=self.name,
                    labels=0,
                )
