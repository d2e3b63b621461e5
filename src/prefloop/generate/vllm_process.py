"""The process that holds vLLM: begun and ended by `VllmProcess`, and asked through a pipe.

A process of its own gives back all memory when it ends, and vLLM's settings of torch stay in it. It ends with the process
that began it, however that one ends. Knows nothing about prompts and policies beyond token ids and folders. This module
imports neither torch nor vLLM, because their environment is set before they are imported.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from prefloop.interfaces import InputError, PrefloopError

ENDS_WITHIN_S = 20
"""Seconds that the process has to end by itself."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is in this process, not in another one that could be left behind
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Unless the user's says otherwise."""


@dataclass(frozen=True)
class Start:
    """What a vLLM process is begun with; another policy of the same shape can follow, all else stays."""

    shape: str
    """Digest of what policies must have in common to follow one another: configuration and tokenizer."""
    dtype: str
    tensor_parallel_size: int
    memory_share: float
    enforce_eager: bool
    sleeps: bool
    """Whether it will be asked to sleep."""
    device: str
    threads: int
    """0 leaves the choice to torch."""
    max_length: int
    """Tokens of the longest prompt and its completion."""
    max_rows: int
    """Completions that are sampled side by side."""
    cache_bytes: int | None
    """For keys and values; None leaves the choice to vLLM."""


class Ask(NamedTuple):
    """Completions of one prompt that are drawn alike."""

    ids: Sequence[int]
    params: dict[str, Any]
    """Of vLLM's SamplingParams."""


class Answer(NamedTuple):
    """A completion as vLLM gives it."""

    token_ids: tuple[int, ...]
    token_logps: tuple[float, ...]
    stopped: bool


class VllmProcess:
    """A vLLM process, seen from the one that began it."""

    def __init__(self, start: Start, folder: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._log = tempfile.NamedTemporaryFile(prefix="prefloop-vllm-", suffix=".log")  # noqa: SIM115
        self._process = spawn.Process(target=serve, args=(other, self._log.name, start, folder))
        self._process.start()
        other.close()
        try:
            self._receive()
        except BaseException:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.is_alive()

    def load(self, folder: Path) -> None:
        """Takes another policy of the same shape; wakes it if it sleeps."""
        self._call("load", folder)

    def sleep(self) -> None:
        """Gives back the device's memory until `load`."""
        self._call("sleep")

    def sample(self, asks: Sequence[Ask]) -> Iterator[tuple[int, tuple[Answer, ...]]]:
        """Yields the place of an ask and its completions, in the order in which they end. Raises PrefloopError.

        Ends the process where nobody waits for all of them, as it would answer the next question with the rest.
        """
        left = len(asks)
        try:
            self._send("sample", asks)
            while left:
                answer = self._receive()
                left -= 1
                yield answer
        finally:
            if left:
                self.end()

    def end(self) -> None:
        """Ends the process, at once if it does not end by itself."""
        self._pipe.close()
        self._process.join(ENDS_WITHIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._log.close()

    def _call(self, name: str, *arguments: Any) -> None:
        self._send(name, *arguments)
        self._receive()

    def _send(self, name: str, *arguments: Any) -> None:
        try:
            self._pipe.send((name, arguments))
        except OSError:
            raise self._gone() from None

    def _receive(self) -> Any:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(found, PrefloopError):
            raise found
        return found

    def _gone(self) -> PrefloopError:
        self._process.join(ENDS_WITHIN_S)
        how = f"exit code {self._process.exitcode}"
        if self._process.exitcode == -signal.SIGKILL:
            how = "killed, perhaps because memory ran out"
        log = Path(self._log.name)  # gone where `end` was called before
        words = log.read_text(errors="replace").strip().splitlines()[-5:] if log.exists() else []
        return PrefloopError(
            "\n  ".join(
                [
                    f"the vLLM process ended ({how}). What was sampled is kept; run again to go on. Its last words:",
                    *(words or ["(none)"]),
                ]
            )
        )


# --- in the process --------------------------------------------------------------------------------------------------


def serve(pipe: Connection, log: str, start: Start, folder: Path) -> None:
    """What the process runs: answers until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    words = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(words, 1)
    os.dup2(words, 2)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if start.threads:
        os.environ["OMP_NUM_THREADS"] = str(start.threads)
    try:
        engine = _Engine(start, folder)
        pipe.send(None)
        while True:
            name, arguments = pipe.recv()
            for answer in getattr(engine, name)(*arguments):
                pipe.send(answer)
    except (EOFError, BrokenPipeError):
        return  # the parent has closed its end
    except PrefloopError as error:
        pipe.send(error)
    except (RuntimeError, ValueError, OSError) as error:  # what vLLM raises when it cannot run a model
        pipe.send(PrefloopError(f"vLLM: {error}"))
        raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"
    parent.join()
    os._exit(1)


class _Engine:
    """vLLM with one policy at a time. Every method yields what is sent back."""

    def __init__(self, start: Start, folder: Path) -> None:
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        on_cpu = current_platform.is_cpu()
        if start.device == "cpu" and not on_cpu:
            raise InputError(
                "runtime.device = cpu: the vLLM that is installed runs on "
                f"{current_platform.device_type}; install its CPU build, or choose another device"
            )
        if on_cpu:
            # what vLLM compiles even in eager mode needs a C++ compiler and a minute, for a sum over the vocabulary
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        self._sleeps = start.sleeps and not on_cpu
        self._llm = LLM(
            str(folder),
            dtype=start.dtype,
            tensor_parallel_size=start.tensor_parallel_size,
            gpu_memory_utilization=start.memory_share,
            enforce_eager=start.enforce_eager or on_cpu,
            enable_sleep_mode=self._sleeps,
            max_model_len=start.max_length,
            max_num_seqs=start.max_rows,
            kv_cache_memory_bytes=start.cache_bytes,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs",  # of the policy itself: temperature 1, nothing penalised or cut off
            generation_config="vllm",  # the folder's own defaults would change what is sampled
            worker_extension_cls="prefloop.generate.vllm_process.PolicyWorker",
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )

    def load(self, folder: Path) -> Iterator[None]:
        if self._sleeps:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("take_policy", args=(str(folder),))
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        yield None

    def sleep(self) -> Iterator[None]:
        if self._sleeps:  # on a CPU vLLM says that it sleeps, and keeps everything
            self._llm.sleep(level=2)
        yield None

    def sample(self, asks: Sequence[Ask]) -> Iterator[tuple[int, tuple[Answer, ...]]]:
        from vllm import SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        # keys of other weights are wrong, and those of earlier prompts would make a chunk depend on what came before
        self._llm.reset_prefix_cache()
        engine = self._llm.llm_engine
        for place, ask in enumerate(asks):
            params = SamplingParams(**ask.params, output_kind=RequestOutputKind.FINAL_ONLY)
            engine.add_request(str(place), TokensPrompt(prompt_token_ids=list(ask.ids)), params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                yield int(output.request_id), tuple(_answer(one) for one in output.outputs)


def _answer(output: Any) -> Answer:
    tokens = tuple(output.token_ids)
    logps = tuple(found[token].logprob for token, found in zip(tokens, output.logprobs, strict=True))
    return Answer(tokens, logps, output.finish_reason == "stop")


class PolicyWorker:
    """What vLLM's workers can do besides their own work; vLLM mixes it into their class."""

    def take_policy(self, folder: str) -> None:
        """Takes the weights of another policy of the same shape, in place."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # pyright: ignore[reportMissingImports]

        worker: Any = self
        worker.reload_weights(weights_path=folder)
        for module in worker.model_runner.get_model().modules():
            # where input and output embedding are one, the reload skips what was made of the output's weights
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
