"""`prefloop reward-card`: which pairs are judged, what it prints and writes, and what stops it."""

import gzip
import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from prefloop import config, pipeline
from prefloop.annotate.pairwise import load_pairwise
from prefloop.card import report_style
from prefloop.card.asking import groups_of
from prefloop.card.pairs import read_card_pairs
from prefloop.config import PairwiseAnnotator, RuntimeSection, SourceSection
from prefloop.evaluate.card_types import Opinion
from prefloop.evaluate.reward_card import RewardCard, reward_card
from prefloop.interfaces import InputError, PairTask
from prefloop.modeling import new_reward_model, save_model
from prefloop.pipeline import Watcher
from prefloop.store import Workspace
from small import SMALL
from test_cli import Ran, prefloop
from test_report_browser import CHROMIUM, HOSTILE, browse

HEAD = "score.weight"
QUESTION = "Tell a tale of Mina the fox."
ROWS = [
    {"prompt": QUESTION, "chosen": "Mina found a map.", "rejected": "No."},
    {
        "prompt": "Tell a tale of a bear.",
        "chosen": "A bear slept.",
        "rejected": "A bear slept and slept and slept.",
    },
    {"prompt": "Tell a tale of a boat.", "chosen": "A boat sailed home.", "rejected": HOSTILE},
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path) -> Path:
    return write(tmp_path / "rows.jsonl", *ROWS)


@pytest.fixture(scope="module")
def untrained(tiny_model, tmp_path_factory) -> Path:
    """A reward model whose head is zero."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    model, codec = new_reward_model(tiny_model, RuntimeSection(device="cpu"))
    save_model(model, codec.tokenizer, folder, dtype="float32")
    return folder


def with_head(folder: Path, new: Path, value: float) -> Path:
    """A copy whose head has one weight that is not zero."""
    shutil.copytree(folder, new)
    weights = load_file(new / "model.safetensors")
    weights[HEAD][0, 0] = value
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    return new


def measured(ran: Ran) -> dict:
    assert (ran.code, ran.errors) == (0, "")
    return json.loads(ran.out)["measured"]


# --- pairs -----------------------------------------------------------------------------------------------------------


def read(path: Path, **options):
    source = SourceSection.model_validate({"path": str(path), **options})
    return read_card_pairs(Workspace(path.parent / "workspace"), source)


def sides(found) -> list[tuple[str, str, float]]:
    return [(one.chosen.text, one.rejected.text, one.margin) for one in found.pairs]


def test_a_ranking_is_all_its_pairs(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "?", "ranked_responses": ["a", "b", "c"]},
        {"prompt": "??", "ranked_responses": ["a"]},
    )
    found = read(path)
    assert sides(found) == [("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", 1.0)]
    assert (found.rows_in, found.rows_out, found.dropped, found.pairs_dropped) == (2, 1, {"short": 1}, {})


def test_scores_are_all_pairs_that_they_tell_apart(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "?", "responses": ["a", "b", "c", "d"], "rewards": [1, 3, None, 1]},
        {"prompt": "??", "responses": ["a", "b"], "rewards": [2, 2]},
    )
    found = read(path)
    assert sides(found) == [("b", "a", 2.0), ("b", "d", 2.0)]
    assert (found.rows_in, found.rows_out, found.dropped) == (2, 1, {"tie": 1})
    assert found.pairs_dropped == {"not_told_apart": 4}


def test_completions_without_scores_are_no_pairs(tmp_path):
    with pytest.raises(InputError, match="row 1: the completions have no scores"):
        read(write(tmp_path / "rows.jsonl", {"prompt": "?", "responses": ["a", "b"]}))


def test_columns_of_groups_may_have_other_names(untrained, tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "?", "answers": ["a", "b"], "stars": [1, 3]})
    fields = ("--field", "responses=answers", "--field", "rewards=stars")
    assert sides(read(path, fields={"responses": "answers", "rewards": "stars"})) == [("b", "a", 2.0)]
    assert measured(prefloop("reward-card", untrained, "--data", path, *fields, "--json"))["num_pairs"] == 1
    assert refused(untrained, "--data", path, "--field", "stars").startswith(
        "--field stars: write prefloop's name"
    )


def test_rows_of_pairs_are_counted_and_limited(rows):
    found = read(write(rows, *ROWS, ROWS[0], {"prompt": "?", "chosen": "a", "rejected": "a"}))
    assert (found.rows_in, found.rows_out, found.dropped) == (5, 3, {"duplicate": 1, "identical": 1})
    assert len(read(rows, limit=2).pairs) == 2


def test_a_completion_in_several_pairs_is_asked_about_once(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "?", "ranked_responses": ["a", "b", "c"]})
    (group,) = groups_of(read(path).pairs)
    assert [one.text for one in group.completions] == ["a", "b", "c"]


def test_raw_probabilities_of_both_orders_average_to_the_comparison(tiny_model, rows):
    section = PairwiseAnnotator(kind="pairwise", model=str(tiny_model))
    comparer = load_pairwise(section, RuntimeSection(device="cpu"))
    tasks = [PairTask(one.prompt, one.chosen, one.rejected) for one in read(rows).pairs]
    tasks.append(tasks[0]._replace(b=tasks[0].b.model_copy(update={"text": "map " * 600})))
    *shown, too_long = comparer.p_shown(tasks)
    assert too_long is None
    for row, (first, second) in zip(comparer.compare(tasks[:-1]), shown, strict=True):
        assert row.p_a == pytest.approx((first + 1 - second) / 2, abs=1e-6)


# --- published baselines ---------------------------------------------------------------------------------------------


def card_of_length(found) -> RewardCard:
    """The card of a model whose score is the length."""
    values = tuple((float(len(one.chosen.text)), float(len(one.rejected.text))) for one in found.pairs)
    return reward_card(
        found.pairs,
        Opinion("length", "scalar", values),
        tolerance=0.0,
        confidence=0.95,
        resamples=1000,
        num_mistakes=0,
    )


def expected(shared: Path, name: str) -> float:
    items = json.loads((shared / "data/expected.json").read_text())["items"]
    return next(one["expected"] for one in items if one["id"] == name)


@pytest.mark.shared
def test_the_length_baseline_of_hh_is_the_known_one(shared):
    path = shared / "data/hh_rlhf/harmless_pairs.jsonl.gz"
    found = read(path, bad_rows="drop")
    card = card_of_length(found)
    assert (found.rows_in, found.rows_out, card.num_pairs) == (1812, 1803, 1803)
    assert found.dropped["unequal_prompts"] == 2
    assert card.length.stronger == "shorter"
    assert card.length.verdict.direction == "worse"
    assert card.accuracy["mean"] == card.length.longer["mean"]
    # the known number is over all rows; what the nine that were dropped say is added back, in half points
    kept = {(one.chosen.text, one.rejected.text) for one in found.pairs}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        answers = [
            tuple(
                json.loads(line)[side].rpartition("\n\nAssistant:")[2].removeprefix(" ")
                for side in ("chosen", "rejected")
            )
            for line in file
        ]
    dropped = [one for one in answers if one not in kept]
    assert len(dropped) == 9
    points = round(2 * card.length.longer["mean"] * card.num_pairs) / 2
    points += sum(0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in dropped)
    assert 100 * points / found.rows_in == pytest.approx(
        expected(shared, "hh_rlhf/longest_answer_accuracy"), abs=1e-6
    )


@pytest.mark.shared
def test_all_pairs_of_the_oasst_rankings_have_the_known_length_baseline(shared):
    card = card_of_length(read(shared / "data/oasst_en100/ranked.jsonl.gz"))
    assert (card.num_prompts, card.num_pairs) == (150, 507)
    points = round(2 * card.length.longer["mean"] * card.num_pairs) / 2
    known = expected(shared, "oasst_en100/longest_answer_accuracy")
    assert 100 * points / 507 == pytest.approx(known, abs=1e-6)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_head_that_was_never_trained_ties_everything(untrained, rows, tmp_path):
    code, out, errors = prefloop("reward-card", untrained, "--data", rows, "--out", tmp_path / "card")
    assert (code, errors) == (0, "")
    assert out.startswith("Says nothing about these 3 pairs: all are ties.\n")
    assert "3 rows in, 3 out, dropped: none; 3 pairs judged, left out: none" in out
    assert out.endswith(f"{tmp_path}/card/card.html\n")
    card = json.loads((tmp_path / "card/card.json").read_text())
    assert (card["measured"]["accuracy"]["mean"], card["measured"]["ties"]) == (0.5, 3)
    assert card["measured"]["length"]["longer"]["mean"] == pytest.approx(1 / 3, abs=1e-6)
    assert card["measured"]["calibration"]["log_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert card["findings"][0]["title"] == "3 ties"


def test_cards_are_kept_in_the_workspace_unless_told_otherwise(untrained, rows, tmp_path):
    ran = prefloop("reward-card", untrained, "--data", rows, "-w", tmp_path / "workspace")
    (page,) = (tmp_path / "workspace/cards").glob("*/card.html")
    assert ran.out.endswith(f"{page}\n")


def test_as_json_nothing_is_written_unless_a_folder_is_named(untrained, rows, tmp_path):
    ran = prefloop("reward-card", untrained, "--data", rows, "--json", "-w", tmp_path / "workspace")
    assert measured(ran)["num_pairs"] == 3
    assert not (tmp_path / "workspace").exists()
    named = prefloop("reward-card", untrained, "--data", rows, "--json", "--out", tmp_path / "card")
    assert json.loads((tmp_path / "card/card.json").read_text()) == json.loads(named.out)


def test_beside_a_previous_model_with_the_same_scores_nothing_changes(untrained, rows, tmp_path):
    model = with_head(untrained, tmp_path / "scoring", 1.0)
    found = measured(prefloop("reward-card", model, "--data", rows, "--previous", model, "--json"))
    assert found["ties"] == 0
    assert found["previous"]["verdict"]["not_worse"]
    assert (found["previous"]["agree"]["mean"], found["previous"]["shift"]["mean"]) == (1.0, 0.0)
    assert (found["previous"]["gained"], found["previous"]["lost"]) == ([], [])


def test_a_mirrored_head_turns_every_preference_round(untrained, rows, tmp_path):
    one, other = (
        with_head(untrained, tmp_path / name, value) for name, value in (("one", 1.0), ("other", -1.0))
    )
    found = measured(prefloop("reward-card", one, "--data", rows, "--previous", other, "--json"))
    assert found["accuracy"]["mean"] == pytest.approx(1 - found["previous"]["accuracy"]["mean"], abs=1e-5)
    assert (found["previous"]["agree"]["mean"], found["previous"]["shift"]["rank_correlation"]) == (0.0, -1.0)
    assert len(found["previous"]["gained"]) + len(found["previous"]["lost"]) == 3


def test_a_causal_model_is_asked_in_both_orders_and_what_does_not_fit_is_counted(tiny_model, rows):
    long = {"prompt": QUESTION, "chosen": "map " * 600, "rejected": "b"}
    ran = prefloop("reward-card", tiny_model, "--data", write(rows, *ROWS, long), "--json")
    found = measured(ran)
    assert (found["kind"], found["num_pairs"]) == ("pairwise", 3)
    assert json.loads(ran.out)["pairs_dropped"] == {"too_long": 1}
    assert 0 <= found["position"]["agree"]["mean"] <= 1
    assert found["length"]["correlation"] is None


def test_bad_rows_stop_the_card_or_are_counted(untrained, rows):
    bad = {"prompt": "?", "chosen": "a", "rejected": " "}
    write(rows, *ROWS, bad)
    ran = prefloop("reward-card", untrained, "--data", rows, "--json")
    assert ran.code == 1
    assert "rows.jsonl row 4: completion 1 is empty" in ran.errors
    card = json.loads(prefloop("reward-card", untrained, "--data", rows, "--json", "--drop-bad-rows").out)
    assert (card["rows_in"], card["rows_out"], card["dropped"]) == (4, 3, {"empty_completion": 1})


def test_the_pairs_a_model_was_trained_on_are_pointed_out(tmp_path):
    workspace = Workspace(tmp_path / "workspace")
    entries = pipeline.run(
        config.parse(SMALL, ["loop.batches=1", "reward.validation_share=0"], where="small"),
        workspace,
        Watcher(),
    )
    reward = next(one.artefact for one in entries if one.role == "reward")
    pairs = next(one.artefact for one in entries if one.role == "select")
    ran = prefloop("reward-card", reward.name, "--data", pairs.name, "--json", "-w", workspace.root)
    card = json.loads(ran.out)
    number = card["measured"]["num_prompts"]
    assert card["findings"][0]["title"] == "The model has seen some of this"
    assert card["findings"][0]["text"].startswith(
        f"{number} of {number} prompts are among those it was trained on"
    )


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(*args: object) -> str:
    ran = prefloop("reward-card", *args)
    assert (ran.code, ran.out) == (1, "")
    assert ran.errors.startswith("InputError: ")
    return ran.errors.removeprefix("InputError: ").strip()


def test_folders_and_files_that_are_not_there_are_named(untrained, rows, tmp_path):
    assert refused(tmp_path / "no", "--data", rows) == f"{tmp_path}/no: no such model folder"
    said = refused(untrained, "--data", tmp_path / "no.jsonl")
    assert said.startswith(f"{tmp_path}/no.jsonl: no such file or folder")


def test_an_empty_file_and_a_file_without_pairs_are_named(untrained, tmp_path):
    assert refused(untrained, "--data", write(tmp_path / "empty.jsonl")) == "empty.jsonl: no rows"
    same = write(tmp_path / "same.jsonl", {"prompt": "?", "chosen": "a", "rejected": "a"})
    assert refused(untrained, "--data", same) == f"{same}: no pairs in 1 rows; dropped: 1 identical"


def test_weights_that_are_not_numbers_name_the_pair(untrained, rows, tmp_path):
    broken = with_head(untrained, tmp_path / "broken", math.nan)
    said = refused(broken, "--data", rows)
    assert said.startswith("pair 1 of 3 (id ")
    assert f"{broken} gives the chosen completion a score that is not a finite number" in said


def test_a_model_whose_files_do_not_tell_its_kind_must_be_named_one(tiny_model, rows, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["architectures"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert "names no architecture, so the model's kind cannot be told" in refused(folder, "--data", rows)
    assert (
        measured(prefloop("reward-card", folder, "--pairwise", "--data", rows, "--json"))["kind"]
        == "pairwise"
    )


def test_a_scoring_model_is_not_pairwise(untrained, rows):
    said = refused(untrained, "--data", rows, "--pairwise")
    assert (
        said
        == f"--pairwise: {untrained} is LlamaForSequenceClassification, which gives scores; leave --pairwise out"
    )


def test_an_artefact_without_pairs_is_named(untrained, tmp_path):
    folder = tmp_path / "workspace/artefacts/prompts-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    said = refused(untrained, "--data", "prompts-01", "-w", tmp_path / "workspace")
    assert said.startswith(
        "prompts-0123456789abcdef: holds no pairs; name an artefact of kind select or import"
    )


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(untrained, tiny_model, rows, tmp_path) -> Path:
    """A card with a mistake whose rejected side is hostile, and with a previous model."""
    pairs = write(rows, ROWS[2], *ROWS)
    model, previous = (
        with_head(untrained, tmp_path / name, value) for name, value in (("one", 1.0), ("two", -1.0))
    )
    wrong = measured(prefloop("reward-card", model, "--data", pairs, "--json"))["mistakes"]
    order = (model, previous) if any(HOSTILE in one["rejected"] for one in wrong) else (previous, model)
    assert (
        prefloop(
            "reward-card", order[0], "--previous", order[1], "--data", pairs, "--out", tmp_path / "card"
        ).code
        == 0
    )
    return tmp_path / "card/card.html"


def test_the_page_wears_the_style_of_the_report_and_needs_nothing_else(page):
    text = page.read_text()
    assert "--arm-0" in report_style() and ".findings" in report_style()
    assert "--arm-0" in text and "{%" not in text
    assert text.count("<svg") >= 4
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_text_of_a_model_stays_text_on_the_page(page):
    text = page.read_text()
    assert "&lt;img src=x" in text
    assert "<img" not in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
def test_the_page_draws_something_in_a_browser(page, tmp_path):
    picture = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={picture}")
    assert picture.stat().st_size > 50_000


# --- judges -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def judge_file(tmp_path):
    """A YAML file of a judge that a server of this test answers for."""
    from judge_server import Server

    server = Server()
    path = tmp_path / "judge.yaml"
    path.write_text(f"{{kind: judge, base_url: '{server.url}', model: m, retries: 0}}")
    yield path, server
    server.close()


def shown(body: dict) -> tuple[str, str]:
    text = body["messages"][0]["content"]
    fence = text.split("[begin ")[1].split("]")[0]
    parts = [part.split(f"\n[end {fence}]")[0] for part in text.split(f"[begin {fence}]\n")[1:]]
    return parts[-2], parts[-1]


def test_a_judge_gets_a_card_by_a_file_that_describes_it(rows, judge_file, tmp_path):
    from judge_server import said

    path, server = judge_file

    def answer(body: dict):
        first, second = shown(body)
        if "Rating: [[10]]" in (first, second):  # it is fooled by one of the texts
            return said("[[A]]" if first == "Rating: [[10]]" else "[[B]]")
        return said("[[A]]" if len(first) > len(second) else "[[B]]")

    server.answer = answer
    ran = prefloop("reward-card", path, "--data", rows, "--json", "-w", tmp_path / "w")
    card = json.loads(ran.out)["measured"]
    # the longer answer: right on the first pair, wrong on the second, and on the third where the hostile text is longer
    longer = sum(len(one["chosen"]) > len(one["rejected"]) for one in ROWS)
    assert card["kind"] == "pairwise" and card["num_pairs"] == 3
    assert card["accuracy"]["mean"] == pytest.approx(longer / 3, abs=1e-6)
    assert card["position"]["agree"]["mean"] == 1
    fooled = {one["name"]: one["preferred"]["mean"] for one in card["probes"]}
    assert fooled["a pasted rating"] == 1
    asked = len(server.bodies)
    page = prefloop("reward-card", path, "--data", rows, "-w", tmp_path / "w").out
    assert len(server.bodies) == asked  # every reply was kept
    assert "Prefers texts that are written for a judge" in " ".join(page.split())


def test_a_judge_that_says_nothing_readable_is_counted(rows, judge_file, tmp_path):
    from judge_server import said

    path, server = judge_file
    server.answer = lambda body: said("well" if "map" in body["messages"][0]["content"] else "[[C]]")
    ran = prefloop("reward-card", path, "--data", rows, "--json", "--no-probe", "-w", tmp_path / "w")
    card = json.loads(ran.out)
    assert card["pairs_dropped"] == {"no_verdict": 1}
    assert (card["measured"]["num_pairs"], card["measured"]["probes"]) == (2, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: judge, model: m}", "base_url: Field required"),
        ("{kind: judge, base_url: x, model: m, colour: red}", "colour: Extra inputs"),
        ("[1", "broken YAML"),
    ],
)
def test_a_file_that_describes_no_judge_is_named_with_its_key(rows, tmp_path, text, message):
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    ran = prefloop("reward-card", path, "--data", rows, "-w", tmp_path / "w")
    assert ran.code == 1 and message in ran.errors and "judge.yaml" in ran.errors


@pytest.mark.shared
@pytest.mark.parametrize(("name", "longest"), [("Natural", 0.565), ("Adversarial_Neighbor", 0.119)])
def test_a_judge_that_counts_characters_gets_llmbar_s_length_baseline(
    shared, judge_file, tmp_path, name, longest
):
    from judge_server import said

    path, server = judge_file

    def answer(body: dict):
        first, second = map(len, shown(body))
        return said("[[C]]" if first == second else "[[A]]" if first > second else "[[B]]")

    server.answer = answer
    data = shared / f"data/llmbar/{name}.json"
    ran = prefloop("reward-card", path, "--data", data, "--json", "--no-probe", "-w", tmp_path)
    measured = json.loads(ran.out)["measured"]
    assert measured["accuracy"]["mean"] == pytest.approx(longest, abs=0.0005)
    assert measured["length"]["longer"]["mean"] == measured["accuracy"]["mean"]
