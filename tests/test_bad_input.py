"""Wrong, damaged and hostile input through the command line: one message that says where, what and what next.

All runs share a workspace, so that whatever one of them leaves behind would spoil the next.
"""

import gzip
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoTokenizer

from annotate.test_judge import Server, question, said, shown
from prefloop.config import RuntimeSection
from prefloop.modeling import new_reward_model, save_model
from test_cli import Ran, prefloop

EXPERIMENT = """
name: bad
model: {model}
prompts: {folder}/prompts.jsonl
generate: {{num_completions: 2, max_new_tokens: 8}}
annotate: {{annotator: {{kind: rule, rule: length}}}}
policy: {{learning_rate: 1e-4, batch_size: 2, max_steps: 1}}
evaluate: {{num_prompts: 2}}
loop: {{batches: 1, prompts_per_batch: 4}}
runtime: {{device: cpu, threads: 1, generation_rows: 8}}
"""
STAGE = re.compile(r"\n  \(in (.+), artefact [a-z]+-[0-9a-f]{16}\)$")
ID = "[0-9a-f]{16}"
GOOD = [{"prompt": f"Tell a tale of Mina the fox who wanted a map {index}."} for index in range(8)]
LONG = [{"prompt": f"the map {index} " * 400} for index in range(8)]
"""Longer than the 512 tokens of the model's context."""
CONVERSATION = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


class Bench(NamedTuple):
    """An experiment of four prompts in a folder of its own, and the workspace of all tests."""

    folder: Path
    workspace: Path

    def run(self, *overrides: str) -> Ran:
        return prefloop("run", self.folder / "bad.yaml", *overrides, "-w", self.workspace)

    def write(self, name: str, *rows: object) -> Path:
        """A file of JSON lines; text stands in it as it is."""
        path = self.folder / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bad") / "workspace"


@pytest.fixture
def bench(workspace, tiny_model, tmp_path) -> Bench:
    bench = Bench(tmp_path, workspace)
    (tmp_path / "bad.yaml").write_text(EXPERIMENT.format(model=tiny_model, folder=tmp_path))
    bench.write("prompts.jsonl", *GOOD)
    return bench


def stopped(ran: Ran, *, stage: str | None) -> str:
    """The message of an input error, which names the stage it came up in unless it came up before any."""
    assert ran.code == 1, ran.errors
    assert ran.errors.startswith("InputError: ")
    message = ran.errors.removeprefix("InputError: ").removesuffix("\n")
    found = STAGE.search(message)
    assert (found[1] if found else None) == stage
    return STAGE.sub("", message)


# --- prompts ---------------------------------------------------------------------------------------------------------

LINES = "".join(json.dumps(row) + "\n" for row in GOOD)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.jsonl", b"", "prompts.jsonl: no rows"),
        ("prompts.jsonl", b"\n  \n", "prompts.jsonl: no rows"),
        (
            "prompts.jsonl.gz",
            gzip.compress(LINES.encode())[:-20],
            "prompts.jsonl.gz: the gzip file is cut off or damaged; copy it again",
        ),
        (
            "prompts.jsonl.gz",
            b"plain text",
            "prompts.jsonl.gz: not a gzip file, or a damaged one (Not a gzipped file (b'pl')); unpack or copy it again",
        ),
        (
            "prompts.jsonl",
            b"\x89PNG\r\n\x1a\n",
            "prompts.jsonl: not UTF-8 text (invalid start byte); convert it to UTF-8, or is it a binary file?",
        ),
        (
            "prompts.pkl",
            b"\x80\x04",
            "{path}: unknown kind of file; prefloop reads .jsonl, .json, .csv, .parquet, .txt, each also .gz",
        ),
        (
            "prompts.parquet",
            b"prompt\nHello\n",
            "prompts.parquet: not a readable parquet file (Parquet magic bytes not found in footer. Either the file is "
            "corrupted or this is not a parquet file.); copy it again",
        ),
    ],
    ids=["empty", "blank", "cut off", "not gzip", "binary", "unknown kind", "not parquet"],
)
def test_a_damaged_prompt_file_is_named_and_a_mended_one_goes_on(bench, name, content, message):
    path = bench.folder / name
    path.write_bytes(content)
    assert stopped(bench.run(f"prompts={path}"), stage="prompts") == message.format(path=path)
    bench.write("prompts.jsonl", *GOOD)
    mended = bench.run()
    assert (mended.code, mended.errors) == (0, "")


def test_a_missing_prompt_file_is_named_before_anything_runs(bench):
    path = bench.folder / "nowhere.jsonl"
    ran = bench.run(f"prompts={path}")
    assert stopped(ran, stage=None) == f"{path}: no such file or folder"
    assert ran.out == ""


def test_a_message_shows_names_as_they_are_typed(bench):
    # rich would draw :x: as a sign
    assert stopped(bench.run("prompts=hub:x"), stage=None) == (
        "hub:x: a data set of the hub is written hub:owner/name"
    )


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ('{"prompt": "x', "broken_json", "broken JSON (Unterminated string starting at, column 12); fix the row"),
        ({"prompt": 7}, "wrong_type", "prompt is a number, not text or a list of turns; fix the row"),
        ({"prompt": ["x"]}, "wrong_type", "prompt, turn 1, is text, not an object with role and content; fix the row"),
        ([1, 2], "wrong_type", "a row is an object with named fields, not a list; fix the row"),
        (
            {"text": "x"},
            "missing_field",
            "no field 'prompt'; the row has text; rename columns with fields: {prompt: your column}",
        ),
        ({"prompt": " "}, "empty_prompt", "the last user turn is empty; a prompt needs text"),
        (
            {"prompt": CONVERSATION},
            "assistant_final",
            "the last turn is the assistant's; a prompt must end with a user turn",
        ),
        (
            {"prompt": CONVERSATION[:1] * 2},
            "not_alternating",
            "turn 2 is the user's, not the assistant's; the two must take turns",
        ),
        (
            {"prompt": [{"role": "me", "content": "x"}]},
            "unknown_role",
            "prompt, turn 1: role 'me'; use system, user, assistant",
        ),
    ],
)  # fmt: skip
def test_a_bad_row_stops_the_run_with_its_number_or_is_dropped_and_counted(bench, row, reason, message):
    bench.write("prompts.jsonl", *GOOD[:3], row, *GOOD[3:])
    assert stopped(bench.run(), stage="prompts") == f"prompts.jsonl row 4: {message}"
    dropping = bench.run("prompts.bad_rows=drop", "loop.batches=0")
    assert dropping.code == 0
    (line,) = re.findall(r"^  prompts .* 2 rows; dropped (.+)$", dropping.out, re.MULTILINE)
    assert sorted(line.split(", ")) == sorted(["6 not_needed", f"1 {reason}"])


def test_duplicated_prompts_are_dropped_and_counted(bench):
    bench.write("prompts.jsonl", *GOOD, *GOOD[:3])
    ran = bench.run()
    assert ran.code == 0
    assert re.search(r"^  prompts .* 6 rows; dropped 3 duplicate, 2 not_needed$", ran.out, re.MULTILINE)


def test_too_few_prompts_say_what_the_run_needs_and_why_the_others_went(bench):
    path = bench.write("prompts.jsonl", *GOOD[:5], "x", "y", GOOD[0])
    assert stopped(bench.run("prompts.bad_rows=drop"), stage="prompts") == (
        f"{path}: 3 different prompts are left for training after holding out 2 for evaluation and 0 for the gate, but the "
        "run needs 4 (reward.seed_prompts 0 + loop.batches 1 x loop.prompts_per_batch 4); 2 were dropped as broken_json; "
        "1 were dropped as duplicate"
    )


def test_prompts_longer_than_the_context_are_dropped_and_counted(bench):
    bench.write("prompts.jsonl", *GOOD[:5], *LONG[:3])
    ran = bench.run("evaluate.num_prompts=0", "loop.prompts_per_batch=8")
    assert ran.code == 0
    assert re.search(r"^  generate .* 10 completions, .*; dropped 3 prompt_too_long$", ran.out, re.MULTILINE)
    assert re.search(r"^  policy .*, 5 pairs$", ran.out, re.MULTILINE)


# --- nothing left to train on ----------------------------------------------------------------------------------------


def test_only_too_long_prompts_stop_the_run_with_the_stage_that_dropped_them(bench):
    bench.write("prompts.jsonl", *LONG)
    ran = bench.run("evaluate.num_prompts=0")
    assert stopped(ran, stage="iteration 1, policy") == (
        "no preference pairs to train the policy on: generate dropped 4 prompt_too_long; shorten the prompts, or raise "
        "generate.max_prompt_length"
    )


TIES = "{kind: rule, rule: words, words: [zebra]}"


def test_only_ties_stop_the_run_with_what_to_do(bench):
    assert stopped(bench.run(f"annotate.annotator={TIES}"), stage="iteration 1, policy") == (
        "no preference pairs to train the policy on: select dropped 4 tie; choose an annotator that tells completions "
        "apart, or raise generate.temperature"
    )


def test_only_ties_stop_the_first_reward_model_too(bench):
    annotator = f"annotate.annotator={{kind: simulated, gold: {TIES}}}"
    assert stopped(bench.run(annotator, "reward.seed_prompts=2"), stage="reward") == (
        "no preference pairs to train the reward model on: select dropped 2 tie; choose an annotator that tells completions "
        "apart, or raise generate.temperature"
    )


def test_identical_completions_stop_the_run_with_what_to_do(bench):
    annotator = f"annotate.annotator={{kind: simulated, gold: {TIES}}}"
    assert stopped(bench.run(annotator, "generate.temperature=0"), stage="iteration 1, policy") == (
        "no preference pairs to train the policy on: annotate dropped 4 identical, select dropped 4 short; raise "
        "generate.temperature"
    )


def test_a_validation_share_that_takes_every_pair_is_named(bench):
    assert stopped(bench.run("policy.validation_share=0.999"), stage="iteration 1, policy") == (
        "no preference pairs to train the policy on: 4 held out by policy.validation_share"
    )


# --- pairs and recorded verdicts -------------------------------------------------------------------------------------


PAIRS = [{"prompt": f"p {index}", "chosen": f"good {index}", "rejected": "bad"} for index in range(3)]


def test_empty_completions_stop_the_run_or_are_dropped_and_counted(bench):
    path = bench.write(
        "pairs.jsonl", *PAIRS, PAIRS[0] | {"chosen": ""}, PAIRS[0] | {"rejected": " \n"}, PAIRS[0] | {"chosen": "bad"}
    )  # fmt: skip
    offline = (f"policy.offline_data.path={path}", "loop.batches=0", "evaluate.num_prompts=0")
    assert stopped(bench.run(*offline), stage="import") == (
        "pairs.jsonl row 4: chosen is empty; fix the row, or skip such rows with bad_rows: drop"
    )
    dropping = bench.run(*offline, "policy.offline_data.bad_rows=drop")
    assert dropping.code == 0
    assert "3 pairs (preference); dropped 2 empty_completion, 1 identical\n" in dropping.out


def recorded(bench: Bench, **last: object) -> list[str]:
    """Six recorded groups and their scores, the last with changes."""
    groups = [{"prompt": f"p {index}", "responses": ["good", "bad"], "rewards": [1, 0]} for index in range(6)]
    path = bench.write("groups.jsonl", *groups[:5], groups[5] | last)
    return [
        "prompts=null", "evaluate.num_prompts=0", f"generate.engine={{kind: recorded, source: {path}}}",
        f"annotate.annotator={{kind: recorded, path: {path}}}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([float("nan"), 1], "the score of completion 0 is nan, not a finite number; fix the row"),
        ([1, float("inf")], "the score of completion 1 is inf, not a finite number; fix the row"),
        (["1", 0], "the score of completion 0 is '1'; use a number or null"),
        ([1], "1 scores for 2 completions; give one each, null for not judged"),
    ],
)
def test_recorded_scores_that_are_none_are_named_by_row(bench, rewards, message):
    assert (
        stopped(bench.run(*recorded(bench, rewards=rewards)), stage="prompts")
        == f"groups.jsonl row 6: {message}"
    )
    assert bench.run(*recorded(bench)).code == 0


def test_a_recorded_annotator_cannot_judge_new_samples(bench):
    *_, annotator = recorded(bench)
    message = stopped(bench.run(annotator), stage="iteration 1, annotate")
    assert re.fullmatch(
        rf"{bench.folder}/groups.jsonl: no score of completion {ID} \(position 0\) of prompt {ID}; a recorded annotator can "
        "only judge the completions of its own file",
        message,
    )


# --- experiment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generate.num_completions=1", "generate.num_completions = 1: selection max_min needs at least 2"),
        (
            "annotate.annotator={kind: oracle}",
            "annotate.annotator.kind = 'oracle': there is none of this name; choose reward_model, pairwise, rule, function, "
            "judge, simulated, recorded, human, rule_model, composite",
        ),
        ("policy.learning_rat=1", "policy.learning_rat: unknown key; did you mean policy.learning_rate?"),
        ("loop.batches=x", "loop.batches = 'x': Input should be a valid integer, unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_an_experiment_that_cannot_work_is_refused_before_anything_runs(bench, override, message):
    ran = bench.run(override)
    assert stopped(ran, stage=None) == f"{bench.folder}/bad.yaml: {message}"
    assert ran.out == ""


@pytest.mark.parametrize("also", ["reward.seed_prompts=2", "loop.gate={metric: score, num_prompts: 2}"])
def test_prompts_are_made_for_the_first_labels_and_the_gate_too(bench, also):
    path = bench.write("pairs.jsonl", *PAIRS)
    scorer = "{kind: rule, rule: length}"
    ran = prefloop(
        "plan", bench.folder / "bad.yaml", f"policy.offline_data={path}", "loop.batches=0", "evaluate.num_prompts=0",
        f"annotate.annotator={{kind: simulated, gold: {scorer}}}", f"evaluate.scorer={scorer}", also,
    )  # fmt: skip
    assert ran.code == 0


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_from_scratch_needs_text(bench):
    overrides = ("model=builtin:tiny-llama", "loop.batches=0")
    assert stopped(bench.run(*overrides), stage=None) == (
        "model.path = 'builtin:tiny-llama': a model from scratch needs text to learn from; name sft.text"
    )


def test_a_template_that_is_not_there_is_named(bench):
    assert stopped(bench.run("model.template=nowhere.jinja"), stage="base") == (
        "model.template = 'nowhere.jinja': not `auto`, `plain`, a template, or a readable file"
    )


TURNS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_a_template_that_adds_a_second_bos_is_refused(bench, tiny_model):
    template = json.dumps("{{ bos_token }}{{ bos_token }}" + TURNS)
    assert stopped(bench.run(f"model.template={template}"), stage="base") == (
        f"{tiny_model}: the chat template adds a second BOS (<|bos|>); remove it from the template"
    )


def test_a_template_may_be_longer_than_a_file_name(bench):
    template = "{# " + "a long remark " * 50 + "#}" + TURNS
    assert bench.run(f"model.template={json.dumps(template)}").code == 0


def rewritten(name: str, **changes: object) -> Callable[[Path], object]:
    """Changes keys of a JSON file of a model folder."""

    def rewrite(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return rewrite


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "no config.json in this folder, so it is not a transformers model",
        ),
        (
            lambda folder: (folder / "config.json").write_text("[]"),
            "not a readable tokenizer: TypeError: transformers.configuration_utils.PreTrainedConfig() argument after ** "
            "must be a mapping, not list; copy or download it again",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "not a readable tokenizer: KeyError: 'added_tokens'; copy or download it again",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
            "not a readable tokenizer: AttributeError: 'list' object has no attribute 'get'; copy or download it again",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "not a readable language model: Error no file named model.safetensors, or pytorch_model.bin, found in directory "
            "{folder}.",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 1000),
            "the weights of this language model cannot be read (Error while deserializing header: header too large); copy "
            "or download them again",
        ),
        (
            rewritten("config.json", num_hidden_layers=5),
            "weights are missing or have other shapes than config.json says: model.layers.4.input_layernorm.weight and 8 "
            "more; copy or download the folder again",
        ),
        (
            rewritten("config.json", intermediate_size=192, num_hidden_layers=1),
            "weights are missing or have other shapes than config.json says: model.layers.0.mlp.down_proj.weight and 2 "
            "more; copy or download the folder again",
        ),
        (
            rewritten("config.json", architectures=["LlamaForSequenceClassification"]),
            "is LlamaForSequenceClassification, not a language model (…ForCausalLM)",
        ),
        (
            rewritten("config.json", model_type="bert", architectures=["BertForMaskedLM"]),
            "is BertForMaskedLM, not a language model (…ForCausalLM)",
        ),
    ],
)  # fmt: skip
def test_a_model_folder_that_cannot_be_used_says_what_is_wrong_with_it(bench, tiny_model, damage, message):
    folder = bench.folder / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    assert stopped(bench.run(f"model={folder}"), stage="base") == f"{folder}: {message.format(folder=folder)}"


def test_a_model_folder_that_is_not_there_is_named_before_anything_runs(bench):
    assert (
        stopped(bench.run(f"model={bench.folder}/nowhere"), stage=None)
        == f"{bench.folder}/nowhere: no such file or folder"
    )


@pytest.fixture
def reward_folder(bench, tiny_model) -> Path:
    model, codec = new_reward_model(tiny_model, RuntimeSection(device="cpu"))
    save_model(model, codec.tokenizer, bench.folder / "reward", dtype="float32")
    return bench.folder / "reward"


def loop_reward(folder: Path) -> tuple[str, str]:
    return f"reward.model={folder}", "annotate.annotator={kind: reward_model}"


def test_a_reward_model_whose_pad_is_its_eos_is_refused_in_every_role(bench, reward_folder):
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(reward_folder)
    message = (
        f"{reward_folder}: the reward model's pad token is its EOS token, so its scores would not see the end of an answer; "
        "give it a pad token of its own"
    )
    outside = f"{{kind: reward_model, model: {reward_folder}}}"
    assert stopped(bench.run(*loop_reward(reward_folder)), stage="reward") == message
    assert stopped(bench.run(f"annotate.annotator={outside}"), stage="iteration 1, annotate") == message
    assert stopped(bench.run(f"evaluate.scorer={outside}"), stage="evaluate") == message


def test_a_language_model_is_no_reward_model(bench, tiny_model):
    assert stopped(bench.run(*loop_reward(tiny_model)), stage="reward") == (
        f"{tiny_model}: is LlamaForCausalLM, not a scalar reward model (…ForSequenceClassification)"
    )


def test_a_reward_model_without_its_head_is_refused(bench, tiny_model, reward_folder):
    shutil.copy(tiny_model / "model.safetensors", reward_folder)
    assert stopped(bench.run(*loop_reward(reward_folder)), stage="reward") == (
        f"{reward_folder}: weights are missing or have other shapes than config.json says: score.weight; copy or download "
        "the folder again"
    )


# --- a function of the user's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(mine.py line 2\); make it return a number for any text"),
        ("{}['x']", r"KeyError: 'x' \(mine.py line 2\); make it return a number for any text"),
        ("'good'", "returned 'good', a str; return a float"),
        ("None", "returned None, a NoneType; return a float"),
        ("float('nan')", "returned nan; a score must be finite"),
    ],
)  # fmt: skip
def test_a_function_that_fails_is_named_with_the_prompt_and_a_mended_one_goes_on(bench, body, message):
    mine = bench.folder / "mine.py"
    annotator = f"annotate.annotator={{kind: function, target: '{mine}:score'}}"
    mine.write_text(f"def score(prompt, completion, answer):\n    return {body}\n")
    told = stopped(bench.run(annotator), stage="iteration 1, annotate")
    assert re.fullmatch(rf"{mine}:score: prompt {ID}, completion {ID}: {message}", told), told
    mine.write_text("def score(prompt, completion, answer):\n    return len(completion)\n")
    mended = bench.run(annotator)
    assert mended.code == 0
    assert re.search(r"^  generate +kept ", mended.out, re.MULTILINE)


def test_a_scorer_that_fails_in_the_evaluation_is_named_as_well(bench):
    mine = bench.folder / "mine.py"
    mine.write_text("def score(prompt, completion, answer):\n    raise RuntimeError('no')\n")
    told = stopped(bench.run(f"evaluate.scorer={{kind: function, target: '{mine}:score'}}"), stage="evaluate")
    assert told.endswith("RuntimeError: no (mine.py line 2); make it return a number for any text")


# --- a judge behind an endpoint --------------------------------------------------------------------------------------


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def judge(url: str) -> str:
    options = "model: m, retries: 0, timeout_s: 0.3, concurrency: 1, api_key_env: NO_SUCH_KEY"
    return f"annotate.annotator={{kind: judge, base_url: '{url}', {options}}}"


def unavailable(ran: Ran, url: str) -> str:
    """What the last try of an unavailable judge met."""
    assert ran.code == 4, ran.errors
    said = re.fullmatch(
        rf"Unavailable: {re.escape(url)}/chat/completions: no answer after 1 tries; the last one: (.+)\. Verdicts so far "
        r"are kept: see to the server, then run again\n  \(in iteration 1, annotate, artefact annotate-[0-9a-f]{16}\)\n",
        ran.errors,
    )
    assert said is not None, ran.errors
    return said[1]


def test_a_judge_that_is_down_is_named_with_its_address(bench, server):
    server.close()
    ran = bench.run(judge(server.url))
    assert unavailable(ran, server.url) == "ConnectError: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (lambda: time.sleep(0.5) or said("[[A]]"), "nothing within 0.3 s (ReadTimeout)"),
        (lambda: (200, {}, "<html>busy</html>"), "HTTP 200 without a chat completion in it: <html>busy</html>"),
        (lambda: (429, {}, "slow down"), "HTTP 429: slow down"),
        (lambda: (503, {}, "out of memory"), "HTTP 503: out of memory"),
    ],
    ids=["slow", "garbage", "full", "broken"],
)  # fmt: skip
def test_when_the_judge_comes_back_the_run_goes_on_and_no_question_is_paid_twice(
    bench, server, failure, message
):
    paid: list[str] = []
    healthy = 3

    def answer(body: dict) -> tuple[int, dict[str, str], str]:
        if len(paid) >= healthy:
            return failure()
        paid.append(question(body))
        first, second = shown(body)
        return said("[[A]]" if first < second else "[[B]]")

    server.answer = answer
    # another text for each case, because replies are kept for the whole workspace
    bench.write("prompts.jsonl", *({"prompt": f"{message} {index}"} for index in range(8)))
    assert unavailable(bench.run(judge(server.url)), server.url) == message
    assert len(paid) == 3
    healthy = 8
    back = bench.run(judge(server.url))
    assert (back.code, back.errors) == (0, "")
    assert re.search(r"^  generate +kept ", back.out, re.MULTILINE)
    assert len(paid) == len(set(paid)) == 8  # four prompts in both orders


def test_a_key_that_the_judge_refuses_is_an_input_error_that_names_the_variable(bench, server):
    server.answer = lambda body: (401, {}, "who are you?")
    assert stopped(bench.run(judge(server.url)), stage="iteration 1, annotate") == (
        f"{server.url}: HTTP 401: who are you?; is the key in NO_SUCH_KEY right?"
    )
