"""The report of a run: one HTML file that needs nothing else, and the same numbers as JSON.

Reads run.json, manifests and the rows of evaluations, and repeats what the stages measured; the paired
difference between arms is the one statistic of its own. Works on a run at any stage of completion and says what is
missing. Knows nothing about torch. The figures are drawn in `plots`, the page is `report.html.jinja`.
"""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import prefloop
from prefloop.config import MAIN_ARM
from prefloop.pipeline import read_run, run_folder
from prefloop.report.benchmarks import benchmarks_of
from prefloop.report.figures import figures
from prefloop.report.findings import findings_of, is_simulation, part_name, remarks_of, verdict_of
from prefloop.report.reading import (
    ESTIMATES,
    TRAINING_KINDS,
    arm_differences,
    choose_samples,
    collected_of,
    count_rows,
    distributions_of,
    mark_best,
    read_measured,
    read_policies,
    read_stages,
    read_training,
    reward_models_of,
    smallest_visible_gain,
    timings_of,
    what_is_missing,
)
from prefloop.report.types import Report
from prefloop.report.values import as_number, dig, each_once, total_of, without_infinities
from prefloop.report.words import FILTERS, common_decimals
from prefloop.store import Workspace, write_json, write_text


def write_report(workspace: Workspace, run: str) -> Path:
    """Writes report.html and report.json beside run.json; returns the path of the page."""
    report = collect(workspace, run)
    path = run_folder(workspace, run) / "report.html"
    write_json(path.with_name("report.json"), as_dict(report))
    write_text(path, render(report))
    return path


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(report)))


def collect(workspace: Workspace, run: str) -> Report:
    """Reads everything a run has produced so far. Raises InputError where there is no such run."""
    journal = without_infinities(read_run(workspace, run))
    experiment = journal["experiment"]
    stages = read_stages(workspace, journal["entries"])
    measured = read_measured(workspace, stages)
    policies = mark_best(read_policies(stages, measured))
    arms = tuple(dict.fromkeys([MAIN_ARM, *(stage.arm for stage in stages)]))
    main = [stage for stage in stages if stage.arm == MAIN_ARM]
    iterations = {stage.iteration for stage in main if stage.iteration is not None}
    done = [policy for policy in policies if policy.arm == MAIN_ARM and policy.iteration is not None]
    confidence = float(experiment["evaluate"]["confidence"])
    report = Report(
        run=journal["name"],
        version=prefloop.__version__,
        started=min((stage.started for stage in stages if stage.started), default=None),
        verdict="",
        remarks=(),
        score_name="gold score" if is_simulation(experiment) else "score",
        evaluator=part_name(dig(experiment, "evaluate.scorer")),
        annotator=part_name(dig(experiment, "annotate.annotator")),
        confidence=confidence,
        finished=bool(stages) and all(stage.status == "done" for stage in stages),
        missing=what_is_missing(stages),
        labels=total_of(each_once(main), "annotate", "labels"),
        labels_all_arms=total_of(each_once(stages), "annotate", "labels"),
        seed_labels=total_of(
            each_once(stage for stage in main if stage.iteration is None), "annotate", "labels"
        ),
        pseudo_labels=total_of(each_once(main), "annotate", "pseudo_labels"),
        cost=sum(as_number(stage.stats.get("cost")) or 0.0 for stage in each_once(stages)),
        iterations_done=sum(bool(policy.key) for policy in done),
        iterations_planned=len(iterations),
        seconds=sum(stage.seconds for stage in each_once(stages)),
        seconds_main=sum(stage.seconds for stage in each_once(main)),
        smallest_gain=smallest_visible_gain(policies, confidence),
        arms=arms,
        findings=(),
        policies=policies,
        benchmarks=benchmarks_of(workspace, stages, confidence),
        differences=tuple(arm_differences(policies, measured, experiment)),
        distributions=distributions_of(policies, measured),
        training=tuple(
            read_training(workspace, stage)
            for stage in stages
            if stage.kind in TRAINING_KINDS and (stage.iteration is not None or stage.arm == MAIN_ARM)
        ),
        reward_models=reward_models_of(stages),
        collected=tuple(collected_of(stages)),
        samples=choose_samples(policies, measured, experiment["evaluate"]["num_samples_shown"]),
        row_counts=count_rows(stages),
        timings=tuple(timings_of(stages)),
        stages=stages,
        experiment=experiment,
    )
    return replace(
        report,
        verdict=verdict_of(report),
        remarks=tuple(remarks_of(report)),
        findings=tuple(findings_of(report)),
    )


def render(report: Report) -> str:
    """The page. All text from outside is escaped; there is no script, and nothing is fetched."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.jinja").render(
        report=report,
        level=f"{100 * report.confidence:g}%",
        figures=figures(report),
        places={field.name: common_decimals(report.policies, field.name) for field in ESTIMATES},
        reasons=sorted({reason for one in report.row_counts for reason in one.dropped}),
        config_yaml=yaml.safe_dump(dict(report.experiment), sort_keys=False, allow_unicode=True),
    )
