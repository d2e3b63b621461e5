"""Tasks of lm-eval, which asks and scores; the policy's likelihoods are its own way, what it writes comes from our engine.

lm-eval is an extra and imported here only.
"""

import contextlib
import difflib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefloop.config import LmEvalSuite, RuntimeSection
from prefloop.interfaces import InputError
from prefloop.modeling import load_codec, load_policy
from prefloop.suites.questions import Row

MISSING = "lm_eval: lm-eval is not installed; pip install 'prefloop[lm-eval]'"
DEFAULT_TOKENS = 256
"""What lm-eval lets a model write where the task does not say."""
SAMPLE_KEYS = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
     "prompt_hash", "target_hash"}
)  # fmt: skip


class Ending(NamedTuple):
    """How texts are continued, and where they end."""

    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float


Continue = Callable[[Sequence[str], Ending], list[str]]
"""Continues texts as they are, without a chat template."""


def rows(
    suite: LmEvalSuite, policy: Path, model: str, runtime: RuntimeSection, continued: Continue
) -> Iterator[Row]:
    """What every document counted, then the results of each task. Raises InputError for tasks that are not there."""
    try:
        import lm_eval
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(MISSING) from error
    manager = TaskManager(include_path=suite.path)
    if unknown := [one for one in suite.tasks if one not in manager.all_tasks]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        raise InputError(
            f"lm_eval: no task {unknown[0]!r} in the harness or in {suite.path or 'a folder of yours'}; "
            + (f"did you mean {', '.join(near)}?" if near else "name their folder in `path`")
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bars would cross ours
            found: Any = simple_evaluate(
                model=_policy_lm(policy, runtime, continued),
                tasks=list(suite.tasks),
                num_fewshot=suite.num_fewshot,
                limit=suite.limit,
                task_manager=manager,
                apply_chat_template=suite.chat,
                fewshot_as_multiturn=suite.chat,
                bootstrap_iters=0,
            )
    except (ValueError, OSError) as error:  # a task that runs code, data that are not there
        raise InputError(f"lm_eval: {error}") from error
    for task, samples in found["samples"].items():
        for one in samples:
            values = {name: value for name, value in one.items() if name not in SAMPLE_KEYS}
            yield {
                "model": model,
                "task": task,
                "doc_id": one["doc_id"],
                "filter": one["filter"],
                "values": values,
                "said": _first(one["filtered_resps"]),
            }
        yield {
            "model": model,
            "task": task,
            "results": _numbers(found["results"][task]),
            "about": {
                "version": found["versions"].get(task),
                "fewshot": found["n-shot"].get(task, 0),
                "chat": suite.chat,
                "documents": found["n-samples"][task]["effective"],
                "lm-eval": lm_eval.__version__,
            },
        }


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in results.items()
        if "," in name and isinstance(value, int | float) and "_stderr," not in name
    }


def _first(responses: Any) -> str:
    while isinstance(responses, list | tuple) and responses:
        responses = responses[0]
    return str(responses)


def _policy_lm(policy: Path, runtime: RuntimeSection, continued: Continue) -> Any:
    """The policy as lm-eval asks models."""
    from lm_eval.models import huggingface

    base: Any = huggingface.HFLM  # the decorator that registers it hides its type

    class PolicyLM(base):
        """lm-eval's own likelihoods over the policy's weights, our engine's texts."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            endings = [_ending(one.args[1]) for one in requests]
            texts: dict[int, str] = {}
            for ending in dict.fromkeys(endings):
                places = [place for place, one in enumerate(endings) if one == ending]
                said = continued([requests[place].args[0] for place in places], ending)
                texts |= dict(zip(places, (_cut(one, ending.stop) for one in said), strict=True))
            return [texts[place] for place in range(len(requests))]

    codec = load_codec(policy)
    network = load_policy(policy, runtime)
    return PolicyLM(pretrained=network, tokenizer=codec.tokenizer, backend="causal", batch_size=8)


def _ending(options: Mapping[str, Any]) -> Ending:
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
    tokens = int(options.get("max_gen_toks") or DEFAULT_TOKENS)
    return Ending(tuple(one for one in stop if one), tokens, temperature)


def _cut(text: str, stop: Sequence[str]) -> str:
    """Up to the first of the strings that end it, which are no part of it."""
    for one in stop:
        text = text.split(one)[0]
    return text
