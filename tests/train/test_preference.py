"""Preference objectives inside the training stage: what a step computes, however it is cut."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from dropout import save_with_dropout
from prefloop.config import PolicySection, RuntimeSection
from prefloop.forward import LogpsModule, all_token_logps
from prefloop.interfaces import InputError, no_progress
from prefloop.launch import run_job
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Completion, Message, PreferencePair, Prompt, file_completion
from prefloop.train.groups import grouped, ranks, with_foreign
from prefloop.train.preference import PolicyJob, Preferences, encode_pairs, train_policy

ANSWERS = ("Ada the fox smiled.", "It rained all day in the mud.", "She went home alone.", "A map.")
RUNTIME = RuntimeSection(device="cpu")
KINDS = (
    "dpo", "robust", "exo_pair", "hinge", "ipo", "discopop", "dpop", "odpo", "aot", "aot_pair", "cross_entropy",
    "bco_pair", "kto", "sppo_hard", "nca_pair", "apo_zero", "apo_down", "soft_kl", "soft_tv", "soft_hellinger",
    "soft_rev_kl", "simpo", "cpo", "orpo", "raft", "plackett_luce",
)  # fmt: skip


def ranking(number: int, answers=ANSWERS) -> list[PreferencePair]:
    """All pairs of a ranking of answers, the best first, together weighing one."""
    prompt = Prompt.of((Message(role="user", content=f"Write about a fox named Ada and map {number}."),))
    sides = [file_completion(prompt, text, index) for index, text in enumerate(answers)]
    places = [(i, j) for i in range(len(sides)) for j in range(i + 1, len(sides))]
    return [
        PreferencePair.of(
            prompt, sides[i], sides[j], margin=float(j - i), annotator="test", weight=1 / len(places)
        )
        for i, j in places
    ]


RANKINGS = [pair for number in range(4) for pair in ranking(number, ANSWERS[number % 2 :])]


def job(tiny_model, out, *, pairs=tuple(RANKINGS), runtime=RUNTIME, **options) -> PolicyJob:
    out.mkdir(parents=True, exist_ok=True)
    return PolicyJob(
        start=tiny_model,
        reference=tiny_model,
        pairs=pairs,
        validation=(),
        options=PolicySection(**{"learning_rate": 1e-3, "batch_size": 4, "epochs": 3, **options}),
        steps=None,
        dtype="float32",
        seed=0,
        runtime=runtime,
        out=out,
    )


def metrics(folder) -> list[dict[str, float]]:
    return [json.loads(one) for one in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]


def losses(tiny_model, out, **options) -> list[float]:
    train_policy(job(tiny_model, out, **options), no_progress)
    return [row["train/loss"] for row in metrics(out)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_falls_in_training_and_does_not_depend_on_microbatches_or_sharing(
    tiny_model, tmp_path, kind
):
    # the usual penalty of dpop forbids that a completion is chosen in one pair and rejected in another
    options = {"objective": {"kind": kind, **({"penalty": 1.0} if kind == "dpop" else {})}}
    whole = losses(tiny_model, tmp_path / "whole", **options)
    # discopop's loss first rises with the margin (figure 1 of arXiv:2406.08414)
    assert whole[-1] != whole[0] if kind == "discopop" else whole[-1] < whole[0]
    parts = RuntimeSection(device="cpu", microbatch_tokens=1)
    padded = RuntimeSection(device="cpu", share_prompts=False)
    for name, runtime in {"parts": parts, "padded": padded}.items():
        found = losses(tiny_model, tmp_path / name, runtime=runtime, **options)
        assert found == pytest.approx(whole, abs=2e-4, rel=2e-4)


SPREAD = ("dpo", "aot", "bco_pair", "kto", "plackett_luce")


def train_policies(jobs: tuple[PolicyJob, ...], progress) -> dict[str, float]:
    for one in jobs:
        train_policy(one, progress)
    return {}


@pytest.fixture(scope="module")
def in_two_processes(tiny_model, tmp_path_factory) -> Path:
    """Folders of one training for each objective, one after another in the same two processes."""
    root = tmp_path_factory.mktemp("two")
    runtime = RuntimeSection(device="cpu", num_processes=2, threads=1)
    jobs = (job(tiny_model, root / kind, runtime=runtime, **spread_options(kind)) for kind in SPREAD)
    run_job(train_policies, tuple(jobs), runtime, no_progress)
    return root


def spread_options(kind: str) -> dict:
    return {"objective": {"kind": kind}, "epochs": 2, "batch_size": 3}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPREAD)
def test_two_processes_give_the_losses_of_one(tiny_model, tmp_path, in_two_processes, kind):
    alone = losses(tiny_model, tmp_path / "one", **spread_options(kind))
    found = [row["train/loss"] for row in metrics(in_two_processes / kind)]
    assert found == pytest.approx(alone, abs=1e-5)


def test_a_ranking_is_one_row_of_its_completions(tiny_model):
    codec = load_codec(tiny_model)
    together, _ = encode_pairs(RANKINGS, codec, PolicySection(), seed=0)
    apart, _ = encode_pairs(RANKINGS, codec, PolicySection(grouping="pair"), seed=0)
    assert [len(one.tokens.completions) for one in together] == [4, 3, 4, 3]
    assert [len(one.pairs) for one in together] == [6, 3, 6, 3]
    assert len(apart) == len(RANKINGS) == 18
    assert [one.weight for one in together] == pytest.approx([1.0] * 4)
    assert [ranks(one) for one in together[:2]] == [[1, 2, 3, 4], [1, 2, 3]]


def test_grouping_pairs_of_a_prompt_does_not_change_the_loss(tiny_model, tmp_path):
    """One step over everything: the same weighted mean, from 14 completions or from 36."""
    options = {"batch_size": 100, "epochs": 1}
    together = losses(tiny_model, tmp_path / "prompt", objective={"kind": "hinge", "beta": 0.5}, **options)
    apart = losses(
        tiny_model, tmp_path / "pair", objective={"kind": "hinge", "beta": 0.5}, grouping="pair", **options
    )
    assert together == pytest.approx(apart, abs=1e-6)


# --- objectives that need the whole step -----------------------------------------------------------------------------


def module_of(tiny_model) -> LogpsModule:
    return LogpsModule(load_policy(tiny_model, RUNTIME), pad_id=0, runtime=RUNTIME)


def token_sums(module, groups) -> list[torch.Tensor]:
    return [torch.stack([one.sum() for one in group]) for group in all_token_logps(module, groups, RUNTIME)]


def test_kto_compares_with_completions_of_other_prompts(tiny_model):
    """The paper's loss from teacher-forced log-probabilities: z0 is the mean log-ratio of the foreign completions."""
    codec = load_codec(tiny_model)
    options = PolicySection(objective={"kind": "kto", "beta": 0.3})
    groups, _ = encode_pairs(RANKINGS, codec, options, seed=0)
    assert all(
        one.tokens.completions[one.foreign] != one.tokens.completions[0] or one.foreign for one in groups
    )
    known = [
        replace(one, reference=tuple(torch.full((len(ids),), -6.0) for ids in one.tokens.completions))
        for one in groups
    ]
    module = module_of(tiny_model)
    ratios = [
        sums + 6.0 * torch.tensor([float(len(ids)) for ids in one.tokens.completions])
        for sums, one in zip(token_sums(module, [one.tokens for one in groups]), groups, strict=True)
    ]
    z0 = torch.stack([one[-1] for one in ratios]).mean().clamp(min=0)
    expected = sum(
        pair.weight
        * (
            2
            - torch.sigmoid(0.3 * (ratio[pair.chosen] - z0))
            - torch.sigmoid(0.3 * (z0 - ratio[pair.rejected]))
        )
        for ratio, one in zip(ratios, groups, strict=True)
        for pair in one.pairs
    )
    objective = Preferences(module, options)
    objective.whole_step.before_step(module, [known[:1], known[1:]], Accelerator(cpu=True))
    found = sum(objective.loss(module, part)[0] for part in (known[:1], known[1:]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_foreign_completions_come_from_other_prompts_and_follow_the_seed(tiny_model):
    groups = grouped(RANKINGS, load_codec(tiny_model), "prompt", per_prompt=False)
    named = [
        replace(one, tokens=replace(one.tokens, completions=((number,),)))
        for number, one in enumerate(groups)
    ]
    drawn = [one.tokens.completions[1][0] for one in with_foreign(named, seed=0)]
    assert sorted(drawn) == [0, 1, 2, 3]
    assert all(own != other for own, other in enumerate(drawn))
    assert drawn == [one.tokens.completions[1][0] for one in with_foreign(named, seed=0)]


def test_bco_keeps_a_running_mean_over_steps():
    from prefloop.train.whole_step import RunningMean

    mean = RunningMean()
    assert float(mean.update(torch.tensor(2.0), 4)) == 2.0
    assert float(mean.update(torch.tensor(5.0), 2)) == 3.0  # (4 * 2 + 2 * 5) / 6
    other = RunningMean()
    other.load_state_dict(mean.state_dict())
    assert float(other.update(torch.tensor(3.0), 6)) == 3.0


# --- beside the objective --------------------------------------------------------------------------------------------


def first_step(tiny_model, out, **options) -> dict[str, float]:
    train_policy(job(tiny_model, out, epochs=1, batch_size=100, **options), no_progress)
    return metrics(out)[0]


def test_the_likelihood_term_adds_exactly_its_share(tiny_model, tmp_path):
    plain = first_step(tiny_model, tmp_path / "plain")
    with_term = first_step(tiny_model, tmp_path / "nll", nll_weight=0.5)
    assert with_term["train/loss"] - plain["train/loss"] == pytest.approx(0.5 * plain["train/nll"], abs=1e-5)


def test_tail_tokens_count_less_for_policy_and_reference(tiny_model, tmp_path):
    """With a weight of 0 the longer side is as if it had been cut to the shorter one's length."""
    codec, module = load_codec(tiny_model), module_of(tiny_model)
    options = PolicySection(tail_weight=0.0, log_ratios={"reference_free": True})
    (group,), _ = encode_pairs(ranking(0, ANSWERS[:2]), codec, options, seed=0)
    short, long = sorted(group.tokens.completions, key=len)
    assert len(short) < len(long)
    cut = replace(group.tokens, completions=tuple(one[: len(short)] for one in group.tokens.completions))
    (sums,) = token_sums(module, [cut])
    loss, _ = Preferences(module, options).loss(module, [group])
    torch.testing.assert_close(loss, -functional.logsigmoid(0.1 * (sums[0] - sums[1])), rtol=0, atol=1e-5)


def test_wpo_weighs_pairs_by_how_likely_the_policy_sampled_them(tiny_model, tmp_path):
    """exp of the mean of log p - log sum p^2 over both sides' tokens, at most 1, from the model's own probabilities."""
    codec, module = load_codec(tiny_model), module_of(tiny_model)
    options = PolicySection(weighting="wpo", log_ratios={"reference_free": True})
    (group,), _ = encode_pairs(ranking(0, ANSWERS[:2]), codec, options, seed=0)
    weight, sums = 1.0, []
    for ids in group.tokens.completions:
        sequence = torch.tensor([[*group.tokens.prompt_ids, *ids]])
        with torch.no_grad():
            logps = module.model(sequence).logits[0].log_softmax(-1)[len(group.tokens.prompt_ids) - 1 : -1]
        own = logps.gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)
        sums.append(own.sum())
        weight *= float((own - logps.exp().square().sum(-1).log()).mean().exp())
    expected = -functional.logsigmoid(0.1 * (sums[0] - sums[1])) * min(weight, 1.0)
    loss, _ = Preferences(module, options).loss(module, [group])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_reference_that_is_replaced_at_every_step_leaves_no_margin(tiny_model, tmp_path):
    """TR-DPO with a hard update after every step: policy and reference agree at each step's start, so the loss is log 2."""
    found = losses(tiny_model, tmp_path, reference_sync={"every_steps": 1, "weight": 1.0})
    assert found == pytest.approx([0.693147] * len(found), abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_policy_with_dropout_begins_where_its_reference_is(tiny_model, tmp_path, kind):
    start = save_with_dropout(kind, tiny_model, tmp_path / "start")
    found = losses(start, tmp_path / "run", epochs=1)
    assert found[0] == pytest.approx(0.693147, abs=1e-6), "-log sigmoid(0)"


def test_a_soft_reference_moves_by_its_share(tiny_model):
    from prefloop.config import ReferenceSyncSection
    from prefloop.train.preference import MovingReference

    reference, policy = module_of(tiny_model), module_of(tiny_model)
    before = reference.model.get_parameter("model.norm.weight").clone()
    with torch.no_grad():
        policy.model.get_parameter("model.norm.weight").add_(1.0)
    moving = MovingReference(reference, ReferenceSyncSection(every_steps=2, weight=0.25))
    moving.after_step(policy, 1)
    assert torch.equal(reference.model.get_parameter("model.norm.weight"), before)
    moving.after_step(policy, 2)
    torch.testing.assert_close(reference.model.get_parameter("model.norm.weight"), before + 0.25)


@pytest.mark.parametrize(
    "options", [{"reference_sync": {"weight": 0.5}}, {"objective": {"kind": "bco_pair"}}]
)
def test_what_moves_in_training_survives_a_kill(tiny_model, tmp_path, monkeypatch, options):
    whole = losses(tiny_model, tmp_path / "whole", **options)

    class Killed(Exception):
        pass

    calls = []
    original = Preferences.loss

    def dies(self, trained, groups):
        calls.append(1)
        if len(calls) > 2:
            raise Killed
        return original(self, trained, groups)

    runtime = RuntimeSection(device="cpu", save_every_steps=1)
    monkeypatch.setattr(Preferences, "loss", dies)
    with pytest.raises(Killed):
        losses(tiny_model, tmp_path / "killed", runtime=runtime, **options)
    monkeypatch.undo()
    assert losses(tiny_model, tmp_path / "killed", runtime=runtime, **options) == whole


def test_without_a_reference_none_is_loaded(tiny_model, tmp_path):
    missing = replace(job(tiny_model, tmp_path, objective={"kind": "simpo"}), reference=tmp_path / "nowhere")
    train_policy(missing, no_progress)
    with pytest.raises(InputError, match="nowhere"):
        train_policy(replace(missing, options=PolicySection()), no_progress)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": {"kind": "ipo"}, "log_ratios": {"length_penalty": 0.1}}, "ipo averages over length"),
        ({"objective": {"kind": "plackett_luce"}, "grouping": "pair"}, "reads whole rankings"),
        ({"objective": {"kind": "simpo"}, "reference_sync": {}}, "simpo uses no reference"),
        ({"reference_sync": {}, "lora": {}}, "adapters have no weights"),
        ({"nll_weight": 1.0, "tail_weight": 0.5}, "set tail_weight to 1"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PolicySection(**options)


# --- pairs about what follows a shared beginning ---------------------------------------------------------------------


def step_pair(prefix_tokens: int) -> PreferencePair:
    """Two ways to go on from the same three tokens; with no prefix, two completions that happen to begin alike."""
    prompt = Prompt.of((Message(role="user", content="Write about a fox named Ada and a map."),))
    sides = [
        Completion(id=str(number), prompt_id=prompt.id, text="", token_ids=(300, 301, 302, *tail))
        for number, tail in enumerate(((310, 311, 312, 313), (320, 321)))
    ]
    return PreferencePair.of(
        prompt, *sides, margin=1.0, annotator="test", p_chosen=0.75, prefix_tokens=prefix_tokens
    )


def loss_and_gradients(tiny_model, pair: PreferencePair, **options):
    """The loss of one pair under a policy that has moved away from the reference, and its gradients."""
    codec, section = load_codec(tiny_model), PolicySection(**options)
    model = load_policy(tiny_model, RUNTIME)
    reference = LogpsModule(load_policy(tiny_model, RUNTIME), pad_id=codec.pad_id, runtime=RUNTIME)
    torch.manual_seed(0)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.02 * torch.randn_like(one))
    module = LogpsModule(model, pad_id=codec.pad_id, runtime=RUNTIME)
    (group,), _ = encode_pairs([pair], codec, section, seed=0)
    (logps,) = all_token_logps(reference, [group.tokens], RUNTIME)
    loss, _ = Preferences(module, section).loss(module, [replace(group, reference=tuple(logps))])
    loss.backward()
    return group, loss.item(), [one.grad for one in model.parameters()]


@pytest.mark.parametrize("smoothing", [0.0, "pair"])
def test_for_dpo_a_shared_prefix_cancels_so_that_reading_it_with_the_prompt_changes_nothing(
    tiny_model, smoothing
):
    options = {"objective": {"kind": "dpo", "label_smoothing": smoothing}}
    whole, loss, gradients = loss_and_gradients(tiny_model, step_pair(0), **options)
    apart, other, others = loss_and_gradients(tiny_model, step_pair(3), **options)
    assert [len(one) for one in whole.tokens.completions] == [7, 5]
    assert [len(one) for one in apart.tokens.completions] == [4, 2]
    assert apart.tokens.prompt_ids == (*whole.tokens.prompt_ids, 300, 301, 302)
    assert other == pytest.approx(loss, abs=1e-6)
    assert max(float(one.abs().max()) for one in gradients) > 1e-3
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6)


def test_objectives_that_count_tokens_count_only_those_after_the_prefix(tiny_model):
    """The likelihood per token of RAFT, by a plain forward pass: the mean over four tokens, and over seven."""
    options = {"objective": {"kind": "raft"}}
    group, loss, _ = loss_and_gradients(tiny_model, step_pair(3), **options)
    _, whole, _ = loss_and_gradients(tiny_model, step_pair(0), **options)
    model = load_policy(tiny_model, RUNTIME)
    torch.manual_seed(0)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.02 * torch.randn_like(one))
        ids = torch.tensor([[*group.tokens.prompt_ids, *group.tokens.completions[0]]])
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1)
    assert loss == pytest.approx(float(-logps[-4:].mean()), abs=1e-5)
    assert whole == pytest.approx(float(-logps[-7:].mean()), abs=1e-5)


def test_pairs_of_a_prompt_share_a_row_only_where_they_begin_alike(tiny_model):
    groups, _ = encode_pairs(
        [step_pair(0), step_pair(3), step_pair(3)], load_codec(tiny_model), PolicySection(), seed=0
    )
    assert [len(one.pairs) for one in groups] == [1, 2]
