"""Which engine a config section means. Imports only the one that is asked for."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prefloop.batches import Codec
from prefloop.config import GenerateSection, MctsEngine, PolicyEngine, RuntimeSection
from prefloop.generate.groups import Author, PolicyGenerator
from prefloop.generate.mcts import TreeGenerator, one_at_a_time
from prefloop.generate.sampling import Sampler
from prefloop.interfaces import Scorer
from prefloop.modeling import Dtype, in_dtype, load_codec, load_policy, settle


@contextlib.contextmanager
def policy_generator(
    folder: Path,
    engine: PolicyEngine,
    options: GenerateSection,
    *,
    seed: int,
    version: int,
    runtime: RuntimeSection,
    dtype: Dtype,
) -> Iterator[PolicyGenerator]:
    """A generator of the policy in a model folder; what the engine holds is given back at the end."""
    settle(runtime)
    codec = load_codec(folder)
    with _sampler(folder, codec, engine, options, seed=seed, runtime=runtime, dtype=dtype) as sampler:
        author = Author(folder.parent.name, version)
        yield PolicyGenerator(sampler, codec, options, seed=seed, author=author)


@contextlib.contextmanager
def tree_generator(
    folder: Path,
    engine: MctsEngine,
    options: GenerateSection,
    scorer: Scorer,
    *,
    seed: int,
    version: int,
    runtime: RuntimeSection,
    dtype: Dtype,
) -> Iterator[TreeGenerator]:
    """A generator that searches with the engine below it, by the values of a scorer."""
    below = one_at_a_time(options)
    with policy_generator(
        folder, engine.engine, below, seed=seed, version=version, runtime=runtime, dtype=dtype
    ) as plain:
        yield TreeGenerator(plain, scorer, engine, options.num_completions)


@contextlib.contextmanager
def _sampler(
    folder: Path,
    codec: Codec,
    engine: PolicyEngine,
    options: GenerateSection,
    *,
    seed: int,
    runtime: RuntimeSection,
    dtype: Dtype,
) -> Iterator[Sampler]:
    match engine.kind:
        case "hf" if runtime.num_processes > 1:
            from prefloop.generate.workers import workers

            with workers(folder, codec, options, seed=seed, runtime=runtime, dtype=dtype) as sampler:
                yield sampler
        case "hf":
            from prefloop.generate.hf import HfSampler

            model = in_dtype(load_policy(folder, runtime), dtype)
            yield HfSampler(model, codec, options, seed=seed, runtime=runtime)
        case "remote":
            from prefloop.generate.remote import remote_sampler

            with remote_sampler(folder, codec, engine, options, seed=seed, dtype=dtype) as sampler:
                yield sampler
        case "vllm":
            from prefloop.generate.vllm import vllm_sampler

            with vllm_sampler(
                folder, codec, engine, options, seed=seed, runtime=runtime, dtype=dtype
            ) as sampler:
                yield sampler
