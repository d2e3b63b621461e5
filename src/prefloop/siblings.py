"""Preference pairs of steps, from the trees that a search left with its groups (arXiv:2405.00451).

Both completions of a pair begin with what the search had committed itself to; the pair is about the step after that. Knows
nothing about how a tree is searched.
"""

from prefloop.config import SelectSection
from prefloop.records import Completion, Group, PreferencePair, SearchTree, TreeNode, content_id


def sibling_pairs(group: Group, options: SelectSection) -> tuple[list[PreferencePair], str | None]:
    """At each committed node the best step against the worst, by what the search thinks that they gain; or the reason why
    there is no pair, `short` or `tie`. Weighted so that a prompt counts once."""
    tree = group.tree
    if tree is None:
        return [], "short"
    nodes = tree.nodes
    children = [[at for at, one in enumerate(nodes) if one.parent == node] for node in tree.committed]
    # of equals the first is the best, and the first is the worst
    forks = [
        (max(steps, key=lambda at: nodes[at].q), min(steps, key=lambda at: nodes[at].q))
        for steps in children
        if len(steps) > 1
    ]
    if not forks:
        return [], "short"
    apart = [(best, worst) for best, worst in forks if _differ(nodes[best], nodes[worst])]
    pairs = [_step_pair(group, tree, best, worst, options, 1 / len(apart)) for best, worst in apart]
    return pairs, None if pairs else "tie"


def _differ(best: TreeNode, worst: TreeNode) -> bool:
    """Whether one is better, and not merely the same words with an end after them."""
    return best.q > worst.q and best.text != worst.text


def _step_pair(
    group: Group, tree: SearchTree, best: int, worst: int, options: SelectSection, weight: float
) -> PreferencePair:
    chosen, rejected = tree.nodes[best], tree.nodes[worst]
    return PreferencePair.of(
        group.prompt,
        _up_to(group, tree, best),
        _up_to(group, tree, worst),
        margin=round(chosen.q - rejected.q, 6) * options.margin_scale,
        annotator=tree.annotator,
        p_chosen=visit_confidence(chosen, rejected),
        weight=weight,
        prefix_tokens=chosen.start,
    )


def visit_confidence(chosen: TreeNode, rejected: TreeNode) -> float:
    """How sure the search is by its visits, 1 / (1 + rejected / chosen), and at least even: it does prefer the chosen."""
    return max(0.5, 1 / (1 + rejected.visits / max(1, chosen.visits)))


def _up_to(group: Group, tree: SearchTree, number: int) -> Completion:
    """A completion that ends with a step; the search drew it token by token like those of the group."""
    path: list[TreeNode] = []
    at: int | None = number
    while at is not None:
        path.insert(0, tree.nodes[at])
        at = tree.nodes[at].parent
    tokens = tuple(token for node in path for token in node.token_ids)
    like = group.completions[0]
    return Completion(
        id=content_id(group.prompt.id, like.policy, tokens),
        prompt_id=group.prompt.id,
        text="".join(node.text for node in path),
        token_ids=tokens,
        sampling=like.sampling,
        policy=like.policy,
        policy_version=like.policy_version,
    )
