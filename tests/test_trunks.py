"""One trunk for four roles: equal after training, in memory once, computed once."""

from pathlib import Path

import pytest
import torch

from prefloop.batches import TokenGroup, collate
from prefloop.config import PolicySection, RewardSection, RuntimeSection, SftSection
from prefloop.forward import LogpsModule, ScoresModule, hidden_states
from prefloop.interfaces import no_progress
from prefloop.modeling import layers_of, load_policy, load_reward_model
from prefloop.records import Demonstration, Message, PreferencePair, Prompt, file_completion
from prefloop.train.preference import PolicyJob, train_policy
from prefloop.train.reward import RewardJob, train_reward
from prefloop.train.sft import SftJob, train_sft
from prefloop.trunks import hidden_of_all, share_trunk, unique_bytes
from prefloop.verdicts import RuleVerdict

RUNTIME = RuntimeSection(device="cpu", threads=1)
FROZEN = 3
"""Of four layers."""
GROUPS = [TokenGroup((1, 40, 50, 60), ((70, 80, 2), (71, 2))), TokenGroup((1, 41), ((71, 81, 91, 2),))]


def pairs() -> tuple[PreferencePair, ...]:
    found = []
    for number in range(4):
        prompt = Prompt.of((Message(role="user", content=f"Map {number}?"),))
        answers = file_completion(prompt, "Ada smiled."), file_completion(prompt, "It rained.", 1)
        found.append(PreferencePair.of(prompt, *answers, margin=1.0, annotator="test"))
    return tuple(found)


@pytest.fixture(scope="module")
def roles(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Four models trained from the same one with three of its four layers frozen."""
    folder = tmp_path_factory.mktemp("roles")
    options = {"learning_rate": 1e-2, "batch_size": 2, "max_steps": 4, "frozen_layers": FROZEN}
    common = {"dtype": "float32", "seed": 0, "runtime": RUNTIME}
    for name in ("sft", "policy", "preference", "rules"):
        (folder / name).mkdir()
    shown = tuple(
        Demonstration.of((*one.prompt.messages, Message(role="assistant", content=one.chosen.text)))
        for one in pairs()
    )
    train_sft(SftJob(tiny_model, shown, (), SftSection(**options), **common, out=folder / "sft"), no_progress)
    train_policy(
        PolicyJob(
            tiny_model,
            tiny_model,
            pairs(),
            (),
            PolicySection(**options),
            None,
            **common,
            out=folder / "policy",
        ),
        no_progress,
    )
    preference = RewardSection(**options, data="x.jsonl")
    train_reward(
        RewardJob(str(tiny_model), pairs(), (), preference, **common, out=folder / "preference"), no_progress
    )
    verdicts = tuple(
        RuleVerdict(
            id=one.id, prompt=one.prompt, completion=one.chosen, rule="Smile.", violated=number % 2 == 0
        )
        for number, one in enumerate(pairs())
    )
    rules = RewardSection(**options, data="x.jsonl", objective={"kind": "rules"})
    train_reward(
        RewardJob(str(tiny_model), (), (), rules, **common, out=folder / "rules", rows=verdicts), no_progress
    )
    return {name: folder / name / "model" for name in ("sft", "policy", "preference", "rules")}


def load(roles: dict[str, Path]) -> list:
    kinds = frozenset({"bradley_terry", "rules"})
    return [
        *(load_policy(roles[name], RUNTIME) for name in ("sft", "policy")),
        *(load_reward_model(roles[name], RUNTIME, kinds=kinds)[0] for name in ("preference", "rules")),
    ]


def test_the_trunk_is_equal_bit_by_bit_after_training_each_role(tiny_model, roles):
    before = load_policy(tiny_model, RUNTIME)
    for model in load(roles):
        assert torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
        for number, (layer, old) in enumerate(zip(layers_of(model), layers_of(before), strict=True)):
            same = all(torch.equal(a, b) for a, b in zip(layer.parameters(), old.parameters(), strict=True))
            assert same == (number < FROZEN), number


def test_four_roles_take_less_memory_than_two_models(roles):
    models = load(roles)
    assert unique_bytes(models) > 3.9 * unique_bytes(models[:1])
    before = [hidden_states(model, batch()) for model in models]
    assert share_trunk(models) == FROZEN
    assert unique_bytes(models) < 2 * unique_bytes(models[:1])
    for model, states in zip(models, before, strict=True):
        torch.testing.assert_close(hidden_states(model, batch()), states, rtol=0, atol=0)
    tied = models[0].get_output_embeddings().weight
    assert tied.data_ptr() == models[2].get_input_embeddings().weight.data_ptr()


def batch(share: bool = False):
    return collate(GROUPS, share=share, pad_id=0, device=torch.device("cpu"))


@pytest.mark.parametrize("share", [False, True])
def test_the_trunk_is_computed_once_for_all_roles(roles, share):
    models = load(roles)
    for number, model in enumerate(models):
        kind = LogpsModule if number < 2 else ScoresModule
        kind(model, pad_id=0, runtime=RuntimeSection(device="cpu", share_prompts=share))
    expected = [hidden_states(model, batch(share)) for model in models]
    shared = share_trunk(models)
    calls = []
    for model in models:
        for number, layer in enumerate(layers_of(model)):
            layer.register_forward_pre_hook(
                lambda module, _, number=number: calls.append((number, id(module)))
            )
    for module in (one for model in models for one in model.modules() if isinstance(one, torch.nn.Linear)):
        module.register_forward_hook(lambda *_: calls.append("linear"))
    found = hidden_of_all(models, batch(share), shared_layers=shared)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    # seven matrices a layer: four layers of the first role, one of each other
    assert calls.count("linear") == 7 * (4 + 3)
    assert [one.requires_grad for one in found] == [True] * 4
    found[1].sum().backward()
    lowest, highest = layers_of(models[1])[0], layers_of(models[1])[3]
    assert all(weight.grad is None for weight in lowest.parameters())
    assert all(weight.grad is not None for weight in highest.parameters())
    assert all(weight.grad is None for weight in layers_of(models[0])[3].parameters())


def test_models_whose_embeddings_differ_share_nothing(roles):
    models = load(roles)[:2]
    with torch.no_grad():
        models[1].get_input_embeddings().weight[0, 0] += 1
    whole = unique_bytes(models)
    assert share_trunk(models) == 0
    assert unique_bytes(models) == whole
    assert all(weight.requires_grad for weight in models[1].parameters())
    assert len(hidden_of_all(models, batch(), shared_layers=0)) == 2
