"""The whole loop with people: three iterations, labels over HTTP, a roll back, and a ledger that adds up."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from people import opened
from prefloop import config, pipeline
from prefloop.config import Experiment
from prefloop.interfaces import Waiting
from prefloop.labels import rounds, schema
from prefloop.pipeline import Entry, Watcher
from prefloop.stages.shared import model_folder
from prefloop.store import Workspace
from simulated_people import answer_all, client_of, likes_short

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROMPTS = 112
LABELS = 96
"""Verdicts that close a round, of 112 questions."""
CENTS = 3
# the score is minus the distance from one character
EXPERIMENT = f"""
name: people
prompts: builtin:tales/prompts
generate: {{num_completions: 2, max_new_tokens: 4}}
annotate: {{annotator: {{kind: human, trigger: {{labels: {LABELS}}}}}}}
policy: {{objective: {{kind: dpo, beta: 0.1, label_smoothing: 0.1}}, learning_rate: 6e-4, data: accumulated, batch_size: 16,
         steps_per_batch: 24, max_length: 96}}
evaluate: {{num_prompts: 512, scorer: {{kind: rule, rule: length, target_length: 1}}, resamples: 1000}}
loop: {{batches: 3, prompts_per_batch: {PROMPTS}, gate: {{metric: score, num_prompts: 16}}}}
runtime: {{device: cpu, threads: 1}}
"""


class Loop:
    """A loop of a model that knows nothing yet, with people who like short texts and err in a tenth of the cases."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.workspace = Workspace(folder / "workspace")
        self.store = self.workspace.root / "labels.sqlite"
        settings = folder / "project.yaml"
        settings.write_text(
            f"cents: {{pairwise: {CENTS}}}\nbudget_cents: {CENTS * PROMPTS}\ngold_share: 0\nrepeat_share: 0\n"
        )
        overrides = [f"model={model}", f"annotate.annotator.settings={settings}"]
        self.x: Experiment = config.parse(EXPERIMENT, overrides, where="people.yaml")

    def run(self) -> list[Entry]:
        return pipeline.run(self.x, self.workspace, Watcher())

    def judge(self, *, most: int, seed: int) -> int:
        with opened(self.store) as database, client_of(database, "people", f"person-{seed}") as client:
            return answer_all(client, "people", likes_short(seed, flip=0.1), most=most)

    def rounds(self) -> list[rounds.Round]:
        with opened(self.store) as database:
            return database.read(lambda c: rounds.rounds_of(c, "people"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model) -> Iterator[tuple[Loop, list[Entry], list[str]]]:
    """A finished loop, its plan, and how far a run found each round before it went on."""
    loop = Loop(tmp_path_factory.mktemp("people"), tiny_model)
    said = []
    for number in range(3):
        for most in (LABELS - 1, 1):
            with pytest.raises(Waiting) as waiting:
                loop.run()
            said.append(str(waiting.value).split(",")[0])
            assert loop.judge(most=most, seed=number) == most
    yield loop, loop.run(), said


def artefacts(entries: list[Entry], role: str) -> list[Entry]:
    return [one for one in entries if one.role == role]


def test_each_threshold_closes_one_round_once_and_never_before(finished):
    loop, _, said = finished
    assert said == [
        f"{done} of {PROMPTS} judged in round {number} of people"
        for number in (1, 2, 3)
        for done in (0, LABELS - 1)
    ]
    with opened(loop.store) as database:
        freezes = sa.select(schema.audit.c.object).where(schema.audit.c.action == "round.freeze")
        closed = database.read(lambda c: c.execute(freezes.order_by(schema.audit.c.id)).scalars().all())
    assert closed == [one.id for one in loop.rounds()]


def test_what_people_like_rises_though_no_stage_ever_sees_it(finished):
    _, entries, _ = finished
    last = artefacts(entries, "evaluate")[-1].artefact
    gain = last.stats["score_gain_vs_start"]
    assert gain["low"] > 0, gain


def test_the_ledger_is_the_sum_of_the_judgements(finished):
    loop, _, _ = finished
    with opened(loop.store) as database:
        for one in loop.rounds():
            paid = sa.select(sa.func.sum(schema.judgement.c.cents)).where(
                schema.judgement.c.round_id == one.id
            )
            judged = database.read(lambda c, paid=paid: c.execute(paid).scalar())
            written = database.read(lambda c, one=one: rounds.spent_cents(c, one.id))
            assert judged == written == one.spent_cents == CENTS * LABELS


def test_rounds_end_as_the_gate_says_and_know_their_policies(finished):
    loop, entries, _ = finished
    choices = [one.artefact.stats["promoted"] for one in artefacts(entries, "promote")]
    assert [one.state for one in loop.rounds()] == ["promoted" if kept else "rejected" for kept in choices]
    assert [one.policy_out for one in loop.rounds()] == [
        one.artefact.key for one in artefacts(entries, "policy")
    ]


def test_a_roll_back_restores_the_policy_before(finished):
    loop, entries, _ = finished
    before = [model_folder(one.artefact) for one in artefacts(entries, "promote")]
    with opened(loop.store) as database:
        database.write(
            lambda c: rounds.decide(
                c, database.now(), rounds.rounds_of(c, "people")[2], "reject", actor="lead"
            )
        )
    after = loop.run()  # only the last choice is made anew
    kept = [model_folder(one.artefact) for one in artefacts(after, "promote")]
    assert kept[:2] == before[:2]
    assert kept[2] == before[1]
    assert loop.rounds()[2].state == "rejected"
    assert len(loop.rounds()) == 3
