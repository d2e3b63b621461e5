import pytest

from prefloop.config import Experiment, hashed, parse
from prefloop.interfaces import InputError

TEXT = "prompts: prompts.jsonl\nsft: {text: stories.txt}\nreward: {model: scorer}\n"
URL = "http://127.0.0.1:8000/v1"


def read(*overrides: str) -> Experiment:
    return parse(TEXT, ["generate.engine.kind=remote", *overrides], where="exp.yaml")


def hashed_engine(*overrides: str) -> dict:
    return hashed(read(*overrides).generate.engine)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "give either urls or replicas"),
        ([f"generate.engine.urls=[{URL}]", "generate.engine.replicas=1"], "give either urls or replicas"),
        ([f"generate.engine.urls=[{URL},{URL}]"], "one is there twice"),
        ([f"generate.engine.urls=[{URL}]", "generate.engine.server_arguments=[--x]"], "are for the servers of `replicas`"),
        (["generate.engine.replicas=1", "generate.engine.api=grpc"], "'completions' or 'chat'"),
        (["generate.engine.replicas=1", "generate.engine.dtype=float64"], "'float32' or 'bfloat16'"),
        (["generate.engine.replicas=-1"], "greater than or equal to 0"),
        (["generate.engine.replicas=1", "generate.engine.concurrency=0"], "greater than or equal to 1"),
        (["generate.engine.replicas=1", "generate.engine.timeout_s=0"], "greater than 0"),
        (["generate.engine.replicas=1", "generate.engine.retries=-1"], "greater than or equal to 0"),
        (["generate.engine.replicas=1", "generate.engine.patience_s=-1"], "greater than or equal to 0"),
    ],
)  # fmt: skip
def test_sections_that_cannot_be_are_told(overrides, expected):
    with pytest.raises(InputError, match=expected):
        read(*overrides)


@pytest.mark.parametrize(
    "override",
    [
        f"urls=[{URL}]", "replicas=2", "api_key_env=KEY", "concurrency=3", "timeout_s=3", "retries=3", "patience_s=3",
    ],
)  # fmt: skip
def test_who_serves_and_how_patiently_it_is_asked_does_not_enter_a_key(override):
    usual = ["generate.engine.replicas=1"]
    changed = [] if override.startswith("urls") else usual
    assert hashed_engine(*changed, f"generate.engine.{override}") == hashed_engine(*usual)


@pytest.mark.parametrize(
    "override", ["api=chat", "model=mine", "dtype=bfloat16", "server_arguments=[--quantization=fp8]"]
)
def test_what_can_change_results_enters_a_key(override):
    usual = ["generate.engine.replicas=1"]
    assert hashed_engine(*usual, f"generate.engine.{override}") != hashed_engine(*usual)
