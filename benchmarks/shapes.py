"""The shapes of the random-init Llamas, and how many operations their tokens need."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Numbers of a Llama; embeddings are tied."""

    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    heads: int
    key_value_heads: int
    positions: int = 8192

    @property
    def trunk_weights(self) -> int:
        """Weights of the matrices in the layers: attention and gated feed-forward, without embeddings."""
        key_value = self.hidden * self.key_value_heads // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * key_value
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """Weights in all, norms left out."""
        return self.trunk_weights + self.vocabulary * self.hidden


SHAPES = {
    "nano": Shape(hidden=32, layers=1, vocabulary=256, intermediate=64, heads=2, key_value_heads=2),
    "tiny": Shape(hidden=256, layers=6, vocabulary=4096, intermediate=768, heads=4, key_value_heads=4),
    "small": Shape(hidden=512, layers=8, vocabulary=8192, intermediate=1536, heads=8, key_value_heads=8),
    "0.5b": Shape(hidden=896, layers=24, vocabulary=128_256, intermediate=4864, heads=14, key_value_heads=2),
    "1.5b": Shape(hidden=1536, layers=28, vocabulary=128_256, intermediate=8960, heads=12, key_value_heads=2),
    "8b": Shape(hidden=4096, layers=32, vocabulary=128_256, intermediate=14336, heads=32, key_value_heads=8),
}


def forward_flops(shape: Shape, prompt: int, completions: Sequence[int], *, with_head: bool) -> float:
    """Operations of one forward pass over a group: the prompt once, causal attention, the head on completions only.

    A multiply-add counts as two; training costs three times as much, which for the matrices is the usual 6 N a token.
    """
    total = sum(completions)
    matrices = 2 * shape.trunk_weights * (prompt + total)
    seen = prompt * (prompt + 1) / 2 + sum(one * prompt + one * (one + 1) / 2 for one in completions)
    attention = 4 * shape.hidden * shape.layers * seen
    head = 2 * shape.hidden * shape.vocabulary * total if with_head else 0
    return matrices + attention + head
