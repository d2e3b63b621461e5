"""Models whose weights are damaged: they say no number, and the run is told which model it is."""

import shutil
from pathlib import Path

import pytest
import torch

from prefloop.annotate.implicit import ImplicitScorer
from prefloop.annotate.pairwise import load_pairwise
from prefloop.annotate.reward_model import load_scorer
from prefloop.config import PairwiseAnnotator, RuntimeSection
from prefloop.interfaces import InputError, PairTask
from prefloop.modeling import load_policy, new_reward_model, save_model
from prefloop.records import Group, Message, Prompt, file_completion

RUNTIME = RuntimeSection(device="cpu", threads=1)
PROMPT = Prompt.of((Message(role="user", content="Tell a tale."),))
GROUP = Group(
    prompt=PROMPT,
    completions=tuple(file_completion(PROMPT, text, n) for n, text in enumerate(("Yes.", "No."))),
)


@pytest.fixture
def policy(tiny_model, tmp_path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    model = load_policy(tiny_model, RUNTIME)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save_pretrained(folder)
    return folder


def test_a_reward_model(tiny_model, tmp_path):
    model, codec = new_reward_model(tiny_model, RUNTIME)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    save_model(model, codec.tokenizer, tmp_path / "reward", dtype="float32")
    scorer = load_scorer(tmp_path / "reward", RUNTIME, name="reward-1", same_tokens=False, labels=1)
    with pytest.raises(InputError, match=f"reward-1 says nan of an answer to prompt {PROMPT.id}"):
        list(scorer.score([GROUP]))


def test_what_a_policy_implies(tiny_model, policy):
    scorer = ImplicitScorer(policy, tiny_model, name="policy-1", runtime=RUNTIME)
    with pytest.raises(InputError, match=f"policy-1 says nan of an answer to prompt {PROMPT.id}"):
        list(scorer.score([GROUP]))


def test_a_pairwise_model(policy):
    comparer = load_pairwise(
        PairwiseAnnotator(kind="pairwise", model=str(policy)), RUNTIME, name="pairwise-1"
    )
    with pytest.raises(InputError, match=f"pairwise-1 says nan of an answer to prompt {PROMPT.id}"):
        list(comparer.compare([PairTask(PROMPT, *GROUP.completions)]))
