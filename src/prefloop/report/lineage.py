"""The drawing of a run's artefacts: what was made from what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from prefloop.report.charts import colour, lettering, short, svg

if TYPE_CHECKING:  # the report draws itself with this module
    from prefloop.report.types import StageRow

NODE_WIDTH, NODE_HEIGHT, NODE_GAP_X, NODE_GAP_Y = 78, 24, 24, 20
LINEAGE_LABEL = 132
COLUMNS = (
    "base", "sft", "import", "prompts", "draw", "invent", "generate", "annotate", "select", "reward", "policy", "promote",
    "evaluate",
)  # fmt: skip
HEADINGS = {
    "generate": "groups",
    "annotate": "judgements",
    "select": "pairs",
    "evaluate": "evaluation",
    "draw": "prompts drawn",
    "invent": "prompts made",
}
FLOW = {
    ("base", "sft"), ("base", "generate"), ("sft", "generate"), ("prompts", "generate"), ("draw", "generate"),
    ("draw", "invent"), ("policy", "invent"), ("promote", "invent"), ("invent", "generate"),
    ("generate", "annotate"), ("annotate", "select"), ("select", "reward"), ("reward", "annotate"),
    ("import", "reward"), ("import", "policy"), ("select", "policy"), ("policy", "generate"),
    ("policy", "promote"), ("policy", "evaluate"), ("promote", "generate"),
}  # fmt: skip
"""Inputs that are drawn; the tooltip has all: the reference, the pool of prompts, earlier judgements."""


@dataclass(frozen=True)
class Node:
    """Where an artefact stands in the drawing."""

    stage: "StageRow"
    x: float
    y: float


def lineage(stages: Sequence["StageRow"], arms: Sequence[str]) -> Markup:
    """What was made from what: a column per kind, a row per iteration and arm."""
    first: dict[str, StageRow] = {}
    for stage in stages:
        first.setdefault(stage.key, stage)
    unique = list(first.values())
    kinds = [kind for kind in COLUMNS if any(stage.kind == kind for stage in unique)]
    kinds += sorted({stage.kind for stage in unique} - set(kinds))
    parts = [
        lettering(
            _column(kinds, kind) + NODE_WIDTH / 2, 14, HEADINGS.get(kind, kind), anchor="middle", kind="label"
        )
        for kind in kinds
    ]
    nodes: dict[str, Node] = {}
    top = 26.0
    for arm, iteration in dict.fromkeys((stage.arm, stage.iteration) for stage in unique):
        row = [stage for stage in unique if (stage.arm, stage.iteration) == (arm, iteration)]
        depth = dict.fromkeys(kinds, 0)
        for stage in row:
            at = top + depth[stage.kind] * (NODE_HEIGHT + 4)
            nodes[stage.key] = Node(stage, _column(kinds, stage.kind), at)
            depth[stage.kind] += 1
        name = "before the loop" if iteration is None else f"{short(arm, 8)}, iteration {iteration + 1}"
        parts.append(lettering(0, top + NODE_HEIGHT / 2 + 4, name, kind="name"))
        top += max(depth.values()) * (NODE_HEIGHT + 4) + NODE_GAP_Y
    parts += [_edge(nodes[key], node) for node in nodes.values() for key in _drawn_inputs(node, nodes)]
    parts += [_node(node, nodes, arms) for node in nodes.values()]
    width = round(_column(kinds, kinds[-1]) + NODE_WIDTH + 4)
    return svg(width, round(top - NODE_GAP_Y), "lineage of the artefacts", parts)


def _column(kinds: Sequence[str], kind: str) -> float:
    return LINEAGE_LABEL + kinds.index(kind) * (NODE_WIDTH + NODE_GAP_X)


def _drawn_inputs(node: Node, nodes: dict[str, Node]) -> list[str]:
    """One input of each kind, the newest."""
    newest = {nodes[key].stage.kind: key for key in node.stage.inputs if key in nodes}
    return [key for kind, key in newest.items() if (kind, node.stage.kind) in FLOW]


def _edge(source: Node, target: Node) -> str:
    if target.x > source.x:
        x1, y1 = source.x + NODE_WIDTH, source.y + NODE_HEIGHT / 2
        x2, y2 = target.x, target.y + NODE_HEIGHT / 2
        bend = min((x2 - x1) / 2, 40)
        path = f"M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    else:
        x1, y1 = source.x + NODE_WIDTH / 2, source.y + NODE_HEIGHT
        x2, y2 = target.x + NODE_WIDTH / 2, target.y
        bend = max((y2 - y1) / 2, 6)
        path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return f'<path class="edge" d="{path}"/>'


def _node(node: Node, nodes: dict[str, Node], arms: Sequence[str]) -> str:
    stage = node.stage
    colour_class = "start" if stage.iteration is None else colour(arms, stage.arm)
    made_from = ", ".join(
        f"{nodes[key].stage.kind}-{key}" for key in dict.fromkeys(stage.inputs) if key in nodes
    )
    words = f"{stage.role} · {stage.kind}-{stage.key}, {stage.status}; from {made_from or 'files alone'}"
    return (
        f'<g><title>{escape(words)}</title><rect class="node {colour_class} {stage.status}" x="{node.x:.0f}" '
        f'y="{node.y:.0f}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="5"/>'
        + lettering(node.x + NODE_WIDTH / 2, node.y + 16, stage.key[:7], anchor="middle", kind="key")
        + "</g>"
    )
