"""The tree that `prefloop show` draws."""

import io

from rich.console import Console

from prefloop import browse
from prefloop.browse import search_tree
from prefloop.records import SearchTree, TreeNode


def node(parent, text, *, visits=1, q=0.0, ends=False) -> TreeNode:
    return TreeNode(
        parent=parent,
        start=0,
        token_ids=(1,),
        text=text,
        prior=0.5,
        visits=visits,
        q=q,
        value=1.5,
        ends=ends,
    )


def tree(*nodes, committed=(0,), leaves=()) -> SearchTree:
    return SearchTree(
        annotator="rule/[red]x", nodes=nodes, committed=committed, leaves=leaves, num_drawn=7, num_tokens=90
    )


def drawn(one: SearchTree, *, colour: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=colour).print(search_tree(one))
    return out.getvalue()


def test_steps_hang_below_those_before_them_with_their_figures():
    shown = drawn(
        tree(
            node(None, "", visits=5),
            node(0, "She smiled.", visits=3, q=0.25),
            node(0, "She left.", q=-0.5),
            node(1, "They danced.", ends=True),
            committed=(0, 1),
            leaves=(3, 2, 3),
        )
    )
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines == [
        "search by rule/[red]x: 7 completions of 90 tokens",
        "├── She smiled. 3 visits, Q +0.250, value 1.500",
        "│   └── They danced. (end) 1 visits, Q +0.000, value 1.500 #0, #2",
        "└── She left. 1 visits, Q -0.500, value 1.500 #1",
    ]


def test_text_of_models_cannot_write_to_the_terminal_or_style_it():
    shown = drawn(tree(node(None, ""), node(0, "\x1b[31mred\x1b]0;title\x07 [bold]loud[/] \u202eback\nnext")))
    assert "red [bold]loud[/] back next" in shown
    assert "\x1b" not in shown and "\u202e" not in shown


def test_what_was_committed_to_is_bold():
    shown = drawn(tree(node(None, ""), node(0, "kept"), node(0, "other"), committed=(0, 1)), colour=True)
    assert "\x1b[1mkept\x1b[0m" in shown
    assert "\x1b[1mother" not in shown


def test_large_trees_are_cut_to_the_most_visited_steps_and_say_so(monkeypatch):
    monkeypatch.setattr(browse, "NODES_SHOWN", 3)
    rare = [node(0, f"rare {number}", visits=1) for number in range(9)]
    often = [node(0, "often", visits=8), node(10, "then", visits=7), node(11, "end", visits=6)]
    shown = drawn(tree(node(None, "", visits=20), *rare, *often, committed=(0, 1)))
    assert "rare 0" in shown, "what was committed to is always there"
    assert "rare 1" not in shown
    assert "often" in shown and "then" in shown and "end" in shown
    assert "8 more with fewer visits" in shown


def test_long_steps_are_cut():
    (line,) = drawn(tree(node(None, ""), node(0, "word " * 100))).splitlines()[1:]
    # twelve words of five characters are the sixty that are shown
    assert line.rstrip() == f"└── {'word ' * 12} … 1 visits, Q +0.000, value 1.500"
