from pathlib import Path

import pytest
from pydantic import Field

from prefloop import config
from prefloop.config import Experiment, Section, hashed, load, parse
from prefloop.interfaces import InputError

SMALL = """
prompts: prompts.jsonl
sft: {text: stories.txt}
reward: {model: scorer}
"""


def read(text: str = SMALL, *overrides: str) -> Experiment:
    return parse(text, overrides, where="exp.yaml")


def message(*overrides: str, text: str = SMALL) -> str:
    with pytest.raises(InputError) as error:
        read(text, *overrides)
    return str(error.value)


def test_a_hub_experiment_fits_in_twelve_lines():
    text = """\
name: my-run
model: Qwen/Qwen2.5-0.5B-Instruct
prompts: prompts.jsonl
reward:
  model: Skywork/Skywork-Reward-V2-Qwen3-0.6B
generate:
  num_completions: 8
  max_new_tokens: 1024
loop:
  batches: 3
  prompts_per_batch: 20000
"""
    x = read(text)
    assert len(text.splitlines()) <= 12
    assert (x.model.path, x.loop.iterations) == ("Qwen/Qwen2.5-0.5B-Instruct", 3)


def test_an_unknown_key_names_the_nearest_right_one():
    assert message("policy.objective.betta=1") == (
        "exp.yaml: policy.objective.betta: unknown key; did you mean policy.objective.beta?"
    )
    assert message("generate.num_completion=4") == (
        "exp.yaml: generate.num_completion: unknown key; did you mean generate.num_completions?"
    )


def test_an_unknown_section_lists_what_there_is():
    assert "known here: name, seed, model, prompts" in message("zzz=1")


@pytest.mark.parametrize("text", ["5e-7", "0.0000005", "'5e-7'"])
def test_scientific_notation_is_a_number(text):
    assert read(SMALL, f"policy.learning_rate={text}").policy.learning_rate == 5e-7


def test_an_override_of_an_optional_number_is_a_number():
    assert read(SMALL, "loop.gate.max_kl=0.5").loop.gate.max_kl == 0.5
    assert read(SMALL, "loop.max_labels=100").loop.max_labels == 100


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("policy.learning_rate=fast", "policy.learning_rate = 'fast': Input should be a valid number"),
        ("policy.learning_rate=.nan", "policy.learning_rate = nan: Input should be a finite number"),
        ("policy.learning_rate=-1", "policy.learning_rate = -1: Input should be greater than 0"),
        ("loop.refresh_every=0", "refresh_every must be at least 1 or 'never'"),
        ("generate.num_completions=1", "generate.num_completions = 1: selection max_min needs at least 2"),
        ("generate.engine.kind=vlm", "'vlm'"),
        (
            "annotate.ask=all_pairs",
            "ask: all_pairs needs an annotator that compares; reward_model gives scores",
        ),
        ("loop.gate.metric=score", "loop.gate.metric: score needs evaluate.scorer"),
        ("name=../evil", "name = '../evil'"),
        ("reward.seed_prompts=4", "labels from a reward model cannot train it"),
    ],
)
def test_wrong_values_are_named(override, expected):
    assert expected in message(override)


def test_people_are_not_asked_to_rank_more_than_they_can_keep_apart():
    asked = ("annotate.annotator.kind=human", "annotate.annotator.task=rank")
    assert read(SMALL, *asked, "generate.num_completions=9").annotate.asks == "ranking"
    expected = (
        "generate.num_completions = 10: people rank at most 9; sample fewer, or set annotate.annotator.task"
    )
    assert expected in message(*asked, "generate.num_completions=10")


def test_unknown_annotators_list_the_known_ones():
    text = message("annotate.annotator.kind=reward_mode")
    assert "'reward_mode'" in text
    assert "choose reward_model, pairwise, rule, " in text


def test_overrides_without_an_equals_sign_are_explained():
    assert message("loop.batches") == (
        "'loop.batches': an override looks like section.key=value, for instance loop.batches=3"
    )


def test_missing_prompts_and_models_are_explained():
    assert "prompts: missing" in message(text="model: x")
    assert "annotate.annotator: reward_model needs a reward model" in message(
        text="prompts: p.jsonl\nmodel: x"
    )
    assert "sft.text: a model from scratch needs text" in message(text="prompts: p.jsonl\nreward: {model: x}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", "broken YAML"),
        (b"- 1", "an experiment is a YAML mapping, not list"),
        (b"\xff\xfe\x00", "not a UTF-8 text file"),
        (b"", "prompts: missing"),
    ],
)
def test_unreadable_experiments_are_named(tmp_path, content, expected):
    path = tmp_path / "exp.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        load(path)
    with pytest.raises(InputError, match=r"missing\.yaml: cannot read it"):
        load(tmp_path / "missing.yaml")


def test_arms_are_the_experiment_with_changes():
    x = read(SMALL + "arms: {offline: {loop.refresh_every: never}, strict: {policy.objective.beta: 0.5}}")
    assert (x.loop.iterations, x.arm("offline").loop.iterations) == (3, 1)
    assert x.arm("strict").policy.objective.beta == 0.5
    assert x.arm("offline").arms == {}
    assert "arms.bad: loop.refreshevery: unknown key; did you mean loop.refresh_every?" in message(
        text=SMALL + "arms: {bad: {loop.refreshevery: 1}}"
    )


@pytest.mark.parametrize(
    ("batches", "every", "expected"),
    [
        (3, 1, [[0], [1], [2]]),
        (5, 2, [[0, 1], [2, 3], [4]]),
        (4, "never", [[0, 1, 2, 3]]),
        (0, 1, []),
    ],
)
def test_the_knob_cuts_label_batches_into_iterations(batches, every, expected):
    loop = config.LoopSection(batches=batches, refresh_every=every)
    assert [list(loop.batches_of(i)) for i in range(loop.iterations)] == expected


def test_every_key_has_a_one_line_description():
    def described(section: type[Section]) -> None:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            for inner in config.sections_in(field.annotation):
                described(inner)

    described(Experiment)


class Old(Section):
    width: int = 4


class New(Section):
    width: int = 4
    depth: int = Field(default=1, json_schema_extra={"inert": 1})


class Changed(Section):
    width: int = 8


def test_a_new_key_at_its_inert_value_keeps_old_keys_and_a_changed_default_does_not():
    assert hashed(New()) == hashed(Old())
    assert hashed(New(depth=2)) != hashed(Old())
    assert hashed(Changed()) != hashed(Old())


def test_shorthand_strings_can_be_refined_by_overrides():
    x = read(SMALL, "prompts=other.jsonl", "prompts.limit=3")
    assert (x.prompts.path, x.prompts.limit) == ("other.jsonl", 3)


def test_presets_are_valid_experiments():
    folder = Path(config.__file__).parent / "presets"
    for path in folder.glob("*.yaml"):
        load(path)


def test_every_key_is_read_somewhere():
    """A key that is parsed and ignored is a bug: each one is an attribute that the code reads, or a loss's parameter."""
    import re

    root = Path(config.__file__).parent.parent
    code = "\n".join(path.read_text() for path in root.rglob("*.py") if path.parent.name != "config")
    own = [line for path in (root / "config").glob("*.py") for line in path.read_text().splitlines()]
    code += "\n" + "\n".join(line for line in own if "self." in line or "one." in line)
    losses = "\n".join(path.read_text() for path in (root / "losses").glob("*.py"))
    every_key = config.keys()
    unread = [
        key
        for key in every_key
        for name in [key.rpartition(".")[2]]
        if not re.search(rf"\.{name}\b|\"{name}\"\]", code)
        and not re.search(rf"\b{name}: (float|Literal)", losses)
    ]
    assert unread == []


def test_what_vllm_would_draw_otherwise_is_refused():
    vllm = "generate.engine={kind: vllm}"
    both = message(vllm, "generate.min_p=0.1", "generate.top_p=0.9")
    assert "min_p and top_p: vLLM cuts off by min_p first" in both
    assert "temperature = 0.005: vLLM takes 0, or 0.01 to 2" in message(vllm, "generate.temperature=0.005")
    mixed = "generate.temperatures=[{count: 4, temperature: 1}, {count: 4, temperature: 2.5}]"
    assert "temperature = 2.5" in message(vllm, mixed)
    for fine in ("generate.temperature=0", "generate.min_p=0.1", "generate.top_p=0.9"):
        assert read(SMALL, vllm, fine).generate.engine.kind == "vllm"
    assert read(SMALL, "generate.min_p=0.1", "generate.top_p=0.9").generate.top_p == 0.9


def test_how_vllm_runs_is_not_hashed_but_that_it_is_vllm_is():
    plain = read(SMALL, "generate.engine={kind: vllm}").generate
    tuned = read(
        SMALL,
        "generate.engine={kind: vllm, keep: true, tensor_parallel_size: 2, memory_share: 0.5, enforce_eager: true}",
    ).generate
    assert tuned.engine.tensor_parallel_size == 2
    assert hashed(plain) == hashed(tuned)
    assert hashed(plain) != hashed(read().generate)
