"""SFT, reward and policy training on a tiny model: what carries loss, what moves, what is stored."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefloop import tales
from prefloop.batches import TokenGroup
from prefloop.config import PolicySection, RewardSection, RuntimeSection, SftSection
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import InputError, no_progress
from prefloop.launch import run_job
from prefloop.losses import PairLogps, dpo_loss
from prefloop.modeling import load_codec, load_policy, load_reward_model
from prefloop.records import Demonstration, Message, PreferencePair, Prompt, file_completion
from prefloop.train.preference import PolicyJob, Preferences, encode_pairs, train_policy
from prefloop.train.reward import RewardJob, fit_reward_group, train_reward
from prefloop.train.sft import SftJob, draw_texts, encode, train_sft


def pair(number: int, chosen: str, rejected: str) -> PreferencePair:
    prompt = Prompt.of((Message(role="user", content=f"Write about a fox named Ada and map {number}."),))
    return PreferencePair.of(
        prompt,
        file_completion(prompt, chosen, 0),
        file_completion(prompt, rejected, 1),
        margin=1.0,
        annotator="test",
    )


PAIRS = tuple(pair(number, "Ada the fox smiled.", "It rained all day in the mud.") for number in range(8))


def policy_job(
    tiny_model: Path, out: Path, *, pairs=PAIRS, runtime=None, reference=None, **options
) -> PolicyJob:
    out.mkdir(exist_ok=True)
    return PolicyJob(
        start=tiny_model,
        reference=reference or tiny_model,
        pairs=pairs,
        validation=(),
        options=PolicySection(**{"learning_rate": 1e-3, "batch_size": 4, "epochs": 4, **options}),
        steps=None,
        dtype="float32",
        seed=0,
        runtime=runtime or RuntimeSection(device="cpu"),
        out=out,
    )


def state(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(one) for one in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["dpo", "ipo", "hinge", "raft"])
def test_the_policy_learns_to_prefer_the_chosen(tiny_model, tmp_path, kind):
    train_policy(policy_job(tiny_model, tmp_path, objective={"kind": kind}), no_progress)
    codec = load_codec(tiny_model)
    groups, _ = encode_pairs(PAIRS, codec, PolicySection(), seed=0)
    runtime = RuntimeSection(device="cpu")

    def chosen_minus_rejected(folder):
        module = LogpsModule(load_policy(folder, runtime), pad_id=codec.pad_id, runtime=runtime)
        logps = all_sequence_logps(module, [one.tokens for one in groups], runtime)
        return sum(chosen - rejected for chosen, rejected in logps)

    assert chosen_minus_rejected(tmp_path / "model") > chosen_minus_rejected(tiny_model) + 1


def test_dpo_starts_at_log_two_with_no_margin(tiny_model, tmp_path):
    train_policy(policy_job(tiny_model, tmp_path), no_progress)
    first = metrics(tmp_path)[0]
    assert first["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["train/margin"] == pytest.approx(0, abs=1e-5)
    assert first["train/chosen_logps"] < 0


def test_microbatches_do_not_change_the_policy(tiny_model, tmp_path):
    folders = []
    for tokens in (100_000, 1):
        runtime = RuntimeSection(device="cpu", microbatch_tokens=tokens)
        train_policy(policy_job(tiny_model, tmp_path / str(tokens), runtime=runtime), no_progress)
        folders.append(tmp_path / str(tokens) / "model")
    one, other = map(state, folders)
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_the_same_policy_as_one(tiny_model, tmp_path):
    folders = []
    for processes in (1, 2):
        runtime = RuntimeSection(device="cpu", num_processes=processes, threads=1)
        job = policy_job(tiny_model, tmp_path / str(processes), runtime=runtime)
        stats = run_job(train_policy, job, runtime, no_progress)
        assert stats["steps"] == 8
        folders.append(job.out)
    losses = [[row["train/loss"] for row in metrics(folder)] for folder in folders]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    one, other = (state(folder / "model") for folder in folders)
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-5)


def test_adapters_train_fewer_weights_and_are_merged_into_an_ordinary_folder(tiny_model, tmp_path):
    train_policy(policy_job(tiny_model, tmp_path, lora={"rank": 4}), no_progress)
    before, after = state(tiny_model), state(tmp_path / "model")
    assert before.keys() == after.keys()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    changed = (
        after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    )
    assert 0 < torch.linalg.matrix_rank(changed) <= 4
    assert not list((tmp_path / "model").glob("adapter*"))


def test_the_reference_is_computed_once_and_reused(tiny_model, tmp_path, monkeypatch):
    from prefloop.train import preference

    loaded = []

    def counting(path, runtime):
        loaded.append(Path(path))
        return load_policy(path, runtime)

    monkeypatch.setattr(preference, "load_policy", counting)
    kept = tmp_path / "logps"
    reference = tmp_path / "reference"
    shutil.copytree(tiny_model, reference)
    for name, pairs in {"one": PAIRS[:4], "more": PAIRS, "same": PAIRS[2:]}.items():
        job = policy_job(tiny_model, tmp_path / name, reference=reference, pairs=pairs)
        train_policy(replace(job, reference_logps=kept), no_progress)
    assert [one for one in loaded if one == reference] == [
        reference
    ] * 2  # for four pairs, for four more, and never again
    alone = policy_job(tiny_model, tmp_path / "alone", reference=reference, pairs=PAIRS[2:])
    train_policy(alone, no_progress)
    assert metrics(tmp_path / "alone")[0]["train/loss"] == pytest.approx(
        metrics(tmp_path / "same")[0]["train/loss"], abs=1e-6
    )


def test_pair_loss_is_the_formula_on_summed_token_log_probabilities(tiny_model):
    runtime = RuntimeSection(device="cpu")
    codec = load_codec(tiny_model)
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=codec.pad_id, runtime=runtime)
    group = encode_pairs(PAIRS, codec, PolicySection(), seed=0)[0][0]
    spread = tuple(
        torch.full((len(ids),), total / len(ids))
        for ids, total in zip(group.tokens.completions, (-30.0, -35.0), strict=True)
    )
    item = replace(group, reference=spread)
    with torch.no_grad():
        loss, found = Preferences(module, PolicySection()).loss(module, [item])
    ((chosen, rejected),) = all_sequence_logps(module, [group.tokens], runtime)
    one = torch.ones(1)
    expected = dpo_loss(
        PairLogps(chosen * one, rejected * one, -30 * one, -35 * one, one, one),
        beta=0.1,
        label_smoothing=0.0,
    )
    torch.testing.assert_close(loss, expected.sum(), rtol=0, atol=1e-4)
    assert float(found["margin"]) == pytest.approx(0.1 * (chosen + 30 - rejected - 35), abs=1e-4)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_an_error(tiny_model, tmp_path):
    with pytest.raises(
        InputError, match=r"nothing of the completion fits; policy.max_prompt_length \(1000\) must be"
    ):
        train_policy(policy_job(tiny_model, tmp_path, max_length=8), no_progress)


# --- reward models ---------------------------------------------------------------------------------------------------


def test_a_reward_model_learns_to_score_the_chosen_higher(tiny_model, tmp_path):
    job = RewardJob(
        trunk=str(tiny_model),
        pairs=PAIRS[:6],
        validation=PAIRS[6:],
        options=RewardSection(learning_rate=1e-3, batch_size=3, epochs=10),
        dtype="float32",
        seed=0,
        runtime=RuntimeSection(device="cpu"),
        out=tmp_path,
    )
    stats = train_reward(job, no_progress)
    assert metrics(tmp_path)[0]["train/loss"] == pytest.approx(0.693147, abs=1e-6)
    assert stats["validation"]["accuracy"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    assert stats["validation"]["length_baseline"]["mean"] == 0.0  # the rejected text is the longer one
    assert stats["validation"]["ties"] == 0
    load_reward_model(tmp_path / "model", RuntimeSection(device="cpu"))


def test_reward_rows_are_cut_on_the_left():
    group = TokenGroup((1, 2, 3, 4), ((5, 6, 7), (8,)))
    assert fit_reward_group(group, 5) == (TokenGroup((3, 4), ((5, 6, 7), (8,))), 2)
    assert fit_reward_group(group, 2) == (TokenGroup((), ((6, 7), (8,))), 2)
    assert fit_reward_group(group, 7) == (group, 0)


# --- supervised fine-tuning ------------------------------------------------------------------------------------------


TWO_TURNS = Demonstration.of(
    (
        Message(role="system", content="Be kind."),
        Message(role="user", content="Tell a tale of Ada the fox who wanted a map."),
        Message(role="assistant", content="Ada smiled."),
        Message(role="user", content="And then?"),
        Message(role="assistant", content="She went home alone."),
    )
)


def test_only_the_last_answer_and_its_terminator_carry_loss(tiny_model):
    codec = load_codec(tiny_model)
    (row,), _ = encode([TWO_TURNS], [], codec, SftSection())
    (answer,) = row.completions
    assert codec.decode(answer) == "She went home alone."
    assert answer[-1] == codec.terminator_id
    assert "And then?" in codec.tokenizer.decode(list(row.prompt_ids))
    (everything,), _ = encode([TWO_TURNS], [], codec, SftSection(loss_on="all"))
    assert everything.num_completion_tokens == row.num_tokens - 1


def test_text_makes_up_its_share_of_the_rows():
    texts = tales.texts(10)
    assert len(draw_texts(texts, 80, 0.2, seed=0)) == 20
    assert draw_texts(texts, 0, 0.2, seed=0) == texts
    assert draw_texts((), 80, 0.2, seed=0) == []


def test_fine_tuning_lowers_the_loss_and_stops_where_it_should(tiny_model, tmp_path):
    job = SftJob(
        start=tiny_model,
        demonstrations=tuple(tales.demonstrations(64)),
        texts=(),
        options=SftSection(learning_rate=3e-3, batch_size=4, epochs=5, max_length=256),
        dtype="float32",
        seed=0,
        runtime=RuntimeSection(device="cpu"),
        out=tmp_path,
    )
    stats = train_sft(job, no_progress)
    assert stats["loss_last"] < 0.8 * stats["loss_first"]
    assert stats["num_rows"] == 64
    codec = load_codec(tmp_path / "model")
    assert codec.tokenizer.chat_template == load_codec(tiny_model).tokenizer.chat_template
