"""`prefloop label judge`: a language model takes tasks of the queue as people do, and never in the place of one.

It asks its model both ways round and submits both probabilities, over HTTP or in the process that has the store.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx
import typer
import yaml
from pydantic import ValidationError

from prefloop import config
from prefloop.annotate.judge import JudgeComparer
from prefloop.commands.label.shared import (
    ProjectOption,
    StoreOption,
    app,
    member_named,
    opened,
    place_of,
    the_project,
)
from prefloop.commands.options import WorkspaceOption
from prefloop.config import JudgeAnnotator
from prefloop.interfaces import InputError, PairTask, Unavailable
from prefloop.labels import queue
from prefloop.labels.database import Database
from prefloop.labels.people import Person
from prefloop.labels.reading import shown_task
from prefloop.records import Message, Prompt, file_completion
from prefloop.screen import console

TIMEOUT_S = 60.0
TRIES = 5
NOT_A_PAIR, UNREADABLE = "no_expertise", "unclear"
"""Why a judge gives a task back."""


@dataclass(frozen=True)
class Claimed:
    """A task that is held."""

    token: str
    task: Mapping[str, Any]


class TaskQueue(Protocol):
    """Where tasks come from and answers go to."""

    def claim(self) -> Claimed | None:
        """The next task; None when nothing is left."""
        ...

    def submit(self, token: str, body: Mapping[str, Any]) -> None:
        """Sends an answer."""
        ...

    def skip(self, token: str, reason: str) -> None:
        """Gives a task back."""
        ...


@app.command(
    epilog="Example: `prefloop label judge judge.yaml --url https://labels.example.org --project tales`"
)
def judge(
    experiment: Annotated[
        Path,
        typer.Argument(help="Experiment whose annotator is a judge, or a file with the keys of one (YAML)."),
    ],
    url: Annotated[
        str | None,
        typer.Option(help="Server to take tasks from; left out, the store itself.", show_default=False),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="PREFLOOP_LABELS_TOKEN", help="API token, by `prefloop label token`.", show_default=False
        ),
    ] = None,
    most: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many tasks.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what the judge draws.")] = 0,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Let a language model judge, both ways round. Its tasks are those of `ai_overlap`; people's stay theirs."""
    options = read_judge(experiment)
    cache = Path(place_of(None, workspace)).parent / "cache" / "judge"
    comparer = JudgeComparer(options, seed=seed, cache=cache)
    if url is not None:
        if token is None or project is None:
            raise InputError(
                "judge --url: name the --project and a --token; `prefloop label token` makes one"
            )
        with httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=TIMEOUT_S
        ) as client:
            done = judge_all(HttpQueue(client, project), comparer, most=most)
    else:
        with opened(store, workspace) as database:
            name = the_project(database, project)
            done = judge_all(StoreQueue(database, name, comparer.name), comparer, most=most)
    said = ", ".join(f"{number} {what}" for what, number in sorted(done.items()))
    console.print(
        said or "nothing to judge; `ai_overlap` in the project's settings says how much AI judges get"
    )


def read_judge(path: Path) -> JudgeAnnotator:
    """The judge of an experiment, or one that stands alone in a file. Raises InputError."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot read a judge: {error}") from error
    if isinstance(given, dict) and given.get("kind") == "judge":
        try:
            return JudgeAnnotator.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    found = config.load(path).annotate.annotator
    if found.kind != "judge":
        raise InputError(f"{path}: annotate.annotator is {found.kind}; this command needs one of kind judge")
    return found


def judge_all(tasks: TaskQueue, comparer: JudgeComparer, *, most: int | None = None) -> Counter[str]:
    """Judges until nothing is left, or so much is done; counts what was done."""
    done: Counter[str] = Counter()
    while most is None or done.total() < most:
        if (held := tasks.claim()) is None:
            return done
        if held.task["kind"] != "pairwise":
            tasks.skip(held.token, NOT_A_PAIR)
            done["given back"] += 1
            continue
        (said,) = comparer.probabilities([_pair(held.task)])
        if said is None:
            tasks.skip(held.token, UNREADABLE)
            done["unreadable"] += 1
            continue
        value = {"p_first": said[0], "p_first_swapped": said[1]}
        tasks.submit(held.token, {"value": value, "judge": dict(comparer.provenance)})
        done["judged"] += 1
    return done


def _pair(task: Mapping[str, Any]) -> PairTask:
    """The two texts in the order in which they are shown."""
    prompt = Prompt.of(tuple(Message.model_validate(one) for one in task["messages"]))
    first, second = (file_completion(prompt, text, place) for place, text in enumerate(task["texts"]))
    return PairTask(prompt, first, second)


class StoreQueue:
    """The queue of a store in this process."""

    def __init__(self, database: Database, project: str, name: str) -> None:
        self._database = database
        self._project = project
        self._person: Person = database.write(
            lambda c: member_named(c, database.now(), name, project, role="judge")
        )

    def claim(self) -> Claimed | None:
        """The next task; None when nothing is left."""
        database = self._database
        held = database.write(lambda c: queue.claim(c, database.now(), self._project, self._person))
        return None if held is None else Claimed(held.token, database.read(lambda c: shown_task(c, held)))

    def submit(self, token: str, body: Mapping[str, Any]) -> None:
        """Sends an answer."""
        said = queue.Submission.model_validate(body)
        now = self._database.now()
        self._database.write(lambda c: queue.submit(c, now, token, self._person, said))

    def skip(self, token: str, reason: str) -> None:
        """Gives a task back."""
        now = self._database.now()
        self._database.write(lambda c: queue.skip(c, now, token, self._person, reason))


class HttpQueue:
    """The queue of a server."""

    def __init__(self, client: httpx.Client, project: str) -> None:
        self._client = client
        self._project = project

    def claim(self) -> Claimed | None:
        """The next task; None when nothing is left."""
        reply = self._post("tasks/claim", {"project": self._project})
        if reply.status_code == 204:
            return None
        held = reply.json()
        return Claimed(held["lease"]["token"], held["task"])

    def submit(self, token: str, body: Mapping[str, Any]) -> None:
        """Sends an answer; sent twice it is the same answer."""
        self._post(f"leases/{token}/submit", body)

    def skip(self, token: str, reason: str) -> None:
        """Gives a task back."""
        self._post(f"leases/{token}/skip", {"reason": reason})

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Sends until the server has time. Raises InputError where it refuses, Unavailable where it does not answer."""
        problem = ""
        for attempt in range(TRIES):
            try:
                reply = self._client.post(f"/api/v1/{path}", json=dict(body))
            except httpx.TransportError as error:
                problem = str(error)
            else:
                if reply.status_code < 400:
                    return reply
                problem = f"HTTP {reply.status_code}: {_message(reply)}"
                if reply.status_code != 429 and reply.status_code < 500:
                    raise InputError(f"{self._client.base_url}: {problem}")
                if "retry-after" in reply.headers:
                    time.sleep(float(reply.headers["retry-after"]))
                    continue
            time.sleep(2.0**attempt / 4)
        raise Unavailable(
            f"{self._client.base_url}: {problem}; what was judged is stored, run the command again"
        )


def _message(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"])
    except (ValueError, LookupError, TypeError):
        return reply.text[:200]
