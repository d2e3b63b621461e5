import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefloop.batches import Row, collate
from prefloop.config import ModelSection
from prefloop.interfaces import InputError
from prefloop.modeling import (
    all_scores,
    all_sequence_logps,
    import_model,
    load_policy,
    load_reward_model,
    new_reward_model,
    save_model,
    token_logps,
)

ROWS = [
    Row((1, 40, 50, 60), (70, 80, 2)),
    Row((1, 41), (71, 81, 91, 101, 111, 2)),
    Row((1, 5, 6, 7, 8, 9), (10,)),
]


def by_hand(model, row: Row) -> float:
    """Teacher forcing one row without padding, the way a textbook does it."""
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    logps = model(ids).logits[0].log_softmax(-1)
    start = len(row.prompt_ids)
    return sum(float(logps[start + offset - 1, token]) for offset, token in enumerate(row.completion_ids))


@torch.no_grad()
def test_log_probabilities_equal_teacher_forcing_one_row_at_a_time(tiny_model, runtime):
    model = load_policy(tiny_model, runtime)
    batched = all_sequence_logps(model, ROWS, pad_id=0, runtime=runtime)
    assert batched == pytest.approx([by_hand(model, row) for row in ROWS], abs=1e-4)


@torch.no_grad()
def test_padding_and_batch_size_do_not_change_log_probabilities(tiny_model, runtime):
    model = load_policy(tiny_model, runtime)
    alone = [all_sequence_logps(model, [row], pad_id=0, runtime=runtime)[0] for row in ROWS]
    assert all_sequence_logps(model, ROWS, pad_id=0, runtime=runtime) == pytest.approx(alone, abs=1e-5)


@torch.no_grad()
def test_token_logps_are_zero_outside_the_completion(tiny_model, runtime):
    model = load_policy(tiny_model, runtime)
    batch = collate(ROWS, pad_id=0, device=torch.device("cpu"))
    values = token_logps(model, batch)
    mask = batch.completion_mask[:, batch.first_target :]
    assert (values[mask == 0] == 0).all()
    assert (values[mask == 1] < 0).all()
    assert mask.sum() == sum(len(row.completion_ids) for row in ROWS)


def test_a_new_reward_model_scores_everything_zero_and_reads_the_last_token(tiny_model, runtime, tmp_path):
    model, codec = new_reward_model(tiny_model, runtime)
    assert all_scores(model, ROWS, pad_id=codec.pad_id, runtime=runtime) == [0.0, 0.0, 0.0]
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_parameter("score.weight"))
    save_model(model, codec.tokenizer, tmp_path / "reward", dtype="float32")
    loaded, codec = load_reward_model(tmp_path / "reward", runtime)
    alone = [all_scores(loaded, [row], pad_id=codec.pad_id, runtime=runtime)[0] for row in ROWS]
    assert len(set(alone)) == 3
    # batch of one and batch of many, padded, give the same score
    assert all_scores(loaded, [*ROWS, *ROWS], pad_id=codec.pad_id, runtime=runtime) == pytest.approx(
        alone + alone, abs=1e-5
    )
    changed = [Row(row.prompt_ids, (*row.completion_ids[:-1], 33)) for row in ROWS]
    assert all_scores(loaded, changed, pad_id=codec.pad_id, runtime=runtime) != pytest.approx(alone, abs=1e-3)


def test_saved_models_open_as_ordinary_transformers_folders(tiny_model, tmp_path, runtime):
    section = ModelSection(path=str(tiny_model))
    stats = import_model(section, tmp_path / "copy", runtime)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert stats["parameters"] == model.num_parameters()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template


def test_an_unknown_terminator_is_refused(tiny_model, tmp_path, runtime):
    with pytest.raises(InputError, match=r"model.terminator = '<\|nope\|>': .* has no such token"):
        import_model(ModelSection(path=str(tiny_model), terminator="<|nope|>"), tmp_path / "copy", runtime)


def without_pad(tiny_model, folder, *, rename: bool):
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if rename:
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace("<|pad|>", "<|other|>"))
    return ModelSection(path=str(folder))


def test_a_pad_token_that_is_the_eos_is_replaced_by_a_reserved_one(tiny_model, tmp_path, runtime):
    stats = import_model(without_pad(tiny_model, tmp_path / "bare", rename=False), tmp_path / "copy", runtime)
    assert (stats["pad"], stats["pad_added"]) == ("<|pad|>", False)


def test_without_a_reserved_token_the_vocabulary_grows_by_one(tiny_model, tmp_path, runtime):
    before = AutoModelForCausalLM.from_pretrained(tiny_model).get_input_embeddings().weight.shape[0]
    stats = import_model(without_pad(tiny_model, tmp_path / "bare", rename=True), tmp_path / "copy", runtime)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert (stats["pad"], stats["pad_added"]) == ("[PAD]", True)
    assert model.get_input_embeddings().weight.shape[0] == before + 1
    assert model.config.pad_token_id == before


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json in this folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a readable language model"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
            "weights of this language model",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-1000]
            ),
            "weights of this language model",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "not a readable language model"),
    ],
)
def test_unreadable_models_are_named(tiny_model, tmp_path, runtime, break_it, expected):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    break_it(folder)
    with pytest.raises(InputError, match=expected) as error:
        load_policy(folder, runtime)
    assert str(folder) in str(error.value)


def test_a_missing_folder_and_a_file_are_not_models(tmp_path, runtime):
    with pytest.raises(InputError, match="no such model folder"):
        load_policy(tmp_path / "missing", runtime)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; a model is a folder with config.json"):
        load_policy(tmp_path / "file", runtime)


def test_a_language_model_is_not_a_reward_model_and_the_other_way_round(tiny_model, tmp_path, runtime):
    with pytest.raises(InputError, match=r"is LlamaForCausalLM, not a scalar reward model"):
        load_reward_model(tiny_model, runtime)
    model, codec = new_reward_model(tiny_model, runtime)
    save_model(model, codec.tokenizer, tmp_path / "reward", dtype="float32")
    with pytest.raises(InputError, match=r"is LlamaForSequenceClassification, not a language model"):
        load_policy(tmp_path / "reward", runtime)


def test_reward_models_with_several_outputs_are_refused(tiny_model, tmp_path, runtime):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    model.save_pretrained(tmp_path / "many")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "many")
    with pytest.raises(InputError, match="has 3 outputs, so it is a multi-objective or classification model"):
        load_reward_model(tmp_path / "many", runtime)


def test_a_reward_model_whose_pad_is_its_eos_is_refused(tiny_model, tmp_path, runtime):
    model, codec = new_reward_model(tiny_model, runtime)
    codec.tokenizer.pad_token = codec.tokenizer.eos_token
    save_model(model, codec.tokenizer, tmp_path / "reward", dtype="float32")
    with pytest.raises(InputError, match="the reward model's pad token is its EOS token"):
        load_reward_model(tmp_path / "reward", runtime)
