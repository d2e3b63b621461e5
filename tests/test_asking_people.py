"""What people are asked by an experiment: which pairs, with which probability, and what of it enters a key."""

import pytest

from prefloop import pipeline, stages
from prefloop.config import Experiment
from prefloop.interfaces import InputError
from prefloop.records import Group, Message, Prompt, Score, file_completion
from prefloop.stages import people
from prefloop.store import Artefact, Workspace
from small import small

HUMAN = "annotate.annotator={kind: human}"


def group(index: int, number: int = 4) -> Group:
    prompt = Prompt.of((Message(role="user", content=f"question {index}"),))
    return Group(prompt=prompt, completions=tuple(file_completion(prompt, f"t{n}", n) for n in range(number)))


def scores(of: Group) -> dict[str, Score]:
    """The later, the better."""
    return {
        one.id: Score(prompt_id=of.prompt.id, completion_id=one.id, value=place, annotator="reward")
        for place, one in enumerate(of.completions)
    }


def asked(x: Experiment, of: Group, by_reward: bool = True):
    return people.questions(x, [of], scores(of) if by_reward else None)[of.prompt.id]


def asked_of_many(x: Experiment, groups: list[Group]):
    by_reward = {id: value for one in groups for id, value in scores(one).items()}
    return [one for found in people.questions(x, groups, by_reward).values() for one in found]


def test_a_share_of_pairs_is_drawn_by_chance_and_every_pair_knows_its_probability():
    found = asked_of_many(small(HUMAN, "annotate.random_share=0.3"), [group(index) for index in range(1000)])
    by_chance = [one for one in found if one.strategy == "random"]
    assert len(by_chance) == 300
    # six pairs: the proposed one is asked with 0.7 + 0.3 / 6, each other with 0.3 / 6
    for one in found:
        texts = {text.text for text in one.completions}
        assert one.probability == pytest.approx(0.75 if texts == {"t0", "t3"} else 0.05)
        assert one.strategy == "random" or texts == {"t0", "t3"}
    # 50 of 300 are expected, with a standard deviation of 6.5: a draw that hits the proposed pair still is a draw
    assert 30 <= sum({text.text for text in one.completions} == {"t0", "t3"} for one in by_chance) <= 70
    (first, *_) = [one for one in found if one.strategy == "max_min"]
    assert (first.score, first.reward_p) == (3.0, pytest.approx(0.952574, abs=1e-6))  # 1 / (1 + exp(-3))


@pytest.mark.parametrize(("share", "number", "drawn"), [(0.2, 8, 2), (0.1, 30, 3), (0.01, 5, 1), (1.0, 4, 4)])
def test_no_batch_has_less_than_the_share_whatever_the_order_of_its_prompts(share, number, drawn):
    """0.2 x 8 = 1.6 and 0.01 x 5 = 0.05 are rounded up; a group of one text twice is no pair and does not count."""
    x = small(HUMAN, f"annotate.random_share={share}")
    groups = [group(index) for index in range(number)]
    alike = group(99, 1)
    alike = alike.model_copy(
        update={"completions": (*alike.completions, file_completion(alike.prompt, "t0", 1))}
    )
    found = asked_of_many(x, [*groups, alike])
    assert len(found) == number
    by_chance = {one.prompt.id for one in found if one.strategy == "random"}
    assert len(by_chance) == drawn
    again = asked_of_many(x, [alike, *reversed(groups)])
    assert {one.prompt.id for one in again if one.strategy == "random"} == by_chance


def test_without_a_reward_model_pairs_are_even_and_the_reward_model_says_nothing():
    (one,) = asked(small(HUMAN), group(0), by_reward=False)
    assert (one.strategy, one.probability, one.reward_p) == ("random", pytest.approx(1 / 6), None)


def test_a_ranking_shows_different_texts_and_a_form_every_one():
    of = group(0, 3)
    twice = of.model_copy(update={"completions": (*of.completions, file_completion(of.prompt, "t1", 9))})
    (ranked,) = asked(small("annotate.annotator={kind: human, task: rank}"), twice)
    assert [one.text for one in ranked.completions] == ["t0", "t1", "t2"]
    rated = asked(small("annotate.annotator={kind: human, task: form}"), twice)
    assert [len(one.completions) for one in rated] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("annotator", "ask", "labels"),
    [
        ("{kind: human, overlap: 2}", "auto", 2),
        ("{kind: human, overlap: 2}", "all_pairs", 6),  # 3 completions
        ("{kind: human, task: rank, overlap: 2}", "auto", 2),
        ("{kind: human, task: form, overlap: 2}", "auto", 6),
    ],
)
def test_labels_are_planned_by_what_is_asked(annotator, ask, labels):
    x = small(f"annotate={{annotator: {annotator}, ask: {ask}}}")
    assert stages.labels_per_prompt(x) == labels


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["annotate={annotator: {kind: human, task: rank}, ask: all_pairs}"],
            "task rank about all; leave ask out",
        ),
        (
            ["annotate={annotator: {kind: human, task: form}, ask: one_pair}"],
            "human with task form gives scores",
        ),
        (["annotate={annotator: {kind: human}, ask: scores}"], "human compares"),
        (
            ["annotate.annotator={kind: human, store: 'postgresql://ann:secret@host/labels'}"],
            "a password here would be written into every run",
        ),
    ],
)
def test_what_people_cannot_be_asked_is_said_and_no_password_is_repeated(overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        small(*overrides)
    assert "secret" not in str(caught.value)


def key(*overrides: str) -> str:
    x = small("reward.seed_prompts=0", "loop.gate.metric=none", *overrides)
    entries = pipeline.plan(x, Workspace(people.Path("nowhere")))
    return next(one.artefact.key for one in entries if one.role == "annotate")


def test_what_people_are_asked_enters_the_key_and_when_it_is_enough_does_not(tmp_path):
    guide, settings = tmp_path / "guide.md", tmp_path / "settings.yaml"
    guide.write_text("Be kind.")
    settings.write_text("cents: {pairwise: 5}\n")
    plain = key(HUMAN)
    for same in ("quorum: 0.5", "trigger: {labels: 3}", "project: x", "store: other.sqlite"):
        assert key(f"annotate.annotator={{kind: human, {same}}}") == plain
    for other in ("overlap: 2", "task: rank", f"guidelines: {guide}", f"settings: {settings}"):
        assert key(f"annotate.annotator={{kind: human, {other}}}") != plain
    before = key(f"annotate.annotator={{kind: human, settings: {settings}}}")
    settings.write_text("cents: {pairwise: 7}\n")
    assert key(f"annotate.annotator={{kind: human, settings: {settings}}}") == before
    settings.write_text("ties: false\n")
    assert key(f"annotate.annotator={{kind: human, settings: {settings}}}") != before


def test_a_plan_makes_no_label_store(tmp_path):
    pipeline.plan(small(HUMAN), Workspace(tmp_path / "workspace"))
    assert not (tmp_path / "workspace").exists()


def test_a_run_without_people_has_no_round(tmp_path):
    assert people.round_of(Artefact("annotate", "k", tmp_path)) is None
