"""From a config section to an annotator."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from prefloop.annotate.choose import comparer, scorer
from prefloop.config import Annotator, RuntimeSection
from prefloop.interfaces import InputError
from prefloop.records import Group, Score


class Reward:
    """Stands for a reward model."""

    def __init__(self, path: str | None) -> None:
        self.name = f"reward:{path}"

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        yield from ()


def section(kind: str, **fields):
    return TypeAdapter(Annotator).validate_python({"kind": kind} | fields)


RUNTIME = RuntimeSection(device="cpu")
GOLD = {"kind": "rule", "rule": "length"}
SCORERS = {
    "rule": {"rule": "length"},
    "simulated": {"gold": GOLD},
    "reward_model": {"model": "some/model"},
}
COMPARERS = {
    "judge": {"base_url": "http://localhost/v1", "model": "m"},
    "simulated": {"gold": GOLD},
}


def make_comparer(one, tmp_path: Path):
    return comparer(
        one,
        seed=0,
        cache=tmp_path / "cache",
        reward_scorer=Reward,
        runtime=RUNTIME,
    )


@pytest.mark.parametrize(("kind", "fields"), SCORERS.items())
def test_kinds_that_score_give_a_scorer(kind, fields):
    names = {"rule": "rule/length", "simulated": "simulated", "reward_model": "reward:some/model"}
    assert scorer(section(kind, **fields), seed=0, reward_scorer=Reward, runtime=RUNTIME).name == names[kind]


@pytest.mark.parametrize(("kind", "fields"), COMPARERS.items())
def test_kinds_that_compare_give_a_comparer(kind, fields, tmp_path):
    assert make_comparer(section(kind, **fields), tmp_path).name.startswith(kind)


def test_a_recorded_file_scores_and_compares(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_text('{"prompt": "p", "responses": ["a", "b"], "rewards": [1, 2]}\n')
    recorded = section("recorded", path=str(path))
    assert scorer(recorded, seed=0, reward_scorer=Reward, runtime=RUNTIME).name == "recorded"
    assert make_comparer(recorded, tmp_path).name == "recorded"


def test_a_function_scores(tmp_path):
    (tmp_path / "f.py").write_text("def f(prompt, completion, answer):\n    return 1.0\n")
    function = section("function", target=f"{tmp_path}/f.py:f")
    assert scorer(function, seed=0, reward_scorer=Reward, runtime=RUNTIME).name == "function/f"


def test_the_gold_of_a_simulation_may_be_the_loops_own_reward_model():
    simulated = section("simulated", gold={"kind": "reward_model"})
    assert scorer(simulated, seed=0, reward_scorer=Reward, runtime=RUNTIME).gold.name == "reward:None"


def test_an_annotator_in_the_wrong_role_is_an_input_error(tmp_path):
    for kind, fields in (("judge", COMPARERS["judge"]), ("human", {}), ("pairwise", {"model": "m"})):
        with pytest.raises(InputError, match=f"{kind}.*compares and gives no scores"):
            scorer(section(kind, **fields), seed=0, reward_scorer=Reward, runtime=RUNTIME)
    for kind in ("rule", "reward_model"):
        with pytest.raises(InputError, match=f"{kind}.*does not compare"):
            make_comparer(section(kind, **SCORERS[kind]), tmp_path)
