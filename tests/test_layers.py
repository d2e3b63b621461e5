"""Imports point down: the floors of docs/architecture.md, checked in the code."""

import ast
import functools
import itertools
from pathlib import Path

import prefloop

ROOT = Path(prefloop.__file__).parent
FLOORS = [
    {
        "records", "interfaces", "config", "store", "tales", "tale_rules", "containers", "fields", "formats", "data",
        "verdicts", "wording", "export", "tracking", "launch", "servers", "targets", "labels", "algorithms",
        "sandbox",
    },
    {
        "losses", "ragged", "advantages", "shaping", "trust_region", "selection", "siblings", "statistics", "agreement",
        "scoring",
    },
    {"attention", "decoding", "lean", "batches", "modeling", "forward", "reward", "trunks", "trust"},
    {"generate", "annotate", "train", "evaluate", "suites"},
    {"stages", "pipeline", "watching"},
    {"cli", "commands", "screen", "browse", "chat", "doctor", "tokens", "report", "card", "web", "studies"},
]  # fmt: skip
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
PARTS = FLOORS[3]
HEAVY = {"torch", "transformers", "accelerate", "peft", "datasets", "wandb", "trackio", "tensorboard", "vllm"}
STARTS_WITHOUT_TORCH = FLOORS[0] | {
    "selection",
    "siblings",
    "statistics",
    "agreement",
    "scoring",
    "stages",
    "pipeline",
    "watching",
    "cli",
    "commands",
    "screen",
    "browse",
    "doctor",
    "tokens",
    "report",
    "card",
    "web",
    "studies",
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def imports(path: Path, *, top_only: bool) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def own_rooms(path: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in imports(path, top_only=False) if name.startswith("prefloop.")}
    return rooms & FLOOR_OF.keys()


FILES = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT]


def test_every_file_has_a_floor():
    assert {room_of(path) for path in FILES} == FLOOR_OF.keys()


def test_imports_point_down():
    up = [
        (str(path.relative_to(ROOT)), room)
        for path in FILES
        for room in own_rooms(path)
        if FLOOR_OF[room] > FLOOR_OF[room_of(path)]
    ]
    assert up == []


def test_a_part_never_imports_another_part():
    across = [
        (str(path.relative_to(ROOT)), room)
        for path in FILES
        for room in own_rooms(path)
        if room_of(path) in PARTS and room in PARTS and room != room_of(path)
    ]
    assert across == []


def test_rooms_that_start_without_torch_import_nothing_heavy_at_the_top():
    heavy = [
        (str(path.relative_to(ROOT)), name)
        for path in FILES
        if room_of(path) in STARTS_WITHOUT_TORCH
        for name in imports(path, top_only=True)
        if name.split(".")[0] in HEAVY
    ]
    assert heavy == []


def test_floors_share_no_room():
    assert not any(one & other for one, other in itertools.combinations(FLOORS, 2))
