import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefloop import tales
from prefloop.config import GenerateSection, HfEngine
from prefloop.generate.choose import policy_generator
from prefloop.interfaces import PrefloopError
from prefloop.records import Message, Prompt

pytestmark = pytest.mark.slow

LONG = Prompt.of((Message(role="user", content="Tell a tale of Ada the fox. " * 300),))
PROMPTS = [*tales.prompts()[:5], LONG, *tales.prompts()[5:20]]
OPTIONS = {"num_completions": 2, "max_new_tokens": 12}


def sampling(tiny_model, runtime, processes, **options):
    return policy_generator(
        tiny_model,
        HfEngine(),
        GenerateSection(**{**OPTIONS, **options}),
        seed=0,
        version=0,
        runtime=runtime.model_copy(update={"num_processes": processes, "generation_rows": 4, "threads": 1}),
        dtype="float32",
    )


def chunk_by_chunk(generator) -> list[str]:
    size = generator.prompts_per_chunk
    return [
        group.model_dump_json()
        for start in range(0, len(PROMPTS), size)
        for group in generator.generate(PROMPTS[start : start + size])
    ]


@pytest.mark.parametrize("search", [None, "beam"])
def test_the_same_bytes_whatever_the_number_of_processes(tiny_model, runtime, search):
    with sampling(tiny_model, runtime, 1, search=search) as alone:
        expected = chunk_by_chunk(alone)
        assert alone.prompts_per_chunk == 8
    with sampling(tiny_model, runtime, 2, search=search) as shared:
        assert shared.prompts_per_chunk == 16
        assert chunk_by_chunk(shared) == expected
    assert '"completions":[]' in expected[5]
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_told_and_what_came_before_is_given(tiny_model, runtime):
    with sampling(tiny_model, runtime, 2, max_new_tokens=400) as shared:
        list(shared.generate(PROMPTS[:1]))
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(
            PrefloopError, match="a sampling process was killed, perhaps because memory ran out"
        ):
            list(shared.generate(PROMPTS))
    assert not multiprocessing.active_children()


PARENT = """
import sys
from pathlib import Path
from prefloop import tales
from prefloop.config import GenerateSection, HfEngine, RuntimeSection
from prefloop.generate.choose import policy_generator

if __name__ == "__main__":
    runtime = RuntimeSection(device="cpu", threads=1, num_processes=2, generation_rows=2)
    options = GenerateSection(num_completions=2, max_new_tokens=400)
    with policy_generator(
        Path(sys.argv[1]), HfEngine(), options, seed=0, version=0, runtime=runtime, dtype="float32"
    ) as generator:
        next(generator.generate(tales.prompts()[:40]))
        import multiprocessing
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        sys.stdin.read()
"""


def test_processes_end_when_the_one_that_began_them_is_killed(tiny_model, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, tiny_model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
