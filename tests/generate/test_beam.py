"""Beam search, against transformers' own and against looking at every completion there is."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from prefloop import tales
from prefloop.config import GenerateSection
from prefloop.forward import LogpsModule
from prefloop.generate.batch import Drawn, Task
from prefloop.generate.beam import BeamBatch
from prefloop.generate.groups import Author, PolicyGenerator
from prefloop.generate.hf import hf_generator
from prefloop.interfaces import InputError
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Group, Message, Prompt
from prefloop.trust import compare_with_trainer

PROMPTS = tales.prompts()[:7]
BEAMS, NEW_TOKENS = 4, 10
ENDS_OFTEN = 1.5
"""Added to the terminator's logit, so that some beams of a random model end and others do not."""


def generator(tiny_model, runtime, *, model=None, seed=0, **options) -> PolicyGenerator:
    options = {"num_completions": BEAMS, "max_new_tokens": NEW_TOKENS, "search": "beam", **options}
    return hf_generator(
        model or ending_model(tiny_model, runtime),
        load_codec(tiny_model),
        GenerateSection(**options),
        seed=seed,
        author=Author("policy-test", 0),
        runtime=runtime,
    )


def ending_model(tiny_model, runtime):
    """A model that likes to end."""
    model = load_policy(tiny_model, runtime)
    bias = torch.zeros(model.lm_head.weight.shape[0])
    bias[load_codec(tiny_model).terminator_id] = ENDS_OFTEN
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def found(groups: Sequence[Group]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group.completions] for group in groups]


def by_transformers(model, codec, prompt: Prompt, *, stops: list[int], **options) -> list[tuple[int, ...]]:
    """The beams of `generate`, without what fills them up."""
    ids = torch.tensor([codec.prompt_ids(prompt.messages)])
    rows = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stops,
        pad_token_id=codec.pad_id,
        **options,
    )[:, ids.shape[1] :].tolist()
    ends = [next((place for place, token in enumerate(row) if token in stops), len(row)) for row in rows]
    return [tuple(row[: end + 1]) for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_are_those_of_transformers_generate(tiny_model, runtime, share, length_penalty):
    codec, stock = load_codec(tiny_model), ending_model(tiny_model, runtime)
    runtime = runtime.model_copy(update={"share_prompts": share, "generation_rows": 3 * BEAMS})
    search = {"kind": "beam", "length_penalty": length_penalty}
    groups = list(generator(tiny_model, runtime, search=search).generate(PROMPTS))
    stops = [codec.terminator_id]
    for prompt, beams in zip(PROMPTS, found(groups), strict=True):
        assert beams == by_transformers(stock, codec, prompt, stops=stops, length_penalty=length_penalty)
    reasons = {one.finish_reason for group in groups for one in group.completions}
    assert "stop" in reasons
    if length_penalty:
        assert "length" in reasons
    for group in groups:
        for one in group.completions:
            assert (one.token_ids[-1] == codec.terminator_id) == (one.finish_reason == "stop")


def test_a_stop_token_ends_a_beam_as_in_transformers_generate(tiny_model, runtime):
    codec, stock = load_codec(tiny_model), ending_model(tiny_model, runtime)
    (free,) = generator(tiny_model, runtime).generate(PROMPTS[:1])
    token = max((one.token_ids for one in free.completions), key=len)[2]
    name = codec.tokenizer.convert_ids_to_tokens(token)
    groups = generator(tiny_model, runtime, stop_tokens=[name]).generate(PROMPTS)
    for prompt, beams in zip(PROMPTS, found(list(groups)), strict=True):
        assert beams == by_transformers(stock, codec, prompt, stops=[codec.terminator_id, token])


def test_a_string_ends_a_beam_and_stays_in_it(tiny_model, runtime):
    codec = load_codec(tiny_model)
    (free,) = generator(tiny_model, runtime).generate(PROMPTS[:1])
    string = codec.decode(max((one.token_ids for one in free.completions), key=len)[:2])
    (group,) = generator(tiny_model, runtime, stop=[string]).generate(PROMPTS[:1])
    stopped = [one for one in group.completions if string in one.text]
    assert stopped
    assert {one.finish_reason for one in stopped} == {"stop"}
    assert all(string not in codec.decode(one.token_ids[:-1]) for one in stopped)


def test_one_beam_is_the_greedy_completion(tiny_model, runtime):
    beams = generator(tiny_model, runtime, num_completions=1).generate(PROMPTS)
    greedy = generator(tiny_model, runtime, num_completions=1, search=None, temperature=0).generate(PROMPTS)
    assert found(list(beams)) == found(list(greedy))


@pytest.mark.parametrize("rows", [BEAMS, 2 * BEAMS, 64])
def test_beams_depend_neither_on_the_seed_nor_on_who_shares_the_batch(tiny_model, runtime, rows):
    long = Prompt.of((Message(role="user", content="Tell a tale of Ada the fox. " * 200),))
    expected = found(list(generator(tiny_model, runtime).generate(PROMPTS)))
    runtime = runtime.model_copy(update={"generation_rows": rows})
    groups = list(generator(tiny_model, runtime, seed=1).generate([*PROMPTS[:2], long, *PROMPTS[2:]]))
    assert [group.prompt for group in groups] == [*PROMPTS[:2], long, *PROMPTS[2:]]
    assert found(groups) == [*expected[:2], [], *expected[2:]]


def test_beams_are_different_and_no_samples_of_the_policy(tiny_model, runtime):
    for group in generator(tiny_model, runtime).generate(PROMPTS):
        assert len({one.token_ids for one in group.completions}) == BEAMS
        for one in group.completions:
            assert one.sampling.search == "beam"
            assert not one.sampling.is_plain
            assert one.sampled_logps is None


def test_log_probabilities_of_beams_are_those_that_training_computes(tiny_model, runtime):
    codec = load_codec(tiny_model)
    groups = list(generator(tiny_model, runtime, model=load_policy(tiny_model, runtime)).generate(PROMPTS))
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=codec.pad_id, runtime=runtime)
    assert all(len(one.token_logps) == len(one.token_ids) for group in groups for one in group.completions)
    assert compare_with_trainer(groups, module, codec, runtime, dtype="float32") < 1e-4
    for group in groups:
        means = [math.fsum(one.token_logps) / len(one.token_logps) for one in group.completions]
        assert means == sorted(means, reverse=True)


# --- a language of few words -----------------------------------------------------------------------------------------

STOP, WORDS = 0, 4


class TableDecoder:
    """Logits that follow from the tokens before, with a slot for every prompt and nothing else."""

    def __init__(self, table, copies: int) -> None:
        self.table = table
        self.copies = copies
        self.texts: dict[int, tuple[int, ...]] = {}

    def enter(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        for slot in slots:
            self.texts |= {slot * self.copies + copy: () for copy in range(self.copies)}
        return torch.stack([self.table(()) for _ in prompts])

    def rearrange(self, rows: Tensor, sources: Tensor) -> None:
        self.texts |= {
            row: self.texts[source] for row, source in zip(rows.tolist(), sources.tolist(), strict=True)
        }

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        self.texts |= {
            row: (*self.texts[row], token) for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)
        }
        return torch.stack([self.table(self.texts[row]) for row in rows.tolist()])


def search(table, num_beams: int, *, budget: int, length_penalty: float = 0.0) -> list[Drawn]:
    batch = BeamBatch(
        TableDecoder(table, num_beams), 1, num_beams, num_stops=1, length_penalty=length_penalty
    )
    nothing = torch.empty(0)
    drawn = tuple(Drawn() for _ in range(num_beams))
    batch.enter([Task(0, 0, [1], budget, lambda ids: ids[-1] == STOP, nothing, nothing, drawn)])
    while not batch.is_empty:
        ended = batch.step()
    assert [task.drawn for task in ended] == [drawn]
    return list(drawn)


def random_table(ids: tuple[int, ...]) -> Tensor:
    seed = sum((token + 1) * 10**place for place, token in enumerate(ids))
    return 2 * torch.randn(WORDS, generator=torch.Generator().manual_seed(seed))


def test_wide_beams_find_the_best_of_all_completions_there_are():
    budget = 3
    texts = [
        ids
        for length in range(1, budget + 1)
        for ids in itertools.product(range(WORDS), repeat=length)
        if STOP not in ids[:-1] and (ids[-1] == STOP or length == budget)
    ]
    assert len(texts) == 1 + 3 + 9 * 4

    def logp(ids: tuple[int, ...]) -> float:
        return sum(
            float(random_table(ids[:place]).double().log_softmax(-1)[token])
            for place, token in enumerate(ids)
        )

    best = sorted(texts, key=logp, reverse=True)[:12]
    assert {len(one) for one in best} == {1, 2, 3}
    beams = search(random_table, 12, budget=budget)
    assert [tuple(one.token_ids) for one in beams] == best
    for one in beams:
        assert sum(one.token_logps) == pytest.approx(logp(tuple(one.token_ids)), abs=1e-5)


def test_two_beams_find_what_the_first_step_hides():
    """1 looks better than 2 at first; but what follows 1 is even, and after 2 comes 3 for sure."""
    follows = {(): [0.0, 0.6, 0.4, 0.0], (1,): [0.0, 0.5, 0.5, 0.0], (2,): [0.0, 0.0, 0.0, 1.0]}

    def table(ids: tuple[int, ...]) -> Tensor:
        return torch.tensor(follows[ids]).log()

    (greedy,) = search(table, 1, budget=2)
    assert sum(greedy.token_logps) == pytest.approx(math.log(0.6 * 0.5))
    best, second = search(table, 2, budget=2)
    assert best.token_ids == [2, 3]
    assert sum(best.token_logps) == pytest.approx(math.log(0.4))
    assert second.token_ids[0] == 1


@pytest.mark.parametrize(("length_penalty", "first"), [(0.0, [0]), (1.0, [1, 1, 0])])
def test_the_length_penalty_decides_between_short_and_long(length_penalty, first):
    """Ending at once has probability 0.4; the three tokens have 0.6 * 0.6 * 0.9 = 0.324, but 0.69 each in the mean."""
    follows = {(): [0.4, 0.6], (1,): [0.4, 0.6], (1, 1): [0.9, 0.1]}

    def table(ids: tuple[int, ...]) -> Tensor:
        return torch.tensor(follows[ids]).log()

    beams = search(table, 2, budget=3, length_penalty=length_penalty)
    assert beams[0].token_ids == first


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "tokens", "message"),
    [
        (3, "auto", r"runtime.generation_rows = 3: the 4 beams of a prompt run side by side"),
        (
            64,
            159,
            r"runtime.generation_tokens: the 4 beams of a prompt may take 160 tokens, but 159 are held",
        ),
    ],
)
def test_beams_that_do_not_fit_side_by_side_are_refused(tiny_model, runtime, rows, tokens, message):
    runtime = runtime.model_copy(update={"generation_rows": rows, "generation_tokens": tokens})
    with pytest.raises(InputError, match=message):
        list(generator(tiny_model, runtime).generate(PROMPTS))


def test_more_beams_than_tokens_are_refused(tiny_model, runtime):
    runtime = runtime.model_copy(update={"generation_rows": 100_000})
    with pytest.raises(InputError, match=r"generate.num_completions = 99999: more beams than the \d+ tokens"):
        list(generator(tiny_model, runtime, num_completions=99_999).generate(PROMPTS[:1]))
