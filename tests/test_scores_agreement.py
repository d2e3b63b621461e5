"""`prefloop score agreement`: tables of textbooks through the command, ratings as rows, and what cannot be read."""

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring import agreement
from scored import command, printed, write


def values(scored: dict) -> dict[str, float | None]:
    return {name: one["value"] for name, one in scored["figures"].items()}


def rows_of_two() -> list[dict]:
    """The cross table 20, 5; 10, 15 as a file of ratings, in text as a spreadsheet has them."""
    cells = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    pairs = [pair for pair, count in cells.items() for _ in range(count)]
    return [
        {"unit": unit, "annotator": who, "value": value}
        for unit, pair in enumerate(pairs)
        for who, value in zip(("ada", "bo"), pair, strict=True)
    ]


def test_ratings_as_rows_give_what_the_cross_table_gives(tmp_path):
    (found,) = command("score", "agreement", write(tmp_path / "rows.jsonl", rows_of_two()))
    (table,) = command(
        "score", "agreement", write(tmp_path / "table.jsonl", [{"table": [[20, 5], [10, 15]]}])
    )
    for one in (values(found), values(table)):
        # 35 of 50 agree; Cohen's chance is 0.5 * 0.6 + 0.5 * 0.4, Gwet's 2 * 0.55 * 0.45
        assert one["raw"] == pytest.approx(0.7)
        assert one["cohen_kappa"] == pytest.approx(0.4)
        assert one["gwet_ac1"] == pytest.approx((0.7 - 0.495) / (1 - 0.495), abs=1e-6)
        assert (one["num_units"], one["num_annotators"], one["num_ratings"]) == (50, 2, 100)
    # names have no order, numbers do
    assert "alpha_ordinal" not in found["figures"]
    assert "alpha_ratio" in table["figures"]


def test_what_is_undefined_is_said_to_be(tmp_path):
    file = write(tmp_path / "same.jsonl", [{"ratings": [[1, 1, 1], [1, 1, 1]]}])
    (found,) = command("score", "agreement", file)
    assert found["figures"]["alpha_nominal"]["value"] is None
    assert found["figures"]["raw"]["value"] == 1
    assert "alpha_nominal is undefined: all judgements have one value" in printed("score", "agreement", file)


def test_units_judged_once_are_told(tmp_path):
    (found,) = command(
        "score", "agreement", write(tmp_path / "t.jsonl", [{"ratings": [[1, 2, 1], [1, 1, None]]}])
    )
    assert "1 of 3 units were judged once and count in gwet_ac1 only" in found["notes"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"ratings": [[1, 2], [1]]}, "row 1: ratings is not a list of lists of one length"),
        ({"counts": [[1, -2]]}, "row 1: -2 is no count"),
        ({"table": [[1, 2, 3], [1, 2, 3]]}, "row 1: a cross table of 2 by 3; it must be square"),
        ({"unit": 1, "annotator": "a", "value": [1]}, "row 1: value is .*; give a number or the name"),
        ({"score": 1}, "columns score are of no format that is known here"),
    ],
)
def test_files_that_cannot_be_read_name_the_place(tmp_path, row, told):
    with pytest.raises(InputError, match=told):
        agreement.score(write(tmp_path / "rows.jsonl", [row]), draws=2)
