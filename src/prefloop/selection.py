"""From judgements to a ranking, and from a ranking to preference pairs.

Takes groups of completions with scores or comparisons and returns pairs, or the reason why a group gave none. Knows
nothing about models, tokens or files: the caller reads and writes. Rules are named as in arXiv:2405.07863, section 3.
"""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from prefloop.config import ScoreRule, SelectSection
from prefloop.records import Comparison, Completion, Group, Judgement, PreferencePair, Refusal, Score
from prefloop.siblings import sibling_pairs

HeadsRule = Literal["thompson", "uncertainty"]
Ranked = Sequence[tuple[Completion, float]]


class Choice(NamedTuple):
    """Positions of the chosen and the rejected completion, and their difference in score."""

    chosen: int
    rejected: int
    margin: float


def choose(
    scores: Sequence[float],
    rule: ScoreRule,
    *,
    lengths: Sequence[int],
    length_penalty: float,
    seed: Sequence[int],
) -> Choice | None:
    """Applies a rule to the scores of one group; None where the two candidates tie.

    `max_min_penalised` uses score - length_penalty * length for choice, order and margin alike. Equal best or worst
    scores resolve to the lowest position. `seed` drives the random rules only.
    """
    values = list(scores)
    if rule == "max_min_penalised":
        values = [value - length_penalty * length for value, length in zip(values, lengths, strict=True)]
    first, second = _candidates(values, rule, seed)
    if values[first] == values[second]:
        return None
    if values[first] < values[second]:
        first, second = second, first
    return Choice(first, second, values[first] - values[second])


def _candidates(values: Sequence[float], rule: ScoreRule, seed: Sequence[int]) -> tuple[int, int]:
    best = values.index(max(values))
    others = [index for index in range(len(values)) if index != best]
    match rule:
        case "max_min" | "max_min_penalised":
            return best, values.index(min(values))
        case "max_max":
            return best, max(others, key=lambda index: (values[index], -index))
        case "max_random":
            return best, int(np.random.default_rng(list(seed)).choice(others))
        case "random":
            first, second = (
                np.random.default_rng(list(seed)).choice(len(values), size=2, replace=False).tolist()
            )
            return first, second
        case "first_two":
            return 0, 1


def propose(group: Group, scores: Mapping[str, float] | None, rule: ScoreRule, seed: int) -> Choice | None:
    """The two completions worth asking about: by the reward model's scores, or two random different texts."""
    different = _different_texts(group)
    if len(different) < 2:
        return None
    if scores is None:
        order = np.random.default_rng([seed, int(group.prompt.id, 16)]).permutation(len(different)).tolist()
        return Choice(different[order[0]], different[order[1]], 0.0)
    values = [scores[group.completions[index].id] for index in different]
    lengths = [len(group.completions[index].text) for index in different]
    picked = choose(values, rule, lengths=lengths, length_penalty=0.0, seed=(seed, int(group.prompt.id, 16)))
    return (
        None
        if picked is None
        else Choice(different[picked.chosen], different[picked.rejected], picked.margin)
    )


def propose_by_heads(
    group: Group, heads: Mapping[str, Sequence[float]], rule: HeadsRule, seed: int
) -> Choice | None:
    """The two completions worth asking about by an ensemble, of which each head has a score for each completion.

    `thompson`: one head draws its best, others are drawn until one has another best; where none has, the best of the rest by
    the last (double Thompson sampling, as in arXiv:2411.01493). `uncertainty`: the two whose difference the heads agree on
    least, by its standard deviation. None for a group without two different texts.
    """
    different = _different_texts(group)
    if len(different) < 2:
        return None
    values = np.array([heads[group.completions[index].id] for index in different], dtype=float)  # [C, M]
    if rule == "uncertainty":
        spread = (values[:, None] - values[None]).std(-1)  # [C, C]
        first, second = np.unravel_index(np.triu(spread, 1).argmax(), spread.shape)
    else:
        rng = np.random.default_rng([seed, int(group.prompt.id, 16)])
        order = rng.permutation(values.shape[1])
        first = values[:, order[0]].argmax()
        others = [best for head in order[1:] if (best := values[:, head].argmax()) != first]
        left = values[:, order[-1]].copy()
        left[first] = -np.inf
        second = others[0] if others else left.argmax()
    means = values.mean(1)
    if means[first] < means[second]:
        first, second = second, first
    return Choice(different[int(first)], different[int(second)], float(means[first] - means[second]))


def _different_texts(group: Group) -> list[int]:
    seen: set[str] = set()
    positions = []
    for index, completion in enumerate(group.completions):
        if completion.text not in seen:
            seen.add(completion.text)
            positions.append(index)
    return positions


def pairs_of(
    group: Group, judgements: Sequence[Judgement], options: SelectSection, *, seed: int
) -> tuple[list[PreferencePair], str | None]:
    """The pairs of one group, or none and the reason: `short`, `tie`, `identical` or `refused`."""
    if options.rule == "siblings":
        return sibling_pairs(group, options)
    scores = [one for one in judgements if isinstance(one, Score)]
    comparisons = [one for one in judgements if isinstance(one, Comparison)]
    if not scores and not comparisons:
        return [], "refused" if any(isinstance(one, Refusal) for one in judgements) else "short"
    if comparisons and len({frozenset((one.a, one.b)) for one in comparisons}) == 1:
        return _from_one_comparison(group, comparisons, options)
    values = mean_scores(scores)
    if comparisons:
        values = knockout_places(group, comparisons) or win_shares(comparisons)
    annotator = (comparisons or scores)[0].annotator
    ranked = [(one, values[one.id]) for one in group.completions if one.id in values]
    if len(ranked) < 2:
        return [], "short"
    if options.pairs_per_prompt == "all":
        return _all_pairs(group, ranked, options, annotator)
    return _one_pair(group, ranked, options, annotator, seed)


def _one_pair(
    group: Group, ranked: Ranked, options: SelectSection, annotator: str, seed: int
) -> tuple[list[PreferencePair], str | None]:
    lengths = [length_of(completion, options.length_unit) for completion, _ in ranked]
    picked = choose(
        [score for _, score in ranked],
        options.score_rule,
        lengths=lengths,
        length_penalty=options.length_penalty,
        seed=(seed, int(group.prompt.id, 16)),
    )
    if picked is None:
        return [], "tie"
    chosen, rejected = ranked[picked.chosen][0], ranked[picked.rejected][0]
    if chosen.text == rejected.text:
        return [], "identical"
    margin = picked.margin * options.margin_scale
    return [PreferencePair.of(group.prompt, chosen, rejected, margin=margin, annotator=annotator)], None


def _all_pairs(
    group: Group, ranked: Ranked, options: SelectSection, annotator: str
) -> tuple[list[PreferencePair], str | None]:
    """Every two completions that are ranked apart, each weighted so that a prompt counts once."""
    found = [
        (better, worse, high - low)
        for (better, high), (worse, low) in itertools.permutations(ranked, 2)
        if high > low and better.text != worse.text
    ]
    pairs = [
        PreferencePair.of(
            group.prompt,
            better,
            worse,
            margin=gap * options.margin_scale,
            annotator=annotator,
            weight=1 / len(found),
        )
        for better, worse, gap in found
    ]
    return pairs, None if pairs else "tie"


def _from_one_comparison(
    group: Group, votes: Sequence[Comparison], options: SelectSection
) -> tuple[list[PreferencePair], str | None]:
    """A pair from one or more votes on the same two completions."""
    by_id = {completion.id: completion for completion in group.completions}
    a, b = votes[0].a, votes[0].b
    p_a = sum(vote.p_a if vote.a == a else 1 - vote.p_a for vote in votes) / len(votes)
    if p_a == 0.5:
        return [], "tie"
    chosen, rejected, p_chosen = (a, b, p_a) if p_a > 0.5 else (b, a, 1 - p_a)
    if by_id[chosen].text == by_id[rejected].text:
        return [], "identical"
    pair = PreferencePair.of(
        group.prompt,
        by_id[chosen],
        by_id[rejected],
        margin=(2 * p_chosen - 1) * options.margin_scale,
        p_chosen=p_chosen,
        annotator=votes[0].annotator if len(votes) == 1 else f"{len(votes)} votes",
    )
    return [pair], None


def mean_scores(scores: Sequence[Score]) -> dict[str, float]:
    """Each completion's score; where several people gave one, their mean."""
    given: dict[str, list[float]] = {}
    for one in scores:
        given.setdefault(one.completion_id, []).append(one.value)
    return {completion_id: sum(values) / len(values) for completion_id, values in given.items()}


def win_shares(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Each completion's mean probability of winning its comparisons."""
    shares: dict[str, list[float]] = {}
    for one in comparisons:
        shares.setdefault(one.a, []).append(one.p_a)
        shares.setdefault(one.b, []).append(1 - one.p_a)
    return {completion_id: sum(values) / len(values) for completion_id, values in shares.items()}


Rounds = Generator[list[tuple[str, str]], Mapping[tuple[str, str], float], dict[str, float]]


def knockout(ids: Sequence[str]) -> Rounds:
    """A tournament: yields the matches of each round, is sent P(first is better), and returns how far each one came.

    Neighbours meet, winners keep their order, and the last of an odd number goes through. In a match without a verdict, and
    in a tie, the first goes on.
    """
    left, places = list(ids), dict.fromkeys(ids, 0.0)
    while len(left) > 1:
        matches = list(zip(left[::2], left[1::2], strict=False))
        verdicts = yield matches
        winners = [a if verdicts.get((a, b), 0.5) >= 0.5 else b for a, b in matches]
        left = winners + left[2 * len(matches) :]
        for one in left:
            places[one] += 1.0
    return places


def knockout_places(group: Group, comparisons: Sequence[Comparison]) -> dict[str, float] | None:
    """How far each completion came, where the comparisons are those of a knockout among the group; else None."""
    votes: dict[tuple[str, str], list[float]] = {}
    for one in comparisons:
        votes.setdefault((one.a, one.b), []).append(one.p_a)
    known = {match: sum(values) / len(values) for match, values in votes.items()}
    played: set[tuple[str, str]] = set()
    rounds = knockout(different_ids(group))
    try:
        matches = next(rounds)
        while True:
            played |= set(matches)
            matches = rounds.send(known)
    except StopIteration as end:
        return end.value if played == known.keys() else None


def different_ids(group: Group) -> list[str]:
    """Ids of the completions with different texts, in order."""
    return [group.completions[place].id for place in _different_texts(group)]


def length_of(completion: Completion, unit: str) -> int:
    """Length in characters, or in the sampler's tokens."""
    if unit == "characters":
        return len(completion.text)
    if completion.token_ids is None:
        raise ValueError("length_unit: tokens needs sampled completions; these came from a file")
    return len(completion.token_ids)


def group_statistics(
    groups: Sequence[Group], scores: Mapping[str, float], length: Callable[[Completion], int]
) -> dict[str, float]:
    """What picking one completion per group would score: on average, the best, worst, longest and shortest.

    Means over groups of the per-group value; of equal lengths the first counts. Groups without scores are left out.
    """
    rows = []
    for group in groups:
        scored = [(scores[one.id], length(one)) for one in group.completions if one.id in scores]
        if scored:
            values = [value for value, _ in scored]
            longest, shortest = max(one[1] for one in scored), min(one[1] for one in scored)
            rows.append(
                (
                    float(np.mean(values)),
                    max(values),
                    min(values),
                    next(value for value, size in scored if size == longest),
                    next(value for value, size in scored if size == shortest),
                )
            )
    if not rows:
        return {}
    names = ("mean", "best_of_k", "worst_of_k", "longest", "shortest")
    return {name: float(value) for name, value in zip(names, np.mean(rows, axis=0), strict=True)} | {
        "groups": len(rows)
    }
