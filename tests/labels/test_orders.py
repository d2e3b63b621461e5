"""Orders are balanced, stable and told to nobody."""

import itertools
from collections import Counter

import pytest

from prefloop.labels.orders import presented_order, williams_square


def test_the_square_of_four_is_that_of_the_books():
    # Williams (1949): 1 2 4 3 / 2 3 1 4 / 3 4 2 1 / 4 1 3 2, counted from zero
    assert williams_square(4) == [(0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1)]


@pytest.mark.parametrize("size", range(2, 10))
def test_every_text_has_every_place_and_every_neighbour_equally_often(size):
    rows = williams_square(size)
    times = len(rows) // size
    assert len(rows) == (size if size % 2 == 0 else 2 * size)
    for place in range(size):
        assert Counter(row[place] for row in rows) == dict.fromkeys(range(size), times)
    neighbours = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert neighbours == {(a, b): times for a in range(size) for b in range(size) if a != b}


def test_the_second_person_sees_two_texts_the_other_way_round():
    for number in range(50):
        first, second, third = (presented_order("secret", f"task {number}", slot, 2) for slot in range(3))
        assert first == second[::-1] == third


def test_which_order_comes_first_depends_on_the_task_and_on_the_secret():
    firsts = Counter(presented_order("secret", f"task {number}", 0, 2) for number in range(1000))
    assert abs(firsts[0, 1] - 500) < 5 * 1000**0.5 / 2  # five standard deviations
    others = [presented_order("other", f"task {number}", 0, 2) for number in range(1000)]
    same = sum(one == presented_order("secret", f"task {n}", 0, 2) for n, one in enumerate(others))
    assert abs(same - 500) < 5 * 1000**0.5 / 2


def test_an_order_is_the_same_whenever_it_is_asked_for():
    assert presented_order("s", "t", 3, 5) == presented_order("s", "t", 3, 5)
    assert sorted(presented_order("s", "t", 3, 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_texts_have_one_order(number):
    assert presented_order("s", "t", 0, number) == tuple(range(number))
