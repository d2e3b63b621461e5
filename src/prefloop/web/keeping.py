"""Figures about labels, computed where they have to be: for the dashboard, after a freeze, and now and then unasked.

Figures on everything are kept in the store, day by day and person by person, from which people see their own. They are
computed one at a time and take a twentieth of the time at most.
"""

import time

from prefloop.labels import oversight
from prefloop.labels.browsing import Filter
from prefloop.labels.database import Database
from prefloop.labels.streaming import newest_judgement
from prefloop.web.kept import TIMES_ITS_COST, Kept
from prefloop.web.quality import Quality, kept_figures, quality_of

KEEP_AFTER_MS = 60 * 60 * 1000
"""How old kept figures may be while people judge; those before a freeze are out of date at once."""
LOOK_EVERY_S = 60.0


def figures(database: Database, kept: Kept[Quality], wanted: Filter, *, anew: bool) -> Quality | None:
    """The figures on a filter, as they are in memory or computed; None where that takes long, and none were before."""
    watermark = database.read(lambda connection: newest_judgement(connection, wanted.project_id))
    return kept.soon(wanted, watermark, lambda: compute_and_keep(database, wanted), anew=anew)


def compute_and_keep(database: Database, wanted: Filter) -> Quality:
    """The figures on a filter; those on everything are put into the store."""
    now = database.now()
    found = database.read(lambda connection: quality_of(connection, now, wanted))
    if not wanted.told():
        by_person = kept_figures(found)
        database.write(
            lambda connection: oversight.keep_quality(connection, now, wanted.project_id, by_person)
        )
    return found


def keep_what_is_due(database: Database, kept: Kept[Quality]) -> float:
    """Computes the figures of the project that needs it most, if one does; returns the seconds until the next look."""
    now = database.now()
    due = database.read(
        lambda connection: oversight.projects_to_keep(connection, now, after_ms=KEEP_AFTER_MS)
    )
    if not due:
        return LOOK_EVERY_S
    started = time.monotonic()
    wanted = Filter(due[0])
    watermark = database.read(lambda connection: newest_judgement(connection, wanted.project_id))
    kept.get(wanted, watermark, lambda: compute_and_keep(database, wanted), anew=True)
    return pause_s(time.monotonic() - started, waiting=len(due) - 1)


def pause_s(cost_s: float, *, waiting: int) -> float:
    """How long nothing is computed after what took so long, while other projects wait or not."""
    return max(TIMES_ITS_COST * cost_s, 1.0 if waiting else LOOK_EVERY_S)
