"""Draws how every algorithm comes to its optimum on the game of strings: `python docs/draw_rl.py`.

The game and the optimum are those of tests/test_rl_converges.py. Writes images/rl-converges.png.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent / "tests"), str(DOCS.parent / "src")]

from games import Training, distance, epochs_of, tree  # noqa: E402
from prefloop.algorithms import ALGORITHMS, vary  # noqa: E402

BETA = 0.5
TARGET = DOCS / "images" / "rl-converges.png"
LINES = ("-", "--", ":")


def main() -> None:
    """Two panels: with the KL in the reward, and without any."""
    game = tree()
    optimum, best = game.regularised(BETA), int(game.scores.argmax())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for number, name in enumerate(ALGORITHMS):
        style = {"linestyle": LINES[number // 5], "color": f"C{number % 5}", "linewidth": 1.4}
        row = vary(ALGORITHMS[name], kl="reward_k1", kl_coef=BETA)
        found = [distance(one, optimum) for one in Training(game, row, epochs_of(row)).policies()]
        left.plot(range(1, len(found) + 1), found, label=name, **style)
        row = vary(ALGORITHMS[name], kl="none")
        chances = [one[best] for one in Training(game, row, epochs_of(row)).policies()]
        right.plot(range(1, len(chances) + 1), chances, **style)
    left.set(
        xlabel="batch", ylabel="total variation", yscale="log", title=f"distance from π0 exp(r / {BETA}) / Z"
    )
    right.set(xlabel="batch", ylabel="probability", title="of the best completion, without a KL")
    for one in (left, right):
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(TARGET, dpi=110)


if __name__ == "__main__":
    main()
