"""Real vLLM servers on a tiny model, in a Python of their own."""

import os
import signal
from pathlib import Path

import pytest

from prefloop import tales
from prefloop.config import GenerateSection, RemoteEngine
from prefloop.forward import LogpsModule
from prefloop.generate.choose import policy_generator
from prefloop.generate.serve import PYTHON_VARIABLE, serve_policy
from prefloop.modeling import load_codec, load_policy
from prefloop.trust import compare_with_trainer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} names no Python with vLLM"
    ),
]
PROMPTS = tales.prompts()[:24]
ARGUMENTS = ["--enforce-eager", "--max-model-len=512", "--max-num-seqs=16"]
ON_A_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def descendants(pid: int) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [one for child in children for one in (child, *descendants(child))]


def test_vllm_gives_training_s_log_probabilities_and_a_killed_server_loses_nothing(
    tiny_model, runtime, tmp_path, monkeypatch
):
    for name, value in ON_A_CPU.items():
        monkeypatch.setenv(name, value)
    codec = load_codec(tiny_model)
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=codec.pad_id, runtime=runtime)

    def sampling(urls, **options):
        return policy_generator(
            tiny_model,
            RemoteEngine(kind="remote", urls=urls, concurrency=4),
            GenerateSection(
                **({"num_completions": 4, "max_new_tokens": 24, "max_prompt_length": 400} | options)
            ),
            seed=0,
            version=0,
            runtime=runtime,
            dtype="float32",
        )

    def gap(groups) -> float | None:
        return compare_with_trainer(groups, module, codec, runtime, dtype="float32")

    with serve_policy(
        str(tiny_model), number=2, dtype="float32", arguments=ARGUMENTS, logs=tmp_path
    ) as servers:
        with sampling(servers.urls[:1]) as generator:
            alone = list(generator.generate(PROMPTS))
        assert 0 < gap(alone) < 1e-4
        shaped = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
        with sampling(servers.urls, **shaped) as generator:
            assert 0 < gap(list(generator.generate(PROMPTS[:8]))) < 1e-4
        with sampling(servers.urls, stop=["a"], max_new_tokens=60) as generator:
            completions = [one for group in generator.generate(PROMPTS[:8]) for one in group.completions]
        stopped = [one for one in completions if one.finish_reason == "stop"]
        assert len(stopped) > 8
        for one in stopped:
            assert one.token_ids[-1] == codec.terminator_id or "a" in codec.decode(one.token_ids[-1:])
            assert "a" not in codec.decode(one.token_ids[:-1])
        keeper = servers.processes[0]
        found = []
        with sampling(servers.urls) as generator:
            for number, group in enumerate(generator.generate(PROMPTS)):
                if number == 3:
                    for pid in descendants(keeper.pid):
                        os.kill(pid, signal.SIGKILL)
                found.append(group)
        assert [one.prompt.id for one in found] == [one.id for one in PROMPTS]
        assert [c.token_ids for g in found for c in g.completions] == [
            c.token_ids for g in alone for c in g.completions
        ]
        assert 0 < gap(found) < 1e-4
