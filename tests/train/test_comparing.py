"""Completions that are compared with each other in every batch: pairs, the reference's own samples, and self-play."""

import math
from dataclasses import replace

import pytest
import torch

from prefloop.advantages import win_rates
from prefloop.config import RlSection, RuntimeSection
from prefloop.forward import LogpsModule
from prefloop.interfaces import no_progress
from prefloop.losses import sppo_losses
from prefloop.modeling import load_codec, load_policy
from prefloop.stages.reinforce import sampler
from prefloop.train.actor import ActorCritic
from prefloop.train.comparing import Comparing
from prefloop.train.online import train_online
from prefloop.train.rollouts import Rollouts
from train.test_online import OPTIONS, PROMPTS, LikesLowIds, job, metrics

RUNTIME = RuntimeSection(device="cpu", threads=1)


class LikesAllAlike(LikesLowIds):
    """Has no preference."""

    def score(self, groups):
        return (one.model_copy(update={"value": 0.5}) for one in super().score(groups))


def comparing(tiny_model, *, algorithm, shift: float = 0.0, scorer=LikesLowIds, **options) -> Comparing:
    """The parts of a stage before its first step; the reference is another model than the policy by `shift`."""
    codec = load_codec(tiny_model)
    policy, reference = (
        LogpsModule(load_policy(tiny_model, RUNTIME), pad_id=codec.pad_id, runtime=RUNTIME) for _ in range(2)
    )
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(1 + shift)
    section = RlSection(**{**OPTIONS, "algorithm": algorithm, **options})
    module = ActorCritic(policy, None)
    rollouts = Rollouts(
        module,
        reference,
        sampler,
        scorer(),
        codec,
        PROMPTS,
        section,
        dtype="float32",
        seed=0,
        runtime=RUNTIME,
    )
    return Comparing(module, rollouts)


def plain_logp(model, prompt, completion) -> float:
    """Sum over the completion, by the stock model on one row."""
    with torch.no_grad():
        rows = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return sum(float(rows[len(prompt) - 1 + at, token]) for at, token in enumerate(completion))


def logratios(there: Comparing, sample) -> list[float]:
    models = (there.module.policy.model, there.rollouts._reference.model)
    return [
        plain_logp(models[0], sample.tokens.prompt_ids, one)
        - plain_logp(models[1], sample.tokens.prompt_ids, one)
        for one in sample.tokens.completions
    ]


def liked(completion) -> float:
    return sum(token < 64 for token in completion) / len(completion)


@pytest.mark.parametrize("name", ["online_dpo", "online_ipo", "xpo", "sppo"])
def test_every_comparison_comes_to_what_is_liked(tiny_model, tmp_path, name):
    # scores that differ by less than 1 hardly win against each other
    options = {"algorithm": {"name": name, "beta": 0.01}, "score_scale": "running"} if name == "sppo" else {}
    stats = train_online(job(tiny_model, tmp_path, steps=12, **({"algorithm": name} | options)), no_progress)
    rows = metrics(tmp_path)
    before, after = (sum(row["rl/score"] for row in some) / 2 for some in (rows[:2], rows[-2:]))
    assert after > before + 0.1
    assert stats["algorithm"] == name
    assert stats["rows"]["prompts"] == 12 * 8


def test_the_best_of_a_prompt_is_preferred_to_its_worst(tiny_model):
    there = comparing(tiny_model, algorithm={"name": "online_dpo", "objective": {"beta": 0.3}}, shift=0.05)
    samples = there.rollouts.batch(0)
    expected = 0.0
    for one in samples:
        scores = [liked(ids) for ids in one.tokens.completions]
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        assert scores[best] > scores[worst], "who all score alike are left out"
        ratios = logratios(there, one)
        expected += math.log1p(math.exp(-0.3 * (ratios[best] - ratios[worst])))
    loss, _ = there.loss(there.module, samples)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    parts = sum(float(there.loss(there.module, [one])[0]) for one in samples)
    assert parts == pytest.approx(expected, rel=1e-4), "microbatches add up"


def test_prompts_whose_completions_score_alike_are_counted_and_left_out(tiny_model):
    there = comparing(tiny_model, algorithm="online_dpo", scorer=LikesAllAlike)
    assert there.rollouts.batch(0) == []
    assert there.rollouts.standing.rows["all_alike"] == 8


def test_xpo_compares_with_the_reference_and_moves_away_from_what_it_says(tiny_model):
    there = comparing(tiny_model, algorithm={"name": "xpo", "exploration": 0.0}, shift=0.05)
    with_bonus = comparing(tiny_model, algorithm={"name": "xpo", "exploration": 0.25}, shift=0.05)
    samples = there.rollouts.batch(0)
    bonus, margins = 0.0, 0.0
    for one in samples:
        ours, theirs = one.tokens.completions[:2], one.tokens.completions[2:]
        bonus += sum(plain_logp(there.module.policy.model, one.tokens.prompt_ids, ids) for ids in theirs) / 2
        scores, ratios = [liked(ids) for ids in (*ours, *theirs)], logratios(there, one)
        differ = [at for at in range(2) if scores[at] != scores[at + 2]]
        for at in differ:
            margin = ratios[at] - ratios[at + 2]
            sign = 1 if scores[at] > scores[at + 2] else -1
            margins += math.log1p(math.exp(-0.1 * sign * margin)) / len(differ)
    assert float(there.loss(there.module, samples)[0]) == pytest.approx(margins, rel=1e-4)
    assert float(with_bonus.loss(with_bonus.module, samples)[0]) == pytest.approx(
        margins + 0.25 * bonus, rel=1e-4
    )


def test_half_of_the_samples_of_xpo_are_the_references(tiny_model):
    there = comparing(tiny_model, algorithm="xpo", shift=0.05).rollouts
    (group,) = there._sampled(there._module.policy.model, PROMPTS[:1], 0, version=0)
    prompt = there._codec.prompt_ids(group.prompt.messages)
    models = [there._module.policy.model] * 2 + [there._reference.model] * 2
    for model, one in zip(models, group.completions, strict=True):
        assert plain_logp(model, prompt, one.token_ids) == pytest.approx(sum(one.token_logps), abs=1e-3)
    assert len({one.id for one in group.completions}) == 4


def test_figures_of_xpo_are_those_of_the_policys_own_samples(tiny_model):
    there = comparing(tiny_model, algorithm="xpo", shift=0.05)
    rollouts = there.rollouts
    groups = rollouts._sampled(there.module.policy.model, rollouts.prompts_of(0), 0, version=0)
    scored, _ = rollouts._scored(list(enumerate(groups)))
    rollouts._samples(scored)
    told = rollouts.figures()
    own = [ids for one in scored for ids in one.tokens.completions[:2]]
    assert len(own) == 16
    kl = sum(sum(logratios(there, one)[:2]) for one in scored) / len(own)
    assert told["rl/kl"] == pytest.approx(kl, abs=1e-3)
    assert told["rl/score"] == pytest.approx(sum(map(liked, own)) / len(own))
    assert told["rl/length"] == pytest.approx(sum(map(len, own)) / len(own))


def test_win_rates_and_targets_of_self_play_by_hand():
    # σ(ln 3) = 3/4: the better wins (1/2 + 3/4) / 2, the worse (1/2 + 1/4) / 2
    rates = win_rates(torch.tensor([0.0, math.log(3)]))
    assert rates.tolist() == pytest.approx([0.375, 0.625])
    # targets ∓0.125 / 0.5 = ∓0.25
    losses = sppo_losses(torch.tensor([0.0, 1.0]), rates, beta=0.5)
    assert losses.tolist() == pytest.approx([0.0625, 0.5625])


def test_self_play_averages_the_completions_of_a_prompt(tiny_model):
    there = comparing(tiny_model, algorithm={"name": "sppo", "beta": 0.05}, shift=0.05)
    samples = there.rollouts.batch(0)
    expected = 0.0
    for one in samples:
        scores, ratios = [liked(ids) for ids in one.tokens.completions], logratios(there, one)
        for score, ratio in zip(scores, ratios, strict=True):
            rate = sum(1 / (1 + math.exp(other - score)) for other in scores) / len(scores)
            expected += (ratio - (rate - 0.5) / 0.05) ** 2 / len(scores)
    assert float(there.loss(there.module, samples)[0]) == pytest.approx(expected, rel=1e-4)


def test_objectives_without_a_reference_load_none(tiny_model, tmp_path):
    algorithm = {"name": "online_dpo", "objective": {"kind": "simpo"}}
    section = RlSection(**{**OPTIONS, "algorithm": algorithm})
    assert not section.needs_reference
    missing = replace(job(tiny_model, tmp_path, algorithm=algorithm, steps=1), reference=tmp_path / "none")
    assert train_online(missing, no_progress)["steps"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"algorithm": "online_dpo", "num_completions": 1}, "sample at least 2"),
        ({"algorithm": "xpo", "num_completions": 3}, "half of them are the reference's; make it even"),
        ({"algorithm": "xpo", "ahead": 1}, "ahead: xpo samples from the reference too"),
        ({"algorithm": "sppo", "kl_target": 1.0}, "kl_target: sppo reads none of it"),
        ({"algorithm": "online_dpo", "sampler_cap": 2.0}, "sampler_cap: online_dpo reads none of it"),
        (
            {"algorithm": {"name": "online_dpo", "exploration": 0.1}},
            "exploration: online_dpo has none; use xpo",
        ),
        (
            {"algorithm": {"name": "online_ipo", "objective": {"kind": "kto"}}},
            "kto compares the pairs of a whole step",
        ),
    ],
)
def test_what_does_not_fit_comparisons_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        RlSection(**{**OPTIONS, **options})
