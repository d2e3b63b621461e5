"""Simulated people."""

import math
from collections.abc import Iterable, Iterator

import pytest

from prefloop.annotate.simulated import SimulatedComparer, SimulatedScorer
from prefloop.config import RuleAnnotator, SimulatedAnnotator
from prefloop.interfaces import InputError, PairTask
from prefloop.records import Comparison, Group, Message, Prompt, Refusal, Score, file_completion

NUM_TASKS = 2000


class NumberScorer:
    """Gold: the number at the start of the text."""

    name = "number"

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        for group in groups:
            for one in group.completions:
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=one.id,
                    value=float(one.text.split()[0]),
                    annotator=self.name,
                )


def task(index: int, a: str, b: str) -> PairTask:
    prompt = Prompt.of((Message(role="user", content=f"question {index}"),))
    return PairTask(prompt, file_completion(prompt, a), file_completion(prompt, b, 1))


def people(seed: int = 0, **options) -> SimulatedComparer:
    gold = RuleAnnotator(kind="rule", rule="length")
    fields = {"flip": 0.0} | options
    return SimulatedComparer(
        SimulatedAnnotator(kind="simulated", gold=gold, **fields), NumberScorer(), seed=seed
    )


def share_of_a(comparer: SimulatedComparer, a: str, b: str, number: int = NUM_TASKS) -> float:
    rows = list(comparer.compare(task(index, a, b) for index in range(number)))
    return sum(row.p_a for row in rows if isinstance(row, Comparison)) / len(rows)


def three_standard_errors(p: float, number: int = NUM_TASKS) -> float:
    return 3 * math.sqrt(p * (1 - p) / number)


def test_without_noise_the_verdict_is_the_sign_of_the_gold_difference():
    rows = list(people().compare([task(0, "2", "1"), task(1, "1", "2"), task(2, "1", "1")]))
    assert [row.p_a for row in rows] == [1.0, 0.0, 0.5]
    assert {row.labels for row in rows} == {1}


def test_flipped_share_is_the_flip_probability_and_gold_agreement_stays_below_three_quarters():
    agreement = share_of_a(people(flip=0.25), "2", "1")
    assert abs(agreement - 0.75) < three_standard_errors(0.75)


def test_majority_of_three_votes_agrees_with_gold_at_the_binomial_rate():
    rows = list(people(flip=0.25, votes=3).compare(task(index, "2", "1") for index in range(NUM_TASKS)))
    assert len(rows) == 3 * NUM_TASKS
    majorities = [sum(row.p_a for row in rows[i : i + 3]) >= 2 for i in range(0, len(rows), 3)]
    expected = 0.75**3 + 3 * 0.75**2 * 0.25
    assert expected == 0.84375
    assert abs(sum(majorities) / NUM_TASKS - expected) < three_standard_errors(expected)


def test_votes_on_a_pair_come_from_different_people_of_the_pool():
    rows = list(people(votes=13).compare([task(0, "2", "1")]))
    assert sorted(row.annotator for row in rows) == [f"simulated/{person:02d}" for person in range(13)]


def test_every_person_of_the_pool_is_asked_about_equally_often():
    rows = list(people(pool=4).compare(task(index, "2", "1") for index in range(NUM_TASKS)))
    for person in range(4):
        share = sum(row.annotator == f"simulated/{person:02d}" for row in rows) / NUM_TASKS
        assert abs(share - 0.25) < three_standard_errors(0.25)


def test_with_temperature_the_probability_is_the_sigmoid_of_the_scaled_difference():
    # sigmoid(1 / 2) = 0.622459
    assert abs(share_of_a(people(temperature=2.0), "2", "1") - 0.622459) < three_standard_errors(0.622459)


def test_flips_pull_the_probability_towards_a_half():
    # (1 - 2 * 0.25) * 0.622459 + 0.25 = 0.561230
    share = share_of_a(people(temperature=2.0, flip=0.25), "2", "1")
    assert abs(share - 0.561230) < three_standard_errors(0.561230)


def test_people_differ_in_their_own_temperature_only_when_it_is_spread():
    same, spread = people(temperature=1.0), people(temperature=1.0, scale_spread=1.0)
    one = {same._probability(person, 1.0) for person in range(13)}
    many = {spread._probability(person, 1.0) for person in range(13)}
    assert len(one) == 1 and len(many) == 13


def test_the_same_seed_gives_the_same_verdicts_in_any_order_and_batch():
    options = {"flip": 0.3, "temperature": 1.0, "taste_spread": 1.0, "position_bias": 0.5, "votes": 2}
    tasks = [task(index, str(index % 3), "1 b") for index in range(150)]

    def verdicts(chunks):
        comparer = people(seed=4, **options)
        return sorted(row.model_dump_json() for chunk in chunks for row in comparer.compare(chunk))

    whole = verdicts([tasks])
    assert verdicts([tasks[::-1]]) == whole
    assert verdicts([one] for one in tasks) == whole
    assert len(set(whole)) == 300


def test_another_seed_gives_other_verdicts():
    tasks = [task(index, "2", "1") for index in range(200)]
    first, second = (list(people(seed=seed, flip=0.25).compare(tasks)) for seed in (0, 1))
    assert sum(one.p_a != other.p_a for one, other in zip(first, second, strict=True)) > 20


def test_the_swapped_question_gets_the_same_verdict_about_the_texts():
    options = {"flip": 0.3, "temperature": 1.0, "position_bias": 1.0}
    tasks = [task(index, "2", "1") for index in range(100)]
    straight = list(people(**options).compare(tasks))
    swapped = list(people(**options).compare(PairTask(one.prompt, one.b, one.a) for one in tasks))
    for one, other in zip(straight, swapped, strict=True):
        assert one.p_a == 1 - other.p_a
        assert {one.presented, other.presented} == {"ab", "ba"}


def test_length_bias_makes_the_longer_of_two_equals_win():
    long = "1 " + "x" * 100
    assert share_of_a(people(length_bias=0.5), long, "1", 50) == 1.0
    # 101 characters more at 0.5 per 100, scaled by 1: sigmoid(0.505) = 0.623635
    share = share_of_a(people(length_bias=0.5, temperature=1.0), long, "1")
    assert abs(share - 0.623635) < three_standard_errors(0.623635)


def test_position_bias_makes_the_one_shown_first_win_and_order_is_even():
    rows = list(people(position_bias=1.0).compare(task(index, "1", "1 ") for index in range(NUM_TASKS)))
    assert all((row.p_a == 1.0) == (row.presented == "ab") for row in rows)
    shown = sum(row.presented == "ab" for row in rows) / NUM_TASKS
    assert abs(shown - 0.5) < three_standard_errors(0.5)


def test_taste_is_fixed_for_a_person_and_a_completion():
    tasks = [task(index, "1", "1 ") for index in range(100)]
    once, again = (list(people(taste_spread=1.0).compare(tasks)) for _ in range(2))
    assert once == again
    assert 20 < sum(row.p_a for row in once) < 80


def test_differences_inside_the_tie_band_are_ties():
    rows = list(people(tie_band=1.5).compare([task(0, "2", "1"), task(1, "3", "1")]))
    assert [row.p_a for row in rows] == [0.5, 1.0]


def test_refusals_are_counted_and_never_become_labels():
    rows = list(people(refusal_rate=0.2).compare(task(index, "2", "1") for index in range(NUM_TASKS)))
    refusals = [row for row in rows if isinstance(row, Refusal)]
    assert len(rows) == NUM_TASKS
    assert abs(len(refusals) / NUM_TASKS - 0.2) < three_standard_errors(0.2)
    assert {row.reason for row in refusals} == {"declined"}


def test_more_votes_than_people_is_an_error():
    with pytest.raises(InputError, match=r"votes = 3 .* pool = 2"):
        people(pool=2, votes=3)


def test_a_gold_that_refuses_is_an_error():
    class Silent:
        name = "silent"

        def score(self, groups):
            for group in groups:
                yield Refusal(prompt_id=group.prompt.id, completion_ids=(), annotator="silent", reason="mute")

    comparer = people()
    comparer.gold = Silent()
    with pytest.raises(InputError, match="silent refused"):
        list(comparer.compare([task(0, "1", "2")]))


def test_the_oracle_scores_gold_exactly_at_one_label_a_completion():
    options = SimulatedAnnotator(kind="simulated", gold=RuleAnnotator(kind="rule", rule="length"))
    question = task(0, "2.5", "-1")
    group = Group(prompt=question.prompt, completions=(question.a, question.b))
    rows = list(SimulatedScorer(options, NumberScorer(), seed=0).score([group]))
    assert [(row.value, row.labels, row.annotator) for row in rows] == [
        (2.5, 1, "simulated"),
        (-1.0, 1, "simulated"),
    ]


def test_the_oracle_refuses_at_its_rate():
    gold = RuleAnnotator(kind="rule", rule="length")
    options = SimulatedAnnotator(kind="simulated", gold=gold, refusal_rate=0.2)
    tasks = [task(index, "2", "1") for index in range(NUM_TASKS // 2)]
    groups = [Group(prompt=one.prompt, completions=(one.a, one.b)) for one in tasks]
    rows = list(SimulatedScorer(options, NumberScorer(), seed=0).score(groups))
    refused = sum(isinstance(row, Refusal) for row in rows) / len(rows)
    assert abs(refused - 0.2) < three_standard_errors(0.2)
