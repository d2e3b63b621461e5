"""`prefloop eval`: benchmarks of policies and reward models; `prefloop reward-card`: what a judge is worth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from prefloop import config, pipeline
from prefloop.commands import scores
from prefloop.commands.options import (
    Json,
    WorkspaceOption,
    errors,
    interruptible,
    print_json,
    workspace_of,
)
from prefloop.interfaces import InputError
from prefloop.screen import Screen, bar, console
from prefloop.store import Artefact

app = typer.Typer()
PANEL = "Measure"


class EvalCommands(TyperGroup):
    """`prefloop eval FILE MODEL…` is `prefloop eval run FILE MODEL…`."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Names the default where no command is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    cls=EvalCommands,
    help="Measure policies and reward models on benchmarks: answers, verdicts, scores.",
    epilog="Example: `prefloop eval suites.yaml policy-3f2a sft-91bc --suite maths`; `run` need not be said. "
    "`prefloop eval run --help` has all options.",
    no_args_is_help=True,
)
app.add_typer(evaluation, name="eval", rich_help_panel=PANEL)


@evaluation.command("run", epilog="Example: `prefloop eval suites.yaml policy-3f2a sft-91bc --suite maths`")
def evaluate(
    experiment: Annotated[
        Path, typer.Argument(help="Experiment file, or any YAML file with `evaluate.suites`.")
    ],
    policies: Annotated[
        list[str],
        typer.Argument(
            help="Policies, or reward models for reward_bench: artefacts, folders or hub names. What holds `=` changes "
            "the file, such as `evaluate.suites.maths.limit=50`."
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Only this benchmark of the file; may be given several times.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Policy that win rates with `baseline: start`, and implied rewards, are measured against.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure policies and reward models on benchmarks: answers, verdicts, scores. Killed at any moment, the same command
    goes on.

    Answers and verdicts stay in the workspace, in the formats that the benchmarks publish: `prefloop score` reads them.
    """
    from prefloop import browse
    from prefloop.scoring.figures import Scored

    names = [one for one in policies if "=" not in one]
    if not names:
        raise InputError("name a policy or a reward model to evaluate")
    changes = [one for one in policies if "=" in one]
    space = workspace_of(workspace)
    kinds = (*browse.POLICY_KINDS, *pipeline.REWARD_KINDS)

    def known(text: str) -> Artefact | None:
        return browse.model_artefact(space, text, kinds=kinds, what="policy and no reward model")

    theirs = browse.model_artefact(space, against) if against else None
    outside = [one for one in names if not known(one)] + ([against] if against and not theirs else [])
    if outside:
        changes.append(f"model.path={json.dumps(outside[0])}")
    x = browse.only_suites(config.load_suites(experiment, changes), suite or [])
    shown = errors if as_json else console
    with (
        Screen(space, shown) as screen,
        interruptible(screen, f"prefloop eval {experiment} {' '.join(policies)}"),
    ):

        def found(text: str) -> Artefact:
            if (artefact := known(text)) is not None:
                return artefact
            reward = text if browse.is_reward_model(x, text) else None
            return pipeline.base(x.starting_from(text), space, screen, reward=reward)

        if against and theirs is None:
            theirs = pipeline.base(x.starting_from(against), space, screen)
        done = pipeline.evaluate(x, space, screen, [found(one) for one in names], theirs)
    scored = [Scored.from_json(one) for artefact in done for one in artefact.stats["scores"]]
    scores.show(scored, as_json)
    if not as_json:
        for artefact in done:
            console.print(f"{artefact.path / 'verdicts.jsonl'}", highlight=False, soft_wrap=True)


@evaluation.command(
    epilog="Example: `prefloop eval prepare alpaca-eval my-alpaca-eval`, then `inputs: my-alpaca-eval` in the file"
)
def prepare(
    benchmark: Annotated[Literal["alpaca-eval"], typer.Argument(help="Which benchmark's.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder with the published files; left out, the model hub.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str, typer.Option(help="Version on the model hub: a branch, tag or commit.")
    ] = "main",
) -> None:
    """Fetch what a benchmark publishes and this package may not contain: prompts, the baseline's answers, and what the
    length-controlled win rate is fitted with. Mind its licence, which SOURCE.md in the folder names."""
    from prefloop.scoring.preparing import LICENCE, prepare_alpaca_eval

    assert benchmark == "alpaca-eval", "the only one"
    done = prepare_alpaca_eval(folder, source=source, revision=revision)
    counts = f"{done.instructions} instructions, {done.gamed_rows} judgements to fit lengths with"
    console.print(f"{done.folder}: {counts}", highlight=False, soft_wrap=True)
    console.print(f"Licence of the data: {LICENCE}", highlight=False, soft_wrap=True)


@app.command(
    "reward-card",
    rich_help_panel=PANEL,
    epilog="Example: `prefloop reward-card reward-3f2a --data held-out.jsonl`",
)
def reward_card(
    model: Annotated[
        str,
        typer.Argument(
            help="Scalar reward model or pairwise model (artefact, model folder or hub name), or a YAML file that describes "
            "a judge behind an endpoint, with the keys of `annotate.annotator`."
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Preferences: a file of pairs, rankings or scores, or an artefact with pairs.")
    ],
    previous: Annotated[
        str | None, typer.Option(help="Earlier model to compare with on the same pairs.", show_default=False)
    ] = None,
    pairwise: Annotated[
        bool, typer.Option("--pairwise", help="The model answers A or B; needed where its files do not tell.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for card.html and card.json; left out, one in the workspace.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first rows only.", show_default=False)
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="Renames a column, as `rewards=my_column`; may be repeated.", show_default=False),
    ] = None,
    drop_bad_rows: Annotated[
        bool, typer.Option("--drop-bad-rows", help="Count bad rows instead of stopping at the first.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Loss of accuracy against --previous that is accepted.")
    ] = 0.0,
    examples: Annotated[int, typer.Option(min=0, help="Most confident mistakes to show on the page.")] = 5,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try texts that are written to fool a judge.")
    ] = True,
    as_json: Json = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure a reward model or a judge on preferences: accuracy beside length, calibration, biases, an earlier model."""
    from prefloop.card import CardOptions, as_dict, card_folder, make_card, write_card
    from prefloop.card.terminal import pages

    space = workspace_of(workspace)
    source = config.SourceSection(
        path=data, fields=_fields(field or []), limit=limit, bad_rows="drop" if drop_bad_rows else "stop"
    )
    with bar("judging") as progress:
        card = make_card(
            space, model, source, previous, CardOptions(pairwise, tolerance, examples, probe), progress
        )
    if as_json:
        if out:
            write_card(card, out)
        print_json(as_dict(card))
        return
    page = write_card(card, out or card_folder(space, model, data))
    for one in pages(card):
        console.print(one, highlight=False)
    console.print(f"[link=file://{page.resolve()}]{page}[/link]", highlight=False, soft_wrap=True)


def _fields(renamed: Sequence[str]) -> dict[str, str]:
    """Columns by prefloop's names, from `name=column`."""
    for one in renamed:
        if "=" not in one:
            raise InputError(
                f"--field {one}: write prefloop's name, =, and the name in the file, as chosen=better"
            )
    return dict(one.split("=", 1) for one in renamed)
