"""What a run tells while it builds its plan: to whoever draws it, and to the rounds of people's labels."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.config import Experiment
from prefloop.interfaces import Progress, no_progress
from prefloop.stages import people
from prefloop.store import Artefact, Stage, Workspace

TRAINING_ROLES = frozenset({"policy", "reward"})
EVALUATING_ROLES = frozenset({"evaluate", "gate before", "gate after"})


@dataclass(frozen=True)
class Entry:
    """One stage of one arm, in the order of the loop."""

    arm: str
    iteration: int | None
    role: str
    stage: Stage
    artefact: Artefact


class Watcher:
    """Told what a run does; the command line draws it. This one stays silent."""

    def begins(self, entry: Entry, number: int, total: int) -> Progress:
        """A stage is about to be built; returns where its progress goes."""
        return no_progress

    def ends(self, entry: Entry, seconds: float, reused: bool) -> None:
        """A stage is there."""

    def waits(self, entry: Entry) -> None:
        """Another process is building this stage."""


def followed(x: Experiment, workspace: Workspace, entries: Sequence[Entry], watcher: Watcher) -> Watcher:
    """The watcher, and where people judge, one that notes in the label store what becomes of their rounds as well."""
    annotator = x.annotate.annotator
    if annotator.kind != "human":
        return watcher
    return RoundNotes(people.store_of(annotator, workspace.root), entries, watcher)


class RoundNotes(Watcher):
    """Tells another watcher everything, and the label store what is done with each round."""

    def __init__(self, store: str, entries: Sequence[Entry], watcher: Watcher) -> None:
        self._store = store
        self._entries = entries
        self._watcher = watcher

    def begins(self, entry: Entry, number: int, total: int) -> Progress:
        """A round is in training, or its policy is being evaluated."""
        rounds = self._rounds(entry)
        if rounds and entry.role in TRAINING_ROLES:
            self._note(rounds, "training")
        elif rounds and entry.role in EVALUATING_ROLES:
            self._note(rounds, "evaluating")
        return self._watcher.begins(entry, number, total)

    def ends(self, entry: Entry, seconds: float, reused: bool) -> None:
        """With its last stage, the policy of an iteration is promoted or rejected."""
        self._watcher.ends(entry, seconds, reused)
        rounds = self._rounds(entry)
        if rounds and entry is self._of(entry)[-1]:
            self._conclude(rounds, entry)

    def waits(self, entry: Entry) -> None:
        """Somebody else is at it."""
        self._watcher.waits(entry)

    def _of(self, entry: Entry) -> list[Entry]:
        """The entries of the same iteration; before the first one, those that end with the first reward model."""
        same = [one for one in self._entries if (one.arm, one.iteration) == (entry.arm, entry.iteration)]
        if entry.iteration is not None:
            return same
        last = [place for place, one in enumerate(same) if one.role == "reward"]
        return same[: last[0] + 1] if last else []

    def _rounds(self, entry: Entry) -> list[str]:
        """The rounds whose labels an iteration was trained on."""
        same = self._of(entry)
        if not any(one is entry for one in same):
            return []
        found = [people.round_of(one.artefact) for one in same if one.stage.kind == "annotate"]
        return [one[1] for one in found if one is not None]

    def _conclude(self, found: Sequence[str], entry: Entry) -> None:
        same = self._of(entry)
        policy = next((one for one in same if one.role == "policy"), None)
        rewards = [one.artefact.key for one in same if one.role in ("reward", "promote_reward")]
        choice = next((one.artefact.stats for one in same if one.role == "promote"), {"promoted": True})
        state = "promoted" if choice["promoted"] else "rejected"
        self._note(
            found,
            state,
            policy_out=policy.artefact.key if policy else "",
            reward_out=rewards[-1] if rewards else "",
        )
        if policy is not None:
            self._register(policy, same, is_kept=choice["promoted"])

    def _note(self, found: Sequence[str], state: people.RoundState, **about: str) -> None:
        from prefloop.labels import rounds
        from prefloop.labels.database import open_database

        with contextlib.closing(open_database(self._store)) as database:
            for round_id in found:
                database.write(
                    lambda connection, id=round_id: rounds.set_state(
                        connection, database.now(), id, state, **about
                    )
                )

    def _register(self, policy: Entry, same: Sequence[Entry], *, is_kept: bool) -> None:
        from prefloop.labels import rounds
        from prefloop.labels.database import open_database

        before = policy.stage.inputs.get("policy") or policy.stage.inputs.get("start")
        with contextlib.closing(open_database(self._store)) as database:
            database.write(
                lambda connection: rounds.register_policy(
                    connection,
                    policy.artefact.key,
                    uri=str(policy.artefact.path / "model"),
                    parent_id=before.key if isinstance(before, Artefact) else "",
                    iteration=(policy.iteration or 0) + 1,
                    state="current" if is_kept else "candidate",
                )
            )
