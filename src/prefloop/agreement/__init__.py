"""How good human labels are: agreement, reliabilities, biases, alarms. Pure functions on judgements.

Knows nothing of the label store, of files or of models. Everything that can be undefined is None with a reason, and
everything that is estimated says what it rests on. docs/concepts/label-quality.md says when to trust what.
"""

from prefloop.agreement.bias import (
    CyclicTriples,
    LengthBias,
    SideBias,
    Speed,
    cyclic_triples,
    labels_for_side_bias,
    length_bias,
    reading_ms,
    side_bias,
    speeds,
)
from prefloop.agreement.consensus import SoftLabel, error_rate, smoothed, vote_shares, weighted_votes
from prefloop.agreement.disagreement import QueueEntry, disagreement_queue, ensemble_confidence
from prefloop.agreement.measures import (
    Level,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    kendall_tau_b,
    krippendorff_alpha,
    raw_agreement,
)
from prefloop.agreement.reliability import (
    DawidSkene,
    OneCoin,
    Reliability,
    dawid_skene,
    informed_reliabilities,
    one_coin,
    sharpness,
    side_intercepts,
)
from prefloop.agreement.screening import Answer, Flag, Rule, flags, gold_limit
from prefloop.agreement.types import Measure, Ranking, Rating, Resampling, Value

__all__ = [
    "Answer",
    "CyclicTriples",
    "DawidSkene",
    "Flag",
    "LengthBias",
    "Level",
    "Measure",
    "OneCoin",
    "QueueEntry",
    "Ranking",
    "Rating",
    "Reliability",
    "Resampling",
    "Rule",
    "SideBias",
    "SoftLabel",
    "Speed",
    "Value",
    "cohen_kappa",
    "cyclic_triples",
    "dawid_skene",
    "disagreement_queue",
    "ensemble_confidence",
    "error_rate",
    "flags",
    "fleiss_kappa",
    "gold_limit",
    "gwet_ac1",
    "informed_reliabilities",
    "kendall_tau_b",
    "krippendorff_alpha",
    "labels_for_side_bias",
    "length_bias",
    "one_coin",
    "raw_agreement",
    "reading_ms",
    "sharpness",
    "side_bias",
    "side_intercepts",
    "smoothed",
    "speeds",
    "vote_shares",
    "weighted_votes",
]
