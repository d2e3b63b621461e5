"""The report against hand-written runs: what is shown, what is counted, and that hostile text stays text."""

import hashlib
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prefloop.config import Experiment
from prefloop.interfaces import InputError
from prefloop.records import Group, Message, Prompt, file_completion
from prefloop.report import as_dict, collect, write_report
from prefloop.report.charts import ticks
from prefloop.report.numbers import duration, number
from prefloop.report.types import Estimate, Report
from prefloop.report.words import describe
from prefloop.store import Workspace, write_json

Entry = dict[str, Any]
SETTINGS: dict[str, Any] = {
    "name": "demo",
    "model": "some/model",
    "prompts": "prompts.jsonl",
    "annotate": {"annotator": {"kind": "rule", "rule": "length"}},
    "evaluate": {"scorer": {"kind": "rule", "rule": "tales"}},
}


class Planted:
    """A run written by hand, file by file, as the pipeline leaves it."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.workspace = Workspace(root)
        self.workspace.create()
        self.experiment = Experiment.model_validate(SETTINGS | settings).model_dump(mode="json")
        self.entries: list[Entry] = []
        self.save()

    def save(self) -> None:
        folder = self.workspace.runs / "demo"
        folder.mkdir(exist_ok=True)
        write_json(
            folder / "run.json", {"name": "demo", "experiment": self.experiment, "entries": self.entries}
        )

    def add(
        self,
        kind: str,
        iteration: int | None = None,
        *,
        arm: str = "main",
        role: str = "",
        inputs: dict[str, Any] | None = None,
        rows: tuple[int, int, dict[str, int]] = (0, 0, {}),
        files: dict[str, list[Any]] | None = None,
        seconds: float = 1.0,
        exists: bool = True,
        **stats: Any,
    ) -> str:
        """Adds an entry and, unless it is still missing, its artefact; returns the key."""
        name = f"{arm}/{iteration}/{kind}/{role}/{len(self.entries)}"
        key = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        entry = {
            "arm": arm,
            "iteration": iteration,
            "role": role or kind,
            "kind": kind,
            "key": key,
            "work": "",
        }
        self.entries.append(entry)
        self.save()
        if exists:
            folder = self.workspace.artefacts / f"{kind}-{key}"
            for path, content in (files or {}).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                lines = (row if isinstance(row, str) else json.dumps(row) for row in content)
                (folder / path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            folder.mkdir(exist_ok=True)
            rows_in, rows_out, dropped = rows
            counted = {"in": rows_in, "out": rows_out, "dropped": dropped}
            manifest = {"kind": kind, "key": key, "format": 1, "digest": "", "rows": counted, "stats": stats}
            manifest |= {"config": {}, "inputs": inputs or {}, "external": {}, "files": {}}
            write_json(folder / "manifest.json", manifest | {"started": 1.7e9, "seconds": seconds})
        return key

    def share(self, arm: str) -> None:
        """Repeats the entries before the loop in another arm's list."""
        self.entries += [
            one | {"arm": arm} for one in self.entries if one["arm"] == "main" and one["iteration"] is None
        ]
        self.save()

    def evaluate(
        self,
        iteration: int | None,
        scores: list[float],
        *,
        arm: str = "main",
        texts: list[str] | None = None,
        prompts: list[str] | None = None,
        policy: str = "",
        seconds: float = 1.0,
        **stats: Any,
    ) -> str:
        """An evaluation with one answer a prompt."""
        groups, measurements = [], []
        for index, score in enumerate(scores):
            prompt = Prompt.of(
                (Message(role="user", content=prompts[index] if prompts else f"prompt {index}"),)
            )
            completion = file_completion(
                prompt, texts[index] if texts else f"{arm} {iteration} answer {index}"
            )
            groups.append(Group(prompt=prompt, completions=(completion,)).model_dump_json())
            measurements.append(
                {"prompt_id": prompt.id, "completion_id": completion.id, "score": score, "second": None}
                | {
                    "proxy": 2 * score,
                    "proxy_start": 2 * score,
                    "kl": 1.0,
                    "tokens": 10 + index,
                    "characters": 50,
                }
            )
        figures: dict[str, Any] = {"num_prompts": len(scores), "num_completions": len(scores)} | stats
        files = {"groups.jsonl": groups, "measurements.jsonl": measurements}
        return self.add(
            "evaluate",
            iteration,
            arm=arm,
            files=files,
            seconds=seconds,
            inputs={"policy": policy} if policy else {},
            **figures,
        )


class Page(HTMLParser):
    """A parsed report: every tag, every attribute, all text, and the tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def row(self, first: str) -> list[str]:
        """The first table row that begins with this text."""
        return next(row for row in self.rows if row and row[0].startswith(first))


def titles(report: Report) -> list[str]:
    return [one.title for one in report.findings]


def titles_and_texts(report: Report) -> list[tuple[str, str]]:
    return [(one.title, one.text) for one in report.findings]


def between(mean: float, low: float, high: float) -> dict[str, float]:
    """An interval as stages write it."""
    return {"mean": mean, "low": low, "high": high}


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def online(tmp_path: Path) -> Planted:
    """Two iterations online and one arm offline, at equal labels and steps."""
    planted = Planted(tmp_path)
    planted.add("sft", steps=40, loss_first=3.0, loss_last=1.0)
    planted.evaluate(None, [0.0, 1.0, 2.0, 3.0], score=between(1.5, 0.4, 2.6), kl=between(0.0, 0.0, 0.0))
    planted.add("annotate", labels=100)
    planted.share("offline")
    for iteration, shift in enumerate((1.0, 1.5)):
        planted.add("annotate", iteration, labels=50, pseudo_labels=400)
        planted.add("select", iteration, rows=(50, 47, {"tie": 2, "identical": 1}), pairs=47)
        policy = planted.add("policy", iteration, steps=10, validation={"accuracy": 0.625})
        planted.evaluate(
            iteration,
            [shift, shift + 1.0, shift + 2.0, shift + 3.0],
            policy=policy,
            score=between(1.5 + shift, 0.4 + shift, 2.6 + shift),
            score_gain_vs_start=between(shift, shift - 0.25, shift + 0.25),
            score_gain_vs_previous=between(0.75, 0.5, 1.0),
            win_rate_vs_start=between(0.8125, 0.7, 0.9),
            kl=between(4.0, 3.5, 4.5),
        )
    for batch in range(2):
        planted.add("annotate", 0, arm="offline", role=f"annotate-{batch}", labels=50)
    planted.add("policy", 0, arm="offline", steps=20)
    planted.evaluate(0, [1.0, 2.0, 3.0, 3.0], arm="offline", score=between(2.25, 1.2, 3.3))
    return planted


def test_the_verdict_and_the_table_repeat_the_manifests(online):
    report = collect(online.workspace, "demo")
    assert report.verdict == (
        "Held-out score rose from 1.50 to 3.00 (+1.50, 95% interval 1.25 to 1.75) in 2 iterations with 200 labels; "
        "every iteration improved on the one before."
    )
    page = Page(write_report(online.workspace, "demo"))
    assert page.row("iteration 2") == [
        "iteration 2 best", "200 20", "3.0 1.9 to 4.1", "+0.75 ▲ +0.50 to +1.00", "81.2% 70.0 to 90.0", "–",
        "4.00 3.50 to 4.50", "2.00", "–", "–", "–", "62.5%", "–",
    ]  # fmt: skip


def test_report_json_holds_the_same_numbers(online):
    write_report(online.workspace, "demo")
    values = json.loads((online.workspace.runs / "demo" / "report.json").read_text())
    last = next(one for one in values["policies"] if one["arm"] == "main" and one["iteration"] == 1)
    assert last["score"] == {"mean": 3.0, "low": 1.9, "high": 4.1}
    assert last["sqrt_kl"] == 2.0
    assert values == as_dict(collect(online.workspace, "demo"))


def test_labels_before_the_loop_count_for_every_arm_and_only_once_in_total(online):
    report = collect(online.workspace, "demo")
    spent = {(one.arm, one.iteration): one.labels for one in report.policies}
    assert spent == {("main", None): 0, ("main", 0): 150, ("main", 1): 200, ("offline", 0): 200}
    assert (report.labels, report.seed_labels, report.labels_all_arms) == (200, 100, 300)
    assert report.pseudo_labels == 800


def test_arms_are_compared_prompt_by_prompt(online):
    report = collect(online.workspace, "demo")
    # main answers 1.5, 2.5, 3.5, 4.5 and offline 1, 2, 3, 3: differences .5, .5, .5, 1.5
    assert report.differences[0].score.mean == 0.75
    assert report.differences[0].num_prompts == 4
    assert report.remarks[0].startswith(
        "At equal labels (200), main is ahead of offline: +0.75 (95% interval +0.50"
    )


def test_rows_are_counted_by_reason_and_add_up(online):
    page = Page(write_report(online.workspace, "demo"))
    assert page.row("select") == ["select", "main", "2", "100", "2", "4", "6 (6.0%)", "94"]


def test_writing_twice_gives_the_same_bytes(online):
    first = write_report(online.workspace, "demo").read_bytes()
    assert write_report(online.workspace, "demo").read_bytes() == first


# --- what the verdict may say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "steps", "said"),
    [
        (between(-1, -1.5, -0.5), (1, -1), "fell from 1.00 to 2.00 (−1.00, 95% interval −1.50 to −0.50)"),
        (between(0.1, -0.5, 0.7), (1, 0), "did not measurably change: from 1.00 to 2.00"),
        (
            between(1, 0.5, 1.5),
            (1, 0),
            "iteration 1 improved on the one before, iteration 2 cannot be told apart",
        ),
        (between(1, 0.5, 1.5), (-1, -1), "iterations 1 and 2 fell below the one before"),
    ],
)
def test_the_verdict_is_no_stronger_than_the_intervals(tmp_path, gain, steps, said):
    planted = Planted(tmp_path)
    planted.evaluate(None, [1.0], score=between(1, 0, 2))
    for iteration, step in enumerate(steps):
        previous = between(step, step - 0.5, step + 0.5)
        planted.evaluate(
            iteration,
            [2.0],
            score=between(2, 1, 3),
            score_gain_vs_start=gain,
            score_gain_vs_previous=previous,
        )
    assert said in collect(planted.workspace, "demo").verdict


def test_a_policy_that_was_rolled_back_is_not_the_result(tmp_path):
    planted = Planted(tmp_path)
    planted.evaluate(None, [1.0], score=between(1, 0, 2))
    for iteration, promoted in enumerate((True, False)):
        score = 2.0 + iteration
        planted.evaluate(
            iteration, [score], score=between(score, 1, 4), score_gain_vs_start=between(score - 1, 0.5, 3.0)
        )
        planted.add("promote", iteration, promoted=promoted, reason="KL 9.00 is above 5")
        planted.add("annotate", iteration, labels=5)
    report = collect(planted.workspace, "demo")
    assert report.final is not None and report.final.iteration == 0
    assert [one.iteration for one in report.policies if one.best] == [0]
    assert report.verdict.endswith("in 2 iterations with 10 labels; iteration 2 was rolled back.")
    assert ("A policy was rolled back", "iteration 2: KL 9.00 is above 5.") in titles_and_texts(report)


def test_without_an_evaluator_only_the_reward_model_is_quoted(tmp_path):
    planted = Planted(tmp_path, evaluate={})
    planted.evaluate(None, [1.0])
    planted.evaluate(0, [2.0], proxy_gain_vs_start=between(1.0, 0.5, 1.5))
    report = collect(planted.workspace, "demo")
    assert report.verdict.startswith("The reward model's own score rose (+1.00, 95% interval 0.50 to 1.50)")
    assert "pleases its reward model" in report.remarks[0]
    assert "No independent evaluator" in titles(report)


# --- hostile text ----------------------------------------------------------------------------------------------------

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src="https://evil.example/x.png" onerror="alert(1)">',
    "</style></title></textarea><svg onload=alert(1)><a href='javascript:alert(1)'>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; \u202e\u0000 <!-- ",
)


@pytest.fixture
def hostile(tmp_path: Path) -> Page:
    """A run in which everybody who can write a text writes a hostile one."""
    function = {"kind": "function", "target": HOSTILE[1]}
    planted = Planted(tmp_path, annotate={"annotator": function}, evaluate={"scorer": function})
    for arm in ("main", HOSTILE[2]):
        for iteration in (None, 0):
            planted.evaluate(
                iteration,
                [1.0, 2.0, 3.0, 4.0],
                arm=arm,
                texts=list(HOSTILE),
                prompts=list(HOSTILE),
                score=between(2.5, 1, 4),
                score_gain_vs_start=between(1, 0, 2),
                kl=between(1, 0, 2),
            )
        planted.add("annotate", 0, arm=arm, labels=1, annotators={HOSTILE[0]: 1})
        planted.add("select", 0, arm=arm, rows=(2, 1, {HOSTILE[1]: 1}))
        planted.add("promote", 0, arm=arm, role=HOSTILE[0], promoted=arm == "main", reason=HOSTILE[1])
    return Page(write_report(planted.workspace, "demo"))


def test_hostile_text_is_text(hostile):
    assert not hostile.tags & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "link",
        "base",
        "textarea",
    }
    assert not [one for one in hostile.attributes if one[1].startswith("on")]
    everything = "".join(hostile.texts)
    for text in HOSTILE[:3]:
        assert text in everything
    assert "{{ 7 * 7 }} {% raw %} &lt;b&gt;" in everything


def test_the_page_fetches_nothing(hostile):
    assert not [
        one for one in hostile.attributes if one[1] in ("src", "srcset", "data", "action", "xlink:href")
    ]
    links = [value for _, name, value in hostile.attributes if name == "href"]
    assert links and all(link.startswith("#") for link in links)
    style = hostile.source[: hostile.source.index("</style>")]
    assert "url(" not in style and "@import" not in style and "//" not in style
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in hostile.attributes


def test_every_link_of_the_page_leads_somewhere(hostile):
    ids = {value for _, name, value in hostile.attributes if name == "id"}
    targets = {value for _, name, value in hostile.attributes if name == "for"}
    targets |= {value[1:] for _, name, value in hostile.attributes if name == "href"}
    assert targets <= ids


# --- runs that are not finished --------------------------------------------------------------------------------------


def test_an_empty_run_has_a_page(tmp_path):
    planted = Planted(tmp_path)
    assert collect(planted.workspace, "demo").verdict == "Nothing has run yet."
    assert "Nothing has run yet." in Page(write_report(planted.workspace, "demo")).texts


def test_a_run_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        collect(Planted(tmp_path).workspace, "nowhere")


def test_an_unfinished_run_shows_what_there_is_and_names_what_is_missing(tmp_path):
    planted = Planted(tmp_path)
    planted.add("sft", steps=2)
    planted.evaluate(None, [1.0, 2.0], score=between(1.5, 1, 2))
    planted.add("generate", 0, exists=False)
    key = planted.add("policy", 0, exists=False)
    logs = planted.workspace.artefacts / f"policy-{key}.partial" / "logs"
    logs.mkdir(parents=True)
    (logs / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.7}\n{"step": 2, "train/lo')
    report = collect(planted.workspace, "demo")
    assert not report.finished
    assert report.missing == ("iteration 1: generate, policy (started)",)
    assert report.verdict == (
        "No iteration has been evaluated yet; the start has score 1.50 on 2 held-out prompts, "
        "and 2 of 4 stages are done."
    )
    assert [point.loss for one in report.training if one.kind == "policy" for point in one.points] == [0.7]
    assert "This run is not finished." in Page(write_report(planted.workspace, "demo")).texts


def test_scores_of_reinforcement_are_split_by_where_prompts_came_from(tmp_path):
    """Ten batches; the first fifth has 3 probes with score 1 and then 1 with 5, so (3 + 5) / 4 = 2."""
    planted = Planted(tmp_path)
    planted.evaluate(None, [1.0])
    batches = [(3, 1.0), (1, 5.0), *[(2, 0.0)] * 7, (2, 4.0)]
    rows = [
        {"step": step, "train/loss": 0.5, "rl/source/probes/prompts": number, "rl/source/probes/score": score}
        | {"rl/source/probes/score/rules": 9.0}
        for step, (number, score) in enumerate(batches, 1)
    ]
    planted.add("policy", 0, files={"logs/metrics.jsonl": rows})
    report = collect(planted.workspace, "demo")
    (found,) = (source for one in report.training for source in one.sources)
    assert (found.source, found.prompts, found.first, found.last) == ("probes", 3 + 1 + 16, 2.0, 2.0)
    assert "probes" in Page(write_report(planted.workspace, "demo")).texts


def test_figures_that_are_not_numbers_are_left_out(tmp_path):
    planted = Planted(tmp_path)
    planted.evaluate(None, [1.0], score=between(float("nan"), 0, 1), kl=float("inf"), distinct_2=None)
    text = write_report(planted.workspace, "demo").with_name("report.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert collect(planted.workspace, "demo").policies[0].score is None


# --- warnings --------------------------------------------------------------------------------------------------------


def test_an_evaluator_that_is_the_annotator_is_called_out(tmp_path):
    same = {"kind": "rule", "rule": "tales"}
    planted = Planted(tmp_path, annotate={"annotator": same}, evaluate={"scorer": same})
    planted.evaluate(None, [1.0])
    assert "The evaluator is the annotator" in titles(collect(planted.workspace, "demo"))


def test_a_proxy_that_rises_while_the_score_falls_is_over_optimisation(tmp_path):
    planted = Planted(tmp_path)
    planted.evaluate(None, [1.0, 2.0], score=between(1.5, 1, 2))
    for iteration, (step, proxy) in enumerate([(1.0, 1.0), (-1.0, 2.0)]):
        planted.evaluate(
            iteration,
            [1.0, 2.0],
            score=between(2, 1, 3),
            score_gain_vs_start=between(0.5, 0.1, 0.9),
            score_gain_vs_previous=between(step, step - 0.5, step + 0.5),
            proxy_gain_vs_start=between(proxy, proxy - 0.5, proxy + 0.5),
            win_rate_vs_start=between(0.55, 0.45, 0.65),
            truncated_share=0.21,
        )
    report = collect(planted.workspace, "demo")
    # the proxies of the answers are 2 and 4, so their standard deviation is 1
    assert (
        "In iteration 2 the reward model's gain over the start rose from 1.00 to 2.00"
        in report.findings[0].text
    )
    assert titles(report) == [
        "Over-optimisation",
        "The win rate against the start includes one half",
        "Many answers were cut off",
    ]


def test_arms_with_other_labels_or_steps_are_not_compared_silently(online):
    online.add("annotate", 0, arm="offline", role="more", labels=10)
    online.add("policy", 0, arm="offline", role="more", steps=1)
    report = collect(online.workspace, "demo")
    assert "main and offline spent different numbers of labels" in titles(report)
    assert "main and offline took different numbers of optimiser steps" in titles(report)
    assert report.remarks[0].startswith("At unequal labels (200 against 210)")


def test_one_answer_for_every_prompt_is_named(tmp_path):
    planted = Planted(tmp_path)
    planted.evaluate(None, [1.0] * 4, texts=["I cannot help with that."] * 4)
    assert ("The same answer again and again") in titles(collect(planted.workspace, "demo"))


# --- samples, figures, formats ---------------------------------------------------------------------------------------


def test_samples_are_the_largest_gains_the_largest_losses_and_some_that_nobody_picked(tmp_path):
    planted = Planted(tmp_path)
    planted.experiment["evaluate"]["num_samples_shown"] = 3
    planted.evaluate(None, [0.0, 0.0, 0.0, 0.0])
    planted.evaluate(0, [5.0, -7.0, 0.5, -0.5])
    samples = collect(planted.workspace, "demo").samples
    assert [(one.chosen_as, one.movement) for one in samples[:2]] == [("gain", 5.0), ("loss", -7.0)]
    assert [one.chosen_as for one in samples] == ["gain", "loss", "unselected"]
    assert [(one.policy, one.text) for one in samples[0].answers] == [
        ("start", "main None answer 0"),
        ("iteration 1", "main 0 answer 0"),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((0.31, 1.12), [0.2, 0.4, 0.6, 0.8, 1, 1.2]),
        ((-3, 640), None),
        ((5, 5), None),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, expected):
    found = ticks(values)
    assert found[0] <= values[0] and found[-1] >= values[1] and 3 <= len(found) <= 8
    if expected:
        assert found == pytest.approx(expected)


def test_numbers_are_written_for_people():
    assert [number(value) for value in (None, 0.0, 0.0312, -1.234, 45.67, 12345, 1e-5)] == [
        "–", "0.00", "0.031", "−1.23", "45.7", "12,345", "1.0e−05",
    ]  # fmt: skip
    assert [duration(value) for value in (0.04, 59, 61, 3725)] == [
        "0.0 s",
        "59 s",
        "1 min 01 s",
        "1 h 02 min",
    ]


def test_an_interval_never_hides_on_which_side_of_zero_it_ends():
    assert describe(Estimate(0.1, 0.0012, 0.2), 0.95) == "+0.100 (95% interval +0.001 to +0.200)"


def test_the_report_does_not_need_torch():
    code = "import sys, prefloop.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
