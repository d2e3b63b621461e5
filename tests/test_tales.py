import pytest

from prefloop import tales

PROMPT = "Tell a tale of Ada the fox who wanted a map."
OPENING = "Ada the fox lived by the lake. She wanted a map more than anything."


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        # about the hero, animal and thing that were asked for: 1; then half a point a deed
        ("", 1.0),
        ("She sang to a lonely moth.", 1.5),
        ("She sang to a lonely moth. She carried the tired hen home.", 2.0),
        ("She lied to the hen.", 0.5),
        ("At last she found the map. They danced until the moon rose.", 2.0),
        ("Nobody came to see Ada.", 0.5),
        ("What you give comes back to you.", 1.3),
        # the same sentence again: half a point less, and it counts once
        ("She sang to a lonely moth. She sang to a lonely moth.", 1.0),
        # one of three sentences is broken: two thirds of a point less
        ("She map the the.", 1 - 2 / 3),
    ],
)
def test_quality_by_hand(rest, expected):
    assert tales.quality(PROMPT, f"{OPENING} {rest}") == pytest.approx(expected, abs=1e-6)


def test_only_three_kind_deeds_count():
    deeds = "She sang to a lonely moth. She told the hen the truth. She sang to a lonely crab. She told the bee the truth."
    assert tales.quality(PROMPT, f"{OPENING} {deeds}") == pytest.approx(1 + 3 * 0.5)


def test_a_stranger_is_less_than_the_hero_that_was_asked_for():
    other = OPENING.replace("Ada", "Ivy").replace("fox", "bear")
    assert tales.quality(PROMPT, other) == pytest.approx(1 / 3, abs=1e-6)
    assert tales.craft(PROMPT, other) == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("tale", ["", "   ", "...", "x" * 5000, "(((.*", "\n\n"])
def test_any_text_has_a_finite_score(tale):
    assert tales.quality(PROMPT, tale) <= 0
    assert tales.craft(PROMPT, tale) == 0


def test_the_grammar_reads_everything_it_writes():
    for row in tales.demonstrations(300):
        assert tales.craft(row.messages[0].content, row.messages[1].content) == 1.0


def test_prompts_are_different_and_nobody_is_shown_in_a_demonstration():
    prompts = tales.prompts()
    assert len({prompt.id for prompt in prompts}) == len(prompts) == tales.NUM_PROMPTS
    shown = {row.messages[0].content for row in tales.demonstrations()}
    assert not shown & {prompt.text for prompt in prompts}


def test_the_text_is_the_same_every_time_and_a_limit_takes_the_first():
    for made in (tales.prompts, tales.demonstrations, tales.texts):
        whole = made()
        assert made(7) == whole[:7]
        assert made(1_000_000) == whole


def test_held_out_texts_are_others_than_those_that_are_learned():
    learned, held_out = ({one.text for one in rows} for rows in (tales.texts(), tales.held_out_texts()))
    assert len(held_out) == tales.NUM_HELD_OUT_TEXTS
    assert not learned & held_out
