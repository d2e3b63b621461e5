"""Real vLLM on tiny models; the marked tests share one vLLM process where they can."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from prefloop import tales
from prefloop.config import GenerateSection, RuntimeSection, TemperatureShare, VllmEngine
from prefloop.forward import LogpsModule
from prefloop.generate import vllm, vllm_process
from prefloop.generate.choose import policy_generator
from prefloop.generate.sampling import Request, Stops
from prefloop.interfaces import InputError, PrefloopError
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Message, Prompt
from prefloop.store import read_json
from prefloop.trust import TOLERANCE, compare_with_trainer

RUNTIME = RuntimeSection(device="cpu", threads=1, generation_rows=16)
KEEP = VllmEngine(kind="vllm", keep=True)
PROMPTS = tales.prompts()[:6]


def needs_vllm(test):
    """Marks a test that runs vLLM."""
    missing = importlib.util.find_spec("vllm") is None
    skip = pytest.mark.skipif(missing, reason="vLLM is not installed; `make test-vllm` brings it")
    return pytest.mark.vllm(pytest.mark.slow(skip(test)))


def options(**changes) -> GenerateSection:
    return GenerateSection(
        **{"num_completions": 3, "max_new_tokens": 24, "max_prompt_length": 10_000, **changes}
    )


def sampling(folder: Path, given: GenerateSection, *, engine=KEEP, seed=0, dtype="float32", runtime=RUNTIME):
    return policy_generator(folder, engine, given, seed=seed, version=0, runtime=runtime, dtype=dtype)


def sampled(folder: Path, given: GenerateSection, prompts=PROMPTS, **changes):
    with sampling(folder, given, **changes) as generator:
        return list(generator.generate(prompts))


def gap(folder: Path, groups) -> float | None:
    module = LogpsModule(load_policy(folder, RUNTIME), pad_id=0, runtime=RUNTIME)
    return compare_with_trainer(groups, module, load_codec(folder), RUNTIME, dtype="float32")


def tokens(groups) -> list[tuple[int, ...]]:
    return [one.token_ids for group in groups for one in group.completions]


def children() -> list[Any]:
    """All processes below this one that run something; multiprocessing keeps one that only watches."""
    import psutil

    return [
        one
        for one in psutil.Process().children(recursive=True)
        if one.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(one.cmdline())
    ]


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    before = children()  # of other tests of the same worker, such as a browser
    yield
    vllm.end_kept()
    assert not [one for one in children() if one not in before]


def changed(folder: Path, to: Path, *, tied: bool, seed: int, **shape: int) -> Path:
    """Another policy of the same shape: a random Llama, wide enough that its likely tokens differ."""
    config = AutoConfig.from_pretrained(folder)
    config.update({"tie_word_embeddings": tied, "initializer_range": 0.2, **shape})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(to)
    load_codec(folder).tokenizer.save_pretrained(to)
    return to


@pytest.fixture(scope="module")
def tied(tiny_model, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("tied")
    return [changed(tiny_model, root / str(seed) / "model", tied=True, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def untied(tiny_model, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("untied")
    return [changed(tiny_model, root / str(seed) / "model", tied=False, seed=seed) for seed in range(3)]


# --- without vLLM ----------------------------------------------------------------------------------------------------


def sampler(tiny_model, **changes) -> vllm.VllmSampler:
    """One that is never asked."""
    return vllm.VllmSampler(
        None, load_codec(tiny_model), options(**changes), context=512, seed=3, runtime=RUNTIME
    )


SHARES = [TemperatureShare(count=2, temperature=0), TemperatureShare(count=3, temperature=0.7)]


def test_a_request_says_what_the_options_say_and_where_completions_end(tiny_model):
    one = sampler(
        tiny_model,
        num_completions=5,
        temperatures=SHARES,
        top_k=7,
        min_p=0.1,
        stop=["\n"],
        stop_tokens=["<|user|>"],
    )
    request = Request("a", PROMPTS[0], [5, 6], budget=9)
    greedy, drawn = (one.params(request, number, share) for number, share in enumerate(SHARES))
    assert (greedy["n"], greedy["temperature"]) == (1, 0)
    assert (drawn["n"], drawn["temperature"]) == (3, 0.7)
    assert {name: drawn[name] for name in ("top_p", "top_k", "min_p", "max_tokens", "stop", "detokenize")} == {
        "top_p": 1.0, "top_k": 7, "min_p": 0.1, "max_tokens": 9, "stop": ["\n"], "detokenize": True,
    }  # fmt: skip
    tokenizer = load_codec(tiny_model).tokenizer
    assert drawn["stop_token_ids"] == sorted(
        [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")]
    )


def test_seeds_are_as_far_apart_as_prompts_and_shares_and_fit_into_64_bits():
    seeds = {
        vllm.seed_of(seed, name, share) for seed in (0, 1) for name in ("a", "b", "c") for share in (0, 1)
    }
    assert len(seeds) == 12
    assert all(0 <= one < 1 << 62 for one in seeds)
    assert min(abs(a - b) for a in seeds for b in seeds if a != b) > 1 << 20  # vLLM adds the place in a share


class Answers:
    """Stands for the process: ends requests in another order than they were asked."""

    def sample(self, asks):
        for place in reversed(range(len(asks))):
            number = asks[place].params["n"]
            yield (
                place,
                tuple(vllm_process.Answer((place, copy), (-1.0, -2.0), copy == 1) for copy in range(number)),
            )


def test_completions_come_in_the_order_of_requests_and_shares_whoever_ends_first(tiny_model):
    one = sampler(tiny_model, num_completions=5, temperatures=SHARES)
    one._process = Answers()
    requests = [Request(name, PROMPTS[0], [5], budget=9) for name in "ab"]
    first, second = one.sample(requests)
    # a greedy share is asked for once; the second request's asks are number 2 and 3
    assert [completion.token_ids for completion in first] == [(0, 0), (0, 0), (1, 0), (1, 1), (1, 2)]
    assert [completion.token_ids for completion in second] == [(2, 0), (2, 0), (3, 0), (3, 1), (3, 2)]
    assert [completion.finish_reason for completion in second] == [
        "length",
        "length",
        "length",
        "stop",
        "length",
    ]
    assert {completion.token_logps for completion in first} == {(-1.0, -2.0)}
    assert {completion.sampled_logps for completion in first} == {None}


def test_a_missing_vllm_is_named_with_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vLLM is not installed; .*pip install 'prefloop\[vllm\]'"):
        sampled(tiny_model, options())


def test_the_cache_holds_what_may_run_side_by_side_and_not_more(tiny_model):
    """Keys and values of the tiny model: 2 x layers x heads x width numbers of 4 bytes a token."""
    shape = AutoConfig.from_pretrained(tiny_model)
    a_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * 4
    given = options(max_prompt_length=100)
    start = vllm.start_for(tiny_model, KEEP, given, context=512, runtime=RUNTIME, dtype="float32")
    assert start.max_length == 124
    assert start.cache_bytes == (16 * 128 + 128) * a_token
    few = RUNTIME.model_copy(update={"generation_tokens": 300})
    start = vllm.start_for(tiny_model, KEEP, given, context=512, runtime=few, dtype="bfloat16")
    assert start.cache_bytes == (300 + 128) * a_token // 2


def test_policies_of_another_shape_do_not_follow_one_another(tiny_model, untied):
    start = vllm.start_for(tiny_model, KEEP, options(), context=512, runtime=RUNTIME, dtype="float32")
    assert start != vllm.start_for(untied[0], KEEP, options(), context=512, runtime=RUNTIME, dtype="float32")


# --- with vLLM -------------------------------------------------------------------------------------------------------


@needs_vllm
def test_samples_agree_with_training_and_end_as_the_contract_says(tied):
    """Two temperatures, a cut, a stop string and a stop token."""
    shares = [TemperatureShare(count=4, temperature=1.0), TemperatureShare(count=4, temperature=0.7)]
    given = options(num_completions=8, temperatures=shares, top_k=40, stop=["he"], stop_tokens=["<|user|>"])
    groups = sampled(tied[0], given)
    assert gap(tied[0], groups) < TOLERANCE
    stops = Stops(load_codec(tied[0]), given)
    reasons = set()
    for completion in (one for group in groups for one in group.completions):
        ids = completion.token_ids
        ends = [place for place in range(1, len(ids) + 1) if stops(ids[:place])]
        assert (ends, completion.finish_reason) in (([len(ids)], "stop"), ([], "length"))
        assert len(ids) == 24 or completion.finish_reason == "stop"
        assert completion.sampled_logps is None
        reasons.add((completion.finish_reason, ids[-1] in stops.token_ids))
    assert {("stop", False), ("length", False)} <= reasons


@needs_vllm
def test_greedy_completions_are_those_of_transformers(tied):
    groups = sampled(tied[0], options(temperature=0), PROMPTS[:3])
    codec, model = load_codec(tied[0]), AutoModelForCausalLM.from_pretrained(tied[0])
    for group in groups:
        ids = torch.tensor([codec.prompt_ids(group.prompt.messages)])
        expected = model.generate(ids, do_sample=False, max_new_tokens=24, pad_token_id=codec.pad_id)
        assert {one.token_ids for one in group.completions} == {tuple(expected[0, ids.shape[1] :].tolist())}


@needs_vllm
def test_prompts_that_are_too_long_are_left_out_and_those_that_just_fit_are_not(tied):
    context = AutoConfig.from_pretrained(tied[0]).max_position_embeddings
    codec = load_codec(tied[0])
    words = "a"
    while len(codec.prompt_ids((Message(role="user", content=words + " a"),))) < context:
        words += " a"
    long, longer = (Prompt.of((Message(role="user", content=text),)) for text in (words, words + " a"))
    assert len(codec.prompt_ids(long.messages)) == context - 1
    groups = sampled(tied[0], options(), [longer, long, PROMPTS[0]])
    assert [[len(one.token_ids) for one in group.completions] for group in groups[:2]] == [[], [1, 1, 1]]
    assert len(groups[2].completions) == 3


@needs_vllm
@pytest.mark.parametrize("embeddings", ["tied", "untied"])
def test_every_new_policy_is_taken_whole_without_a_new_process(embeddings, request):
    """Log-probabilities of policy after policy are those of training, and the likely tokens those of transformers."""
    policies = request.getfixturevalue(embeddings)
    config = read_json(policies[0] / "config.json")
    assert config["tie_word_embeddings"] is (embeddings == "tied")
    processes, seen = set(), []
    for folder in [*policies, policies[0]]:
        groups = sampled(folder, options())
        assert gap(folder, groups) < TOLERANCE
        processes.add(id(next(iter(vllm._kept.values()))))
        seen.append(tokens(groups))
    assert len(processes) == 1
    assert seen[0] == seen[3]
    assert len({str(one) for one in seen}) == 3


@needs_vllm
def test_the_same_seed_and_chunk_give_the_same_tokens_whatever_was_sampled_before(tied):
    given = options()
    with sampling(tied[0], given) as generator:
        first = tokens(generator.generate(PROMPTS))
        tokens(generator.generate(tales.prompts()[6:12]))
        assert tokens(generator.generate(PROMPTS)) == first
    vllm.end_kept()
    assert tokens(sampled(tied[0], given)) == first
    assert tokens(sampled(tied[0], given, seed=1)) != first
    assert len(set(first)) == len(first)  # prompts and places have random numbers of their own


@needs_vllm
def test_a_process_that_is_killed_is_told_and_its_parent_goes_on(tied):
    given = options(num_completions=16, max_new_tokens=400)
    with (
        pytest.raises(PrefloopError, match="the vLLM process ended .killed, perhaps because memory ran out"),
        sampling(tied[0], given) as generator,
    ):
        found = generator.generate(tales.prompts()[:40])
        next(found)
        [process] = children()
        process.kill()
        with pytest.raises(PrefloopError, match="the vLLM process ended"):
            list(found)
        list(generator.generate(PROMPTS))  # and stays told
    assert not children()
    assert not vllm._kept


def serve_with_a_stale_head(*arguments):
    """A process whose workers reload as vLLM alone does."""
    vllm_process.PolicyWorker.take_policy = lambda self, folder: self.reload_weights(weights_path=folder)
    vllm_process.serve(*arguments)


@needs_vllm
def test_what_vllm_alone_forgets_of_tied_weights_is_caught_by_the_comparison(tied, monkeypatch):
    vllm.end_kept()
    monkeypatch.setattr(vllm_process, "serve", serve_with_a_stale_head)
    assert gap(tied[0], sampled(tied[0], options())) < TOLERANCE
    groups = sampled(tied[1], options())
    with pytest.raises(PrefloopError, match="token 0 .* the engine runs other weights"):
        gap(tied[1], groups)
    vllm.end_kept()


@needs_vllm
def test_memory_and_processes_are_given_back(tied):
    import psutil

    vllm.end_kept()
    this = psutil.Process()
    before = this.memory_info().rss
    with sampling(tied[0], options(), engine=VllmEngine(kind="vllm")) as generator:
        list(generator.generate(PROMPTS))
        assert sum(one.memory_info().rss for one in children()) > 300 << 20
    assert not children()
    assert this.memory_info().rss - before < 32 << 20
    assert "vllm" not in sys.modules


PARENT = """
import sys
from pathlib import Path
from prefloop import tales
from prefloop.config import GenerateSection, RuntimeSection, VllmEngine
from prefloop.generate.choose import policy_generator

if __name__ == "__main__":
    options = GenerateSection(num_completions=16, max_new_tokens=400)
    runtime = RuntimeSection(device="cpu", threads=1, generation_rows=16)
    with policy_generator(
        Path(sys.argv[1]), VllmEngine(kind="vllm", keep=True), options, seed=0, version=0, runtime=runtime, dtype="float32"
    ) as generator:
        next(generator.generate(tales.prompts()[:40]))
        print("sampling", flush=True)
        sys.stdin.read()
"""


@needs_vllm
def test_nothing_survives_a_parent_that_is_killed(tied, tmp_path):
    import psutil

    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, tied[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == "sampling\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@needs_vllm
def test_a_terminator_stays_in_the_completion_and_is_never_made_up(tiny_model, tmp_path):
    """All tokens are equally likely, so that the terminator comes once in several hundred."""
    folder = changed(tiny_model, tmp_path / "model", tied=False, seed=5)
    weights = load_file(folder / "model.safetensors")
    end = load_codec(folder).terminator_id
    weights["lm_head.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    groups = sampled(folder, options(num_completions=16, max_new_tokens=80))
    ended = [one for group in groups for one in group.completions if one.finish_reason == "stop"]
    cut = [one for group in groups for one in group.completions if one.finish_reason == "length"]
    assert len(ended) > 3 and len(cut) > 3
    assert all(one.token_ids.index(end) == len(one.token_ids) - 1 for one in ended)
    assert all(end not in one.token_ids and len(one.token_ids) == 80 for one in cut)


@needs_vllm
def test_what_vllm_cannot_run_is_told_in_its_own_words(tiny_model, tmp_path):
    """Attention heads of 8 numbers are too narrow for vLLM on a CPU."""
    folder = changed(tiny_model, tmp_path / "model", tied=True, seed=0, head_dim=8)
    with pytest.raises(PrefloopError, match="vLLM: .*head_dim=8"):
        sampled(folder, options())
