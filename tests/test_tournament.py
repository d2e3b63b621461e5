"""`prefloop tournament`: known strengths come back, the fit is where its equations say, and nothing hangs on the order."""

import itertools
import random

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring.games import Game, read_games
from prefloop.scoring.tournament import play
from scored import command, printed, write

STRENGTHS = {"a": 1180.0, "b": 1060.0, "c": 940.0, "d": 820.0}
"""They have the mean of a board without anchors."""
DRAWS = 20


def chance(one: float, other: float) -> float:
    """Elo's formula."""
    return 1 / (1 + 10 ** ((other - one) / 400))


def exact_games(*, prompts: int = 30) -> list[Game]:
    """Every pair on every prompt, with the chance itself as the verdict."""
    return [
        Game(f"prompt {prompt}", a, b, chance(STRENGTHS[a], STRENGTHS[b]))
        for prompt in range(prompts)
        for a, b in itertools.combinations(STRENGTHS, 2)
    ]


def drawn_games(*, prompts: int = 100, seed: int = 0) -> list[Game]:
    """Games that were won, lost or tied by chance; d met only c."""
    rng = random.Random(seed)
    return [
        Game(
            f"prompt {prompt}",
            a,
            b,
            rng.choice((0.0, 1.0, chance(STRENGTHS[a], STRENGTHS[b]) > rng.random(), 0.5)),
        )
        for prompt in range(prompts)
        for a, b in (("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"))
    ]


def strengths(found) -> dict[str, float]:
    return {one.model: one.strength.value for one in found.standings}


# --- the fit ---------------------------------------------------------------------------------------------------------


def test_known_strengths_come_back():
    found = play(exact_games(), draws=DRAWS)
    assert strengths(found) == pytest.approx(STRENGTHS, abs=0.05)
    assert [one.model for one in found.standings] == ["a", "b", "c", "d"]
    assert found.unbounded == ()
    # every prompt says the same, so that no sample of them differs
    assert all(one.strength.half_width == pytest.approx(0, abs=1e-6) for one in found.standings)


def test_two_policies_stand_as_far_apart_as_their_odds():
    games = [Game(str(number), "a", "b", float(number % 4 != 0)) for number in range(400)]
    found = strengths(play(games, draws=2))
    assert found["a"] - found["b"] == pytest.approx(190.849, abs=0.01)  # 400 log10 3


def test_at_the_optimum_everybody_has_won_what_the_scale_expects():
    games = drawn_games()
    found = play(games, draws=2)
    scale = strengths(found)
    for name in STRENGTHS:
        won = sum(one.p_a if one.a == name else 1 - one.p_a for one in games if name in (one.a, one.b))
        expected = sum(
            chance(scale[name], scale[one.b if one.a == name else one.a])
            for one in games
            if name in (one.a, one.b)
        )
        assert won == pytest.approx(expected, abs=0.005)
        # the table of pairings says the same
        rows = [(one.won, one.expected, one.games) if one.a == name else
                (one.games - one.won, one.games - one.expected, one.games)
                for one in found.pairings if name in (one.a, one.b)]  # fmt: skip
        assert sum(row[0] for row in rows) == pytest.approx(won)
        assert sum(row[1] for row in rows) == pytest.approx(expected, abs=1e-6)
        standing = next(one for one in found.standings if one.model == name)
        assert standing.won == pytest.approx(won / standing.games)


def with_texts(games: list[Game], *, seed: int = 1) -> list[Game]:
    """Answers of random lengths and Markdown."""
    rng = random.Random(seed)

    def text() -> str:
        return "word " * rng.randrange(5, 60) + "\n- item" * rng.randrange(4) + " **bold**" * rng.randrange(3)

    return [one._replace(texts=(text(), text())) for one in games]


@pytest.mark.parametrize("controls", [(), ("length", "markdown")])
def test_neither_the_order_of_rows_nor_of_sides_matters(controls):
    games = with_texts(drawn_games())
    swapped = [Game(one.prompt, one.b, one.a, 1 - one.p_a, one.texts[::-1]) for one in games]
    random.Random(2).shuffle(swapped)
    found, other = (play(some, controls=controls, draws=2) for some in (games, swapped))
    assert strengths(other) == pytest.approx(strengths(found), abs=1e-6)
    for name, weight in found.style.items():
        assert other.style[name].value == pytest.approx(weight.value, abs=1e-8)


def test_intervals_draw_prompts_and_not_games():
    games = drawn_games()
    found = play(games, draws=400)
    repeated = play(games * 5, draws=400)
    for one, other in zip(found.standings, repeated.standings, strict=True):
        assert other.strength.half_width == pytest.approx(one.strength.half_width, rel=0.02)
        assert other.games == 5 * one.games
    again = play(games, draws=400)
    assert again == found
    assert play(games, draws=400, seed=1) != found


def test_style_is_taken_out():
    """Verdicts that hang on known strengths and known weights of length: both come back."""
    games = with_texts(exact_games(prompts=200))
    lengths = [(len(one.texts[0]), len(one.texts[1])) for one in games]
    longer = [(a - b) / (a + b) for a, b in lengths]
    size = (sum(one**2 for one in longer) / len(longer)) ** 0.5
    judged = [
        one._replace(p_a=chance(STRENGTHS[one.a] + 300 * gap / size, STRENGTHS[one.b]))
        for one, gap in zip(games, longer, strict=True)
    ]
    found = play(judged, controls=["length"], draws=2)
    assert strengths(found) == pytest.approx(STRENGTHS, abs=0.1)
    assert found.style["length"].value == pytest.approx(300 / 173.7178, abs=1e-3)
    assert strengths(play(judged, draws=2)) != pytest.approx(STRENGTHS, abs=10)


# --- anchors and graphs ----------------------------------------------------------------------------------------------


def test_an_anchor_moves_all_and_two_hold_both():
    games = drawn_games()
    free = strengths(play(games, draws=2))
    one = strengths(play(games, anchors={"b": 1500.0}, draws=2))
    assert one["b"] == 1500
    assert one["a"] - one["d"] == pytest.approx(free["a"] - free["d"], abs=0.05)
    found = play(games, anchors={"a": 1500.0, "b": 1200.0}, draws=DRAWS)
    assert (strengths(found)["a"], strengths(found)["b"]) == (1500, 1200)
    # the others are where they won what is expected of them against these
    scale = strengths(found)
    c = [one for one in games if "c" in (one.a, one.b)]
    won = sum(one.p_a if one.a == "c" else 1 - one.p_a for one in c)
    expected = sum(chance(scale["c"], scale[one.b if one.a == "c" else one.a]) for one in c)
    assert won == pytest.approx(expected, abs=0.01)
    held = {one.model: one.strength.half_width for one in found.standings if one.anchored}
    assert held == {"a": 0, "b": 0}


def test_groups_that_never_met_are_refused_by_name():
    games = [Game("1", "a", "b", 1.0), Game("1", "c", "d", 0.0), Game("2", "d", "e", 0.5)]
    with pytest.raises(InputError, match="no chain of games joins these groups.*: a, b; c, d, e"):
        play(games, draws=2)


def test_who_never_lost_is_told_to_stand_where_the_ridge_puts_them(tmp_path):
    games = [Game(str(n), "a", "b", float(n % 2)) for n in range(10)] + [Game("1", "c", "a", 1.0)] * 5
    found = play(games, draws=2)
    assert found.unbounded == ("c",)
    assert found.standings[0].model == "c"
    rows = [{"prompt": one.prompt, "model_a": one.a, "model_b": one.b, "p_a": one.p_a} for one in games]
    assert "would bound them: c" in printed("tournament", write(tmp_path / "rows.jsonl", rows), "--draws", 2)


# --- files and the command -------------------------------------------------------------------------------------------


def test_verdicts_of_every_format_are_one_set_of_games(tmp_path):
    rows = [
        {"question_id": 7, "model_a": "x", "model_b": "y", "winner": "model_b"},
        {"prompt": "who?", "model_a": "x", "model_b": "y", "p_a": 0.25, "answer_a": "A", "answer_b": "B"},
        {"instruction": "who?", "generator_1": "x", "generator_2": "y", "preference": 1.25, "output_1": "A",
         "output_2": "B"},
        {"question_id": 8, "model_1": "x", "model_2": "y", "g1_judgment": "[[A]]", "g2_judgment": "[[A]]"},
        {"model_a": "x", "model_b": "y", "winner": "tie (bothbad)"},
        {"model_a": "x", "model_b": "x", "winner": "model_a"},
        {"model_a": "x", "model_b": "y", "p_a": None},
    ]  # fmt: skip
    found = read_games([write(tmp_path / "rows.jsonl", rows)])
    assert [one.p_a for one in found.games] == [0.0, 0.25, 0.75, 0.5, 0.5]
    assert [one.prompt for one in found.games[:4]] == ["7", "who?", "who?", "8"]
    assert found.games[1].texts == found.games[2].texts == ("A", "B")
    assert (found.rows_in, found.dropped) == (7, {"against_itself": 1, "no_verdict": 1})
    assert found.without_prompt == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"model_a": "x", "model_b": "y", "p_a": 2}, "row 1: p_a is 2, not a probability"),
        (
            {"model_a": "x", "model_b": "y", "winner": "x"},
            "row 1: winner is 'x', not model_a, model_b or tie",
        ),
        ({"model_a": "", "model_b": "y", "p_a": 1}, "row 1: no model_a"),
        ({"a": "x"}, "columns a are of no format that is known here"),
        ({"model_a": "x", "model_b": "x", "p_a": 1}, "no row has a verdict"),
    ],
)
def test_rows_that_are_no_games_name_the_place(tmp_path, row, told):
    with pytest.raises(InputError, match=told):
        read_games([write(tmp_path / "rows.jsonl", [row])])


def verdicts(tmp_path) -> str:
    rows = [
        {"prompt_id": one.prompt, "model_a": one.a, "model_b": one.b, "p_a": float(one.p_a)}
        for one in drawn_games()
    ]
    return write(tmp_path / "verdicts.jsonl", rows)


def test_the_board_is_printed_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "board.png"
    out = printed("tournament", verdicts(tmp_path), "--draws", 50, "--anchor", "b=1200", "--plot", plot)
    for words in ("400 games of 4 policies on 100 prompts", "anchored", "rows: 400 in, 400 scored"):
        assert words in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_says_how_the_scale_was_made(tmp_path):
    found = command("tournament", verdicts(tmp_path), "--draws", 5, "--seed", 3)
    assert found["how"] == {"ridge": 0.001, "draws": 5, "seed": 3, "style": "none", "anchors": {}}
    assert found["rows"] == {"in": 400, "scored": 400, "dropped": {}}
    assert {one["model"] for one in found["standings"]} == set(STRENGTHS)
    assert len(found["pairings"]) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--anchor", "b"), "--anchor b: give MODEL=POINTS"),
        (("--anchor", "z=1000"), "anchor z: no games; there are a, b, c, d"),
        (("--plot", "board.jpg"), "board.jpg: plots are written to .png, .svg, .pdf"),
        (("--style", "length"), "400 of 400 games have no texts"),
    ],
)
def test_options_that_cannot_be_are_told(tmp_path, words, told):
    with pytest.raises(InputError, match=told):
        printed("tournament", verdicts(tmp_path), "--draws", 2, *words)


@pytest.mark.shared
def test_against_one_baseline_the_scale_is_the_log_odds_of_arena_hards_scores(shared):
    file = shared / "data" / "arena_hard" / "battles_v0.1.jsonl.gz"
    found = command("tournament", file, "--anchor", "gpt-4-0314=1000", "--draws", 2)
    points = {one["model"]: one["strength"]["value"] for one in found["standings"]}
    # 23.34 % of rows won: 400 log10(0.2334 / 0.7666)
    assert points["gpt-3.5-turbo-0125"] == pytest.approx(1000 - 206.6, abs=0.1)
    assert 100 * chance(points["Athene-V2-Chat"], 1000) == pytest.approx(86.325, abs=0.01)
