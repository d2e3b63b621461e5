"""What both sides are given alike."""

from pathlib import Path
from typing import NamedTuple

LEARNING_RATE = 1e-4
BETA = 0.1
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
SEED = 0


class Folders(NamedTuple):
    """Model folders that a run reads, and the folder it writes."""

    policy: Path
    reward_model: Path
    out: Path
