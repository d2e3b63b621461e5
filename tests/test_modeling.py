import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefloop.config import ModelSection
from prefloop.interfaces import InputError
from prefloop.modeling import (
    import_model,
    load_policy,
    load_reward_model,
    new_reward_model,
    save_model,
)


def test_saved_models_open_as_ordinary_transformers_folders(tiny_model, tmp_path, runtime):
    section = ModelSection(path=str(tiny_model))
    stats = import_model(section, tmp_path / "copy", runtime)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert stats["parameters"] == model.num_parameters()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template


def test_a_model_has_the_same_bytes_whether_the_hub_was_switched_off_or_not(tiny_model, tmp_path, runtime):
    for switched_off in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model, local_files_only=switched_off)
        save_model(load_policy(tiny_model, runtime), tokenizer, tmp_path / str(switched_off), dtype="float32")
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("True", "False")
    )
    assert "tokenizer_config.json" in one
    assert one == other


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
