"""A policy that judges itself, tiny and random."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from annotate.test_pairwise import RUNTIME, WORDS, save_model
from prefloop.annotate.self_evaluation import load_self_evaluation
from prefloop.config import SelfEvaluation
from prefloop.interfaces import InputError
from prefloop.records import Group, Message, Prompt, Refusal, file_completion

PROMPT = Prompt.of((Message(role="user", content="one"),))
TEMPLATE = "{completion} four {context} five"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return Path(save_model(tmp_path_factory.mktemp("policy-x") / "model"))


def group(*texts: str) -> Group:
    return Group(
        prompt=PROMPT, completions=tuple(file_completion(PROMPT, text, at) for at, text in enumerate(texts))
    )


def scorer(folder, **options):
    return load_self_evaluation(folder, SelfEvaluation(kind="self", **options), RUNTIME)


def by_hand(folder, question: str) -> float:
    """P(A) / (P(A) + P(B)) of the stock model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = [WORDS.index(word) if word in WORDS else WORDS.index("[unk]") for word in question.split()]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    a, b = (float(logits[WORDS.index(letter)]) for letter in "AB")
    return math.exp(a) / (math.exp(a) + math.exp(b))


def test_a_score_is_how_likely_the_policy_says_a_rather_than_b(folder):
    found = list(scorer(folder, template=TEMPLATE).score([group("two", "three two")]))
    # the template's turn, with the conversation as plain text: <turn> and its newlines are words it does not know
    questions = [f"<u> {text} four <turn> user one five <s>" for text in ("two", "three two")]
    assert [one.value for one in found] == [
        pytest.approx(by_hand(folder, one), abs=1e-6) for one in questions
    ]
    assert [one.completion_id for one in found] == [one.id for one in group("two", "three two").completions]
    assert len({one.value for one in found}) == 2
    assert {(one.annotator, one.labels) for one in found} == {(f"self:{folder.parent.name}", 0)}


def test_completions_of_several_groups_are_scored_in_order(folder):
    together = list(scorer(folder).score([group("two"), group("three", "four")]))
    alone = [next(scorer(folder).score([group(text)])).value for text in ("two", "three", "four")]
    assert [one.value for one in together] == pytest.approx(alone, abs=1e-6)


def test_a_completion_that_names_a_place_of_the_template_stays_as_it_is(folder):
    (one,) = scorer(folder, template=TEMPLATE).score([group("{context}")])
    assert one.value == pytest.approx(
        by_hand(folder, "<u> {context} four <turn> user one five <s>"), abs=1e-6
    )


def test_a_question_that_does_not_fit_is_refused_and_others_are_scored(folder):
    short, long = scorer(folder, template=TEMPLATE).score([group("two", "two " * 70)])
    assert 0 < short.value < 1
    assert isinstance(long, Refusal)
    assert (long.reason, long.labels) == ("too_long", 0)


def test_a_template_without_a_place_is_refused(folder):
    with pytest.raises(InputError, match=r"self-evaluation template: lacks \{context\}"):
        scorer(folder, template="{completion}?")


def test_letters_that_are_no_single_tokens_are_refused(tmp_path):
    folder = Path(save_model(tmp_path / "model", words=tuple(one for one in WORDS if one not in "AB")))
    with pytest.raises(InputError, match=r"writes A as"):
        scorer(folder)
