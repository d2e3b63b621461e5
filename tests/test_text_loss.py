"""The loss on text that an evaluation measures, against transformers' own."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop import pipeline
from prefloop.config import EvaluateSection
from prefloop.evaluate.text import text_loss
from prefloop.interfaces import InputError
from prefloop.pipeline import Watcher
from prefloop.records import Text
from prefloop.store import Workspace
from small import small

TEXTS = (
    Text(id="1", text="Ada the fox lived by the lake. It rained all day."),
    Text(id="2", text="She went home alone."),
)
OPTIONS = EvaluateSection(resamples=200)


@pytest.mark.parametrize("max_tokens", [1000, 5])
def test_it_is_the_mean_of_transformers_losses_weighted_by_tokens(tiny_model, runtime, max_tokens):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    total, number = 0.0, 0
    for one in TEXTS:
        words = tokenizer(one.text, add_special_tokens=False).input_ids
        ids = torch.tensor([[*words, tokenizer.eos_token_id][:max_tokens]])
        predicted = ids.shape[1] - 1
        total += float(model(input_ids=ids, labels=ids).loss.detach()) * predicted
        number += predicted
    found = text_loss(TEXTS, policy=tiny_model, max_tokens=max_tokens, options=OPTIONS, runtime=runtime)
    assert found["text_loss"]["mean"] == pytest.approx(total / number, abs=1e-5)
    assert found["text_loss"]["n"] == number
    assert (found["texts"], found["texts_cut"]) == (2, 2 if max_tokens == 5 else 0)


def test_without_a_token_to_predict_there_is_no_loss(tiny_model, runtime):
    with pytest.raises(InputError, match="evaluate.text"):
        text_loss((), policy=tiny_model, max_tokens=9, options=OPTIONS, runtime=runtime)


def test_an_evaluation_measures_the_text_that_it_is_given_and_is_another_then(tmp_path):
    text = "evaluate.text={path: 'builtin:tales/held_out_texts', limit: 3}"
    without = ("loop={batches: 0}", "rl={steps: 1, num_prompts: 4, prompts_per_step: 2, max_new_tokens: 8}")
    entries = pipeline.run(small(*without, text), Workspace(tmp_path / "w"), Watcher())
    evaluations = [one.artefact for one in entries if one.role == "evaluate"]
    assert len(evaluations) == 2
    assert all(one.stats["text_loss"]["mean"] > 0 and one.stats["texts"] == 3 for one in evaluations)
    plain = pipeline.plan(small(*without), Workspace(tmp_path / "w"))
    assert not any(one.artefact.exists for one in plain if one.role == "evaluate")
    assert all(one.artefact.exists for one in plain if one.role != "evaluate")
