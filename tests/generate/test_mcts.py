"""Tree search over a real engine and a real tokenizer, and over engines that answer what a test wants."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

from prefloop import tales
from prefloop.annotate.rules import RuleScorer
from prefloop.config import GenerateSection, RuleAnnotator
from prefloop.generate.groups import Author, PolicyGenerator
from prefloop.generate.hf import hf_generator
from prefloop.generate.mcts import TreeGenerator, one_at_a_time
from prefloop.generate.sampling import Request, Sampled
from prefloop.interfaces import InputError
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Group, Message, Prompt, Refusal, Score

PROMPTS = tales.prompts()[:5]
LENGTH = RuleScorer(RuleAnnotator(kind="rule", rule="length"))
AUTHOR = Author("policy-test", 3)


def options(**changes) -> GenerateSection:
    engine = {"kind": "mcts", "step": 4, "iterations": 3, "first_actions": 3, **changes.pop("engine", {})}
    return GenerateSection(**{"num_completions": 4, "max_new_tokens": 16, "engine": engine, **changes})


def searcher(tiny_model, runtime, *, rows=64, seed=0, scorer=LENGTH, **changes) -> TreeGenerator:
    """A search over the real engine."""
    section = options(**changes)
    plain = hf_generator(
        load_policy(tiny_model, runtime),
        load_codec(tiny_model),
        one_at_a_time(section),
        seed=seed,
        author=AUTHOR,
        runtime=runtime.model_copy(update={"generation_rows": rows}),
    )
    return TreeGenerator(plain, scorer, section.engine, section.num_completions)


class Scripted:
    """An engine that gives each request what a function says, and remembers what it was asked."""

    context = 256
    requests_per_chunk = 64

    def __init__(self, answer) -> None:
        self.answer = answer
        self.calls: list[list[Request]] = []

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Sampled, ...]]:
        self.calls.append(list(requests))
        for request in requests:
            yield (self.answer(request),)


def scripted(tiny_model, answer, *, scorer=LENGTH, **changes) -> tuple[TreeGenerator, Scripted]:
    section, engine = options(**changes), Scripted(answer)
    plain = PolicyGenerator(engine, load_codec(tiny_model), one_at_a_time(section), seed=0, author=AUTHOR)
    return TreeGenerator(plain, scorer, section.engine, section.num_completions), engine


def tokens(groups) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group.completions] for group in groups]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_every_prompt_gets_k_different_completions_in_order(tiny_model, runtime):
    groups = list(searcher(tiny_model, runtime).generate(PROMPTS))
    assert [group.prompt for group in groups] == PROMPTS
    for group in groups:
        assert len(group.completions) == len({one.text for one in group.completions}) == 4
        assert len({one.id for one in group.completions}) == 4
        assert all(one.policy == "policy-test" and one.policy_version == 3 for one in group.completions)


def test_log_probabilities_are_those_of_the_policy_by_a_plain_forward_pass(tiny_model, runtime):
    """Though a completion was drawn in several pieces, each after another prefix."""
    model, codec = load_policy(tiny_model, runtime), load_codec(tiny_model)
    for group in searcher(tiny_model, runtime, top_k=50, temperature=0.8).generate(PROMPTS[:3]):
        prompt = codec.prompt_ids(group.prompt.messages)
        for one in group.completions:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *one.token_ids]])).logits[0, len(prompt) - 1 : -1]
            at = torch.tensor(one.token_ids).unsqueeze(1)
            raw = logits.log_softmax(-1).gather(1, at).squeeze(1)
            assert one.token_logps == pytest.approx(raw.tolist(), abs=2e-5)
            shaped = (logits / 0.8).topk(50).values.logsumexp(-1)
            expected = (logits / 0.8).gather(1, at).squeeze(1) - shaped
            assert one.sampled_logps == pytest.approx(expected.tolist(), abs=2e-5)


def test_searched_completions_do_not_claim_to_be_samples_of_the_policy(tiny_model, runtime):
    (group,) = searcher(tiny_model, runtime).generate(PROMPTS[:1])
    for one in group.completions:
        assert one.sampling.search == "mcts"
        assert one.sampling.draws_plainly
        assert not one.sampling.is_plain
        assert one.sampled_logps is None


def test_a_completion_ends_as_the_engine_says_and_no_terminator_is_made_up(tiny_model, runtime):
    codec = load_codec(tiny_model)
    words = codec.plain_ids("Ada smiled. Ada slept.")

    def answer(request: Request) -> Sampled:
        ends = int(request.name.rpartition("/")[2]) % 2 == 0
        left = [*words, *words, *words][: request.budget]
        ids = (*left[:3], codec.terminator_id) if ends else tuple(left)
        return Sampled(ids, "stop" if ends else "length", (-1.0,) * len(ids))

    all_kept = {"num_completions": 12, "engine": {"step": 2, "iterations": 10}}
    generator, _ = scripted(tiny_model, answer, max_new_tokens=12, **all_kept)
    (group,) = generator.generate(PROMPTS[:1])
    for one in group.completions:
        if one.finish_reason == "stop":
            assert one.token_ids[-1] == codec.terminator_id
            assert one.token_ids.count(codec.terminator_id) == 1
        else:
            assert len(one.token_ids) == 12
            assert codec.terminator_id not in one.token_ids
    assert {one.finish_reason for one in group.completions} == {"stop", "length"}


def test_the_tree_holds_every_step_of_the_kept_completions(tiny_model, runtime):
    for group in searcher(tiny_model, runtime).generate(PROMPTS):
        nodes = group.tree.nodes
        assert group.tree.annotator == "rule/length"
        assert group.tree.committed[0] == 0
        assert nodes[group.tree.committed[-1]].ends
        for one, leaf in zip(group.completions, group.tree.leaves, strict=True):
            path, at = [], leaf
            while at is not None:
                path.insert(0, nodes[at])
                at = nodes[at].parent
            ids = tuple(token for node in path for token in node.token_ids)
            assert one.token_ids[: len(ids)] == ids
            assert one.text.startswith("".join(node.text for node in path))
            assert all(len(node.token_ids) >= 4 or node.ends for node in path[1:])
            assert all(b.start == a.start + len(a.token_ids) for a, b in itertools.pairwise(path))


def test_only_the_drawn_tokens_are_counted(tiny_model):
    generator, engine = scripted(
        tiny_model, lambda request: Sampled((300,) * request.budget, "length", (-1.0,) * request.budget)
    )
    (group,) = generator.generate(PROMPTS[:1])
    asked = [request for call in engine.calls for request in call]
    assert group.tree.num_drawn == len(asked)
    assert group.tree.num_tokens == sum(request.budget for request in asked)
    assert len(group.completions) == 1, "all say the same"


# --- how it asks -----------------------------------------------------------------------------------------------------


def test_the_engine_is_asked_to_go_on_from_the_prompt_and_the_steps_so_far(tiny_model):
    numbers = iter(range(300, 700))

    def answer(request: Request) -> Sampled:
        ids = tuple(next(numbers) for _ in range(request.budget))
        return Sampled(ids, "length", (-1.0,) * len(ids))

    generator, engine = scripted(tiny_model, answer, max_new_tokens=8, engine={"iterations": 2})
    list(generator.generate(PROMPTS[:1]))
    prompt = generator.codec.prompt_ids(PROMPTS[0].messages)
    first, second, *_ = engine.calls
    assert [(one.name, list(one.ids), one.budget) for one in first] == [
        (f"{PROMPTS[0].id}/{number}", prompt, 8) for number in range(3)
    ]
    (request,) = second
    assert (request.name, request.budget) == (f"{PROMPTS[0].id}/3", 4)
    # the first four tokens of one of the first three completions
    begun = list(request.ids)[len(prompt) :]
    assert list(request.ids)[: len(prompt)] == prompt
    assert begun in [list(range(300 + 8 * number, 304 + 8 * number)) for number in range(3)]


def test_the_trees_of_many_prompts_grow_in_the_same_batches(tiny_model):
    chance = torch.Generator().manual_seed(0)

    def answer(request: Request) -> Sampled:
        ids = tuple(torch.randint(300, 600, (request.budget,), generator=chance).tolist())
        return Sampled(ids, "length", (-1.0,) * len(ids))

    alone, engine = scripted(tiny_model, answer)
    list(alone.generate(PROMPTS[:1]))
    calls = len(engine.calls)
    together, engine = scripted(tiny_model, answer)
    list(together.generate(PROMPTS))
    assert [len(call) for call in engine.calls[:2]] == [15, 5]
    assert [[one.place for one in call] for call in engine.calls[:2]] == [list(range(15)), list(range(5))]
    assert len(engine.calls) < 2 * calls


def test_the_scorer_is_asked_once_a_round_about_whole_completions(tiny_model, runtime):
    class Noting:
        name = "noting"

        def __init__(self) -> None:
            self.rounds: list[list[Group]] = []

        def score(self, groups):
            self.rounds.append(list(groups))
            return LENGTH.score(self.rounds[-1])

    scorer = Noting()
    groups = list(searcher(tiny_model, runtime, scorer=scorer).generate(PROMPTS[:2]))
    seen = [one for some in scorer.rounds for group in some for one in group.completions]
    assert len(seen) == sum(group.tree.num_drawn for group in groups)
    assert len({one.id for one in seen}) == len(seen)
    assert all(one.finish_reason == "stop" or len(one.token_ids) == 16 for one in seen)
    assert [len(group.completions) for group in scorer.rounds[0]] == [3, 3]


def test_a_chunk_is_as_many_prompts_as_their_first_requests_fill(tiny_model):
    generator, _ = scripted(tiny_model, lambda request: None)
    assert generator.prompts_per_chunk == 64 // 3


# --- what it depends on ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_trees_and_another_does_not(tiny_model, runtime):
    once, again, other = (
        list(searcher(tiny_model, runtime, seed=seed).generate(PROMPTS)) for seed in (0, 0, 1)
    )
    assert once == again
    assert tokens(once) != tokens(other)


@pytest.mark.parametrize("rows", [2, 7])
def test_a_tree_does_not_depend_on_who_shares_the_batch(tiny_model, runtime, rows):
    together = list(searcher(tiny_model, runtime, rows=64).generate(PROMPTS))
    few = list(searcher(tiny_model, runtime, rows=rows).generate(PROMPTS))
    alone = [group for one in PROMPTS for group in searcher(tiny_model, runtime).generate([one])]
    for other in (few, alone):
        assert tokens(other) == tokens(together)
        assert [[one.visits for one in group.tree.nodes] for group in other] == [
            [one.visits for one in group.tree.nodes] for group in together
        ]


# --- what may go wrong -----------------------------------------------------------------------------------------------


def test_prompts_that_do_not_fit_give_no_completions_and_others_go_on(tiny_model, runtime):
    long = Prompt.of((Message(role="user", content="Tell a tale of Ada the fox. " * 200),))
    groups = list(searcher(tiny_model, runtime).generate([PROMPTS[0], long, PROMPTS[1]]))
    assert [len(group.completions) for group in groups] == [4, 0, 4]
    assert groups[1].tree is None


@pytest.mark.parametrize(
    "sampled", [Sampled(None, "stop", text="only text"), Sampled((300, 301), "length", None)]
)
def test_an_engine_without_tokens_or_log_probabilities_is_refused(tiny_model, sampled):
    generator, _ = scripted(tiny_model, lambda request: sampled)
    with pytest.raises(InputError, match=r"generate\.engine\.engine: hf gives no token ids or no log-prob"):
        list(generator.generate(PROMPTS[:1]))


def test_a_stop_string_that_begins_in_an_earlier_step_ends_the_completion(tiny_model):
    codec = load_codec(tiny_model)
    # both words are one token in the tokenizer of the tales
    (she,), (smiled,) = codec.plain_ids(" she"), codec.plain_ids(" smiled")

    def answer(request: Request) -> Sampled:
        # the first completions go on after "she", so that "she smiled" is never seen by the engine in one piece
        first = int(request.name.rpartition("/")[2]) < 3
        ids = (she,) * request.budget if first else (smiled,) * request.budget
        return Sampled(ids, "length", (-1.0,) * request.budget)

    generator, _ = scripted(
        tiny_model, answer, stop=["she smiled"], num_completions=3, max_new_tokens=6, engine={"step": 2}
    )
    (group,) = generator.generate(PROMPTS[:1])
    cut = [one for one in group.completions if "smiled" in one.text]
    assert cut
    for one in cut:
        assert one.text.endswith("she smiled")
        assert one.finish_reason == "stop"
        assert len(one.token_logps) == len(one.token_ids) < 6


def test_refused_completions_are_no_nodes_and_a_prompt_without_scores_keeps_what_was_drawn(
    tiny_model, runtime
):
    class Refusing:
        name = "refusing"

        def score(self, groups):
            for group in groups:
                for number, one in enumerate(group.completions):
                    if group.prompt == PROMPTS[0] or number == 0:
                        yield Refusal(
                            prompt_id=group.prompt.id,
                            completion_ids=(one.id,),
                            annotator="refusing",
                            reason="test",
                        )
                    else:
                        yield Score(
                            prompt_id=group.prompt.id, completion_id=one.id, value=1.0, annotator="refusing"
                        )

    refused, scored = searcher(tiny_model, runtime, scorer=Refusing()).generate(PROMPTS[:2])
    # each of the three iterations began anew
    assert (refused.tree.num_drawn, len(refused.completions), len(refused.tree.nodes)) == (9, 4, 1)
    assert len(scored.tree.nodes[0].token_ids) == 0
    assert sum(one.parent == 0 for one in scored.tree.nodes) == 2
