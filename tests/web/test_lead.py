"""Tests of the pages of reviewers and leads, over HTTP."""

import hashlib
import json
import re
from itertools import chain

import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute
from tests.web.overseeing import PROJECT, Office, office, pair
from tests.web.payloads import PAYLOADS

from prefloop.labels.adjudicating import outcome_of
from prefloop.labels.formats.table import FORMATS
from prefloop.labels.rounds import set_state
from prefloop.labels.schema import adjudication, audit, export, flag, guideline, round_, task
from prefloop.web.limits import Limits
from prefloop.web.pages import lead, lead_data, lead_figures, lead_gold, lead_review

ROUTES: list[APIRoute] = [
    one
    for one in chain(
        *(part.router.routes for part in (lead, lead_data, lead_figures, lead_gold, lead_review))
    )
    if isinstance(one, APIRoute)
]
FOR_REVIEWERS = ("/review", "/flags")


@pytest.fixture
def desk(any_place):
    with office(any_place) as made:
        yield made


@pytest.fixture
def desk_with_files(tmp_path):
    """Exports are kept beside a store that is a file."""
    with office(tmp_path) as made:
        yield made


def address(route: APIRoute) -> str:
    parts = {"project_id": PROJECT, "number": "1", "action": "freeze", "flag_id": "1", "part": "file"}
    return re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], "t1"), route.path)


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    with office(tmp_path_factory.mktemp("strict")) as made:
        made.publish(pair(1))
        yield made


@pytest.fixture(scope="module")
def visitors(strict):
    return {
        "annotator": strict.visit("Ann", "annotator"),
        "reviewer": strict.visit("Rev", "reviewer"),
        "other lead": strict.visit("Other", "lead", member=False),
    }


def status(visitors, who: str, route: APIRoute) -> int:
    ask = visitors[who].get if "GET" in (route.methods or ()) else visitors[who].post
    return ask(address(route)).status_code


@pytest.mark.parametrize("route", ROUTES, ids=lambda one: f"{one.path} {min(one.methods or ())}")
def test_a_page_is_for_those_of_the_role_and_of_the_project(visitors, route):
    assert status(visitors, "annotator", route) == 403
    if route.path == "/lead":  # a list of one's own projects
        return
    is_for_reviewers = route.path == "/lead/{project_id}" or any(part in route.path for part in FOR_REVIEWERS)
    assert (status(visitors, "reviewer", route) == 403) is not is_for_reviewers
    assert status(visitors, "other lead", route) == 404


def test_who_is_not_logged_in_is_sent_to_the_login(desk: Office):
    visit = desk.visit("Lea")
    visit.client.cookies.clear()
    assert visit.get(f"/lead/{PROJECT}/quality").headers["location"].startswith("/login")


def test_a_form_without_its_token_changes_nothing(desk: Office):
    visit = desk.visit("Lea")
    assert visit.client.post(f"/lead/{PROJECT}/rounds/1/freeze", data={"reason": "x"}).status_code == 403
    assert desk.rows(sa.select(round_.c.state))[0].state == "open"


# --- disagreements ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "people", "model", "outcome"),
    [
        ({"choice": "a", "strength": 1}, 1.0, 0.1, "human_right"),
        ({"choice": "b", "strength": 7}, 1.0, 0.1, "model_right"),
        ({"choice": "a", "strength": 4}, 1.0, 0.1, "ambiguous"),  # hardly a difference
        ({"choice": "tie", "strength": None}, 1.0, 0.1, "ambiguous"),
        ({"choice": "b", "strength": 8}, 1.0, 0.9, "ambiguous"),  # alone against both
        ({"choice": "a", "strength": 1}, 1.0, 0.9, "human_right"),  # a control: all agree
        ({"choice": "a", "strength": 1}, 0.5, 0.9, "model_right"),  # people are split
        ({"choice": "a", "strength": 1}, 0.5, None, "human_right"),
        ({"choice": "b", "strength": 8}, 1.0, None, "ambiguous"),
    ],
)
def test_the_outcome_says_who_the_reviewer_sides_with(own, people, model, outcome):
    assert outcome_of(own, people, model) == outcome


def contradicted(desk: Office, number: int = 1) -> None:
    """A task on which two people say a, and the reward model says b with 87.31 %."""
    desk.publish(pair(number, reward_p=0.1269, reward_confidence=1.0, strategy="active"))
    desk.says("Xu", f"t{number}", "a", 1, comment="because it is longer")
    desk.says("Yi", f"t{number}", "a", 3)


def test_a_reviewer_votes_before_they_see_what_the_reward_model_says(desk: Office):
    contradicted(desk)
    desk.says("judge", "t1", "b", role="judge", value={"p_a": 0.2123}, kind="ai")
    visit = desk.visit("Rev", "reviewer")
    page = visit.get(f"/lead/{PROJECT}/review?against=reward").text
    before = re.sub(r'="[\w-]{30,}"', '=""', page)  # tokens may hold any letters
    assert "because it is longer" in before
    assert "Annotator 1" in before
    for hidden in ("Xu", "Yi", "87", "prefers", "zebra", "79 %", "control", "AI judge 1"):
        assert hidden not in before, hidden
    assert visit.post(f"/lead/{PROJECT}/review/t1/reveal").status_code == 404  # no vote, no look

    # the strip speaks of what this reviewer sees: find where the longer answer is
    longer_first = before.index("a longer answer") < before.index("short</")
    fields = {
        "strength": "8" if longer_first else "1",
        "reason": "The short one is right.",
        "against": "reward",
    }
    after = visit.post(f"/lead/{PROJECT}/review/t1", **fields)
    assert after.status_code == 303
    page = visit.get(after.headers["location"]).text
    assert "The short one is right." in page
    assert "prefers" not in page

    (row,) = desk.rows(sa.select(adjudication))
    assert (row.outcome, row.revealed, row.value["choice"], row.value["strength"]) == (
        "model_right",
        False,
        "b",
        8,
    )
    assert row.value["drawn"] in ("top", "control")
    assert visit.post(f"/lead/{PROJECT}/review/t1/reveal", against="reward").status_code == 303
    assert "with 87 %" in visit.get(after.headers["location"]).text
    assert desk.rows(sa.select(adjudication))[0].revealed
    assert [one.action for one in desk.rows(sa.select(audit))] == ["task.adjudicate"]


def test_a_reason_and_a_verdict_are_needed(desk: Office):
    contradicted(desk)
    visit = desk.visit("Rev", "reviewer")
    for fields in (
        {"strength": "1", "reason": " "},
        {"strength": "", "reason": "x"},
        {"strength": "9", "reason": "x"},
    ):
        assert visit.post(f"/lead/{PROJECT}/review/t1", **fields).status_code == 422
    assert desk.rows(sa.select(adjudication)) == []


def test_nobody_reviews_what_they_judged_and_nothing_is_reviewed_twice(desk: Office):
    contradicted(desk)
    desk.person("Rev", "reviewer")
    desk.says("Rev", "t1", "b")
    own = desk.visit("Rev", "reviewer")
    assert "Nothing to review" in own.get(f"/lead/{PROJECT}/review").text
    assert own.post(f"/lead/{PROJECT}/review/t1", strength="1", reason="x").status_code == 409
    assert (
        desk.visit("Second", "reviewer")
        .post(f"/lead/{PROJECT}/review/t1", strength="1", reason="x")
        .is_redirect
    )
    third = desk.visit("Third", "reviewer")
    assert third.post(f"/lead/{PROJECT}/review/t1", strength="1", reason="x").status_code == 409
    assert "Nothing to review" in third.get(f"/lead/{PROJECT}/review").text


def test_two_reviewers_are_given_different_tasks(desk: Office):
    contradicted(desk, 1)
    contradicted(desk, 2)
    pages = [desk.visit(name, "reviewer").get(f"/lead/{PROJECT}/review").text for name in ("Rev", "Rho")]
    given = [re.search(r"/review/(t\d)\"", one) for one in pages]
    assert {one[1] for one in given if one} == {"t1", "t2"}


def test_people_who_disagree_come_before_people_who_agree(desk: Office):
    for number in range(1, 11):
        desk.publish(pair(number))
        desk.says("Xu", f"t{number}", "a")
        desk.says("Yi", f"t{number}", "b" if number == 7 else "a")
    page = desk.visit("Rev", "reviewer").get(f"/lead/{PROJECT}/review?against=human").text
    assert "/review/t7" in page


# --- quality ---------------------------------------------------------------------------------------------------------


def test_the_dashboard_shows_figures_with_what_they_rest_on(desk: Office):
    desk.publish(*[pair(number) for number in range(1, 5)])
    for number, (first, second) in enumerate(("aa", "bb", "ab", "aa"), start=1):
        desk.says("Xu", f"t{number}", first)
        desk.says("Yi", f"t{number}", second)
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/quality").text
    for shown in ("0.75", "0.53", "0.47", "3/4", "<svg"):
        assert shown in page
    assert "style=" not in page
    part = desk.visit("Lea").get(f"/lead/{PROJECT}/quality", headers={"HX-Request": "true"}).text
    assert "<html" not in part and "0.53" in part


def test_what_cannot_be_computed_is_called_undefined(desk: Office):
    desk.publish(pair(1))
    desk.says("Xu", "t1", "a")
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/quality").text
    assert "undefined" in page and "nobody judged the same twice" in page


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_a_lead_freezes_a_round_after_a_confirmation(desk: Office):
    desk.publish(pair(1), pair(2))
    number = desk.says("Xu", "t1", "a")
    visit = desk.visit("Lea")
    assert "Freeze round 1?" in visit.get(f"/lead/{PROJECT}/rounds/1/freeze").text
    assert visit.post(f"/lead/{PROJECT}/rounds/1/freeze", reason="enough").is_redirect
    (row,) = desk.rows(sa.select(round_))
    assert (row.state, row.watermark) == ("frozen", number)
    (noted,) = desk.rows(sa.select(audit))
    assert (noted.actor, noted.action, noted.detail["reason"]) == (
        desk.people["Lea"].id,
        "round.freeze",
        "enough",
    )
    assert {one.state for one in desk.rows(sa.select(task))} == {"closed"}
    assert visit.post(f"/lead/{PROJECT}/rounds/1/freeze").status_code == 409


def test_a_trained_policy_is_promoted_rolled_back_and_promoted_again(desk: Office):
    visit = desk.visit("Lea")
    assert visit.get(f"/lead/{PROJECT}/rounds/1/promote").status_code == 409  # nothing was trained
    visit.post(f"/lead/{PROJECT}/rounds/1/freeze")
    now = desk.database.now()
    desk.database.write(lambda c: set_state(c, now, "round-1", "rejected", policy_out="policy-new"))
    states = []
    for action in ("promote", "rollback", "promote"):
        assert visit.get(f"/lead/{PROJECT}/rounds/1/{action}").status_code == 200
        assert visit.post(f"/lead/{PROJECT}/rounds/1/{action}", reason="looked at it").is_redirect
        states.append(desk.rows(sa.select(round_))[0].state)
    assert states == ["promoted", "rejected", "promoted"]
    actions = [one.action for one in desk.rows(sa.select(audit).order_by(audit.c.id))]
    assert [one for one in actions if one.startswith("round.")][-3:] == [
        "round.promote",
        "round.reject",
        "round.promote",
    ]


def test_a_round_shows_accuracy_and_age_of_its_labels(desk: Office):
    for number, (reward_p, choice) in enumerate(((0.9, "a"), (0.9, "b"), (0.2, "b")), start=1):
        desk.publish(pair(number, reward_p=reward_p))
        desk.says("Xu", f"t{number}", choice)
    page = desk.visit("Lea").get(f"/lead/{PROJECT}/rounds/1").text
    assert "66.7 %" in page
    assert 'class="reliability"' in page


# --- data and exports ------------------------------------------------------------------------------------------------


def test_tasks_are_found_by_kind_state_tag_annotator_and_text(desk: Office):
    desk.publish(
        pair(1, tags=("physics",)),
        pair(2, asked="为什么天空是蓝色的？", texts=("散射", "不知道")),
        pair(3, kind="rank"),
        pair(4, expected={"choice": "a"}),
    )
    desk.says("Xu", "t1", "a")
    visit = desk.visit("Lea")

    def found(**wanted: str) -> set[str]:
        page = visit.get(f"/lead/{PROJECT}/data", params=wanted).text
        return set(re.findall(r"/tasks/(t\d)", page))

    assert found() == {"t1", "t2", "t3", "t4"}
    assert found(tag="physics") == {"t1"}
    assert found(text="天空") == {"t2"}
    assert found(text="散射") == {"t2"}
    assert found(kind="rank") == {"t3"}
    assert found(state="gold") == {"t4"}
    assert found(annotator=desk.people["Xu"].id) == {"t1"}
    assert found(text="%") == set()
    assert visit.get(f"/lead/{PROJECT}/data", params={"kind": "nonsense"}).status_code == 422


def test_the_lineage_of_a_task_has_all_revisions_and_the_exports_that_hold_it(desk_with_files: Office):
    desk_with_files.publish(pair(1), pair(2))
    before = desk_with_files.says("Xu", "t1", "a", 1)
    desk_with_files.says("Xu", "t1", "b", 8, supersedes=before, revision=1, comment="read it again")
    desk_with_files.says("Xu", "t2", "a", 1)
    visit = desk_with_files.visit("Lea")
    assert visit.post(f"/lead/{PROJECT}/export", format="trl-preference", ending=".jsonl").is_redirect
    page = visit.get(f"/lead/{PROJECT}/tasks/t1").text
    for shown in ("read it again", "replaced", "policy-zebra-0", "trl-preference", "1 of its judgements"):
        assert shown in page
    assert visit.get(f"/lead/{PROJECT}/tasks/t9").status_code == 404


def test_an_export_is_counted_first_and_comes_with_its_manifest(desk_with_files: Office):
    desk_with_files.publish(pair(1), pair(2), pair(3), pair(4, expected={"choice": "a"}))
    desk_with_files.says("Xu", "t1", "a", 1)
    desk_with_files.says("Xu", "t2", "b", 8)
    desk_with_files.says("Xu", "t3", "tie")
    desk_with_files.says("Xu", "t4", "a", 2)
    visit = desk_with_files.visit("Lea")
    counts = visit.post(f"/lead/{PROJECT}/export/count", format="trl-preference").text
    assert "2 records from 2 of 4 judgements" in counts
    assert "ties" in counts and "gold" in counts
    made = visit.post(f"/lead/{PROJECT}/export", format="trl-preference", ending=".jsonl")
    place = made.headers["location"]
    content = visit.get(f"{place}/file").content
    manifest = json.loads(visit.get(f"{place}/manifest").content)
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["records"], manifest["drops"]) == (2, {"gold": 1, "tie": 1})
    first = json.loads(content.splitlines()[0])
    assert {"prompt", "chosen", "rejected", "margin"} <= first.keys()
    (row,) = desk_with_files.rows(sa.select(export))
    assert (row.sha256, row.rows, row.watermark) == (manifest["sha256"], 2, 4)
    assert manifest["sha256"] in visit.get(place).text


def test_an_export_of_a_frozen_round_is_the_same_while_labelling_goes_on(desk_with_files: Office):
    desk_with_files.publish(pair(1))
    desk_with_files.says("Xu", "t1", "a", 1)
    visit = desk_with_files.visit("Lea")
    visit.post(f"/lead/{PROJECT}/rounds/1/freeze")
    sums = []
    for name in ("Yi", "Zoe"):
        visit.post(f"/lead/{PROJECT}/export", format="judgements-raw", ending=".jsonl", round="1")
        desk_with_files.says(name, "t1", "b", 8, state="late")
        sums = [one.sha256 for one in desk_with_files.rows(sa.select(export))]
    assert len(sums) == 2 and len(set(sums)) == 1


def test_exports_are_limited(tmp_path):
    with office(tmp_path, limits=Limits(export=2)) as desk:
        desk.publish(pair(1))
        desk.says("Xu", "t1", "a", 1)
        visit = desk.visit("Lea")
        codes = [visit.post(f"/lead/{PROJECT}/export", format="pairs").status_code for _ in range(3)]
    assert codes == [303, 303, 429]


def test_an_export_of_nothing_says_what_was_left_out(desk_with_files: Office):
    desk_with_files.publish(pair(1))
    desk_with_files.says("Xu", "t1", "tie")
    answer = desk_with_files.visit("Lea").post(f"/lead/{PROJECT}/export", format="trl-preference")
    assert answer.status_code == 422
    assert "tie 1" in answer.text
    assert desk_with_files.rows(sa.select(export)) == []


def test_a_store_without_a_folder_offers_no_file_and_says_how_to_write_one(any_place):
    with office(any_place) as desk:
        desk.publish(pair(1))
        desk.says("Xu", "t1", "a", 1)
        visit = desk.visit("Lea")
        page = visit.get(f"/lead/{PROJECT}/export").text
        counted = visit.post(f"/lead/{PROJECT}/export/count", format="trl-preference").text
        made = visit.post(f"/lead/{PROJECT}/export", format="trl-preference", ending=".jsonl")
    has_folder = "://" not in any_place
    assert ('name="ending"' in page, ">Export</button>" in page) == (has_folder, has_folder)
    assert ("prefloop label export trl-preference --out" in page) == (not has_folder)
    assert "1 records from 1 of 1 judgements" in counted
    assert made.status_code == (303 if has_folder else 422)


def test_a_format_that_fits_no_table_says_so_where_it_is_chosen(desk_with_files: Office):
    desk_with_files.publish(pair(1))
    desk_with_files.says("Xu", "t1", "a", 1)
    visit = desk_with_files.visit("Lea")
    page = visit.get(f"/lead/{PROJECT}/export").text
    for name in FORMATS:
        (option,) = re.findall(f'<option value="{name}">([^<]*)</option>', page)
        assert (".jsonl or .json only" in option) == (FORMATS[name].columns is None)
    refused = visit.post(f"/lead/{PROJECT}/export", format="argilla", ending=".csv")
    assert refused.status_code == 422 and "choose .jsonl or .json" in refused.text


# --- flags and guidelines --------------------------------------------------------------------------------------------


def flagged(desk: Office, number: int) -> int:
    person = desk.person("Xu")
    values = {
        "task_id": f"t{number}",
        "annotator_id": person.id,
        "reason": "personal_data",
        "comment": "a telephone number",
        "created_at": desk.database.now(),
    }
    return desk.database.write(
        lambda c: c.execute(sa.insert(flag).values(values).returning(flag.c.id)).scalar_one()
    )


def test_a_flag_that_is_upheld_closes_the_task_and_keeps_it_out_of_training(desk: Office):
    desk.publish(pair(1), pair(2))
    desk.says("Xu", "t1", "a", 1)
    desk.says("Xu", "t2", "a", 1)
    bad, fine = flagged(desk, 1), flagged(desk, 2)
    visit = desk.visit("Rev", "reviewer")
    assert "a telephone number" in visit.get(f"/lead/{PROJECT}/flags").text
    assert visit.post(f"/lead/{PROJECT}/flags/{bad}", resolution="upheld").is_redirect
    assert visit.post(f"/lead/{PROJECT}/flags/{fine}", resolution="dismissed").is_redirect
    assert visit.post(f"/lead/{PROJECT}/flags/{fine}", resolution="upheld").status_code == 409
    assert {one.id: one.state for one in desk.rows(sa.select(task))} == {"t1": "closed", "t2": "open"}
    counts = desk.visit("Lea").post(f"/lead/{PROJECT}/export/count", format="trl-preference").text
    assert "1 records from 1 of 2 judgements" in counts and "flagged" in counts


def test_guidelines_get_a_new_version_and_a_preview(desk: Office):
    visit = desk.visit("Lea")
    preview = visit.post(
        f"/lead/{PROJECT}/guidelines/preview", text="**bold** <script>alert(1)</script>"
    ).text
    assert "<strong>bold</strong>" in preview and "<script>" not in preview
    for text in ("Be helpful.", "Be helpful and honest."):
        assert visit.post(f"/lead/{PROJECT}/guidelines", text=text).is_redirect
    assert [one.version for one in desk.rows(sa.select(guideline).order_by(guideline.c.version))] == [1, 2]
    assert visit.post(f"/lead/{PROJECT}/guidelines", text=" ").status_code == 422


# --- hostile text ----------------------------------------------------------------------------------------------------


def test_hostile_text_is_text_on_every_page(desk: Office):
    for number, payload in enumerate(list(PAYLOADS.values())[:40], start=1):
        desk.publish(
            pair(number, asked=payload, texts=(payload, f"{payload} 2"), reward_p=0.2, tags=(payload[:80],))
        )
        desk.says("Xu", f"t{number}", "a", 1, comment=payload)
        desk.says("Yi", f"t{number}", "b", 8, comment=payload)
    visit = desk.visit("Lea")
    paths = [
        "data",
        "quality",
        "rounds",
        "rounds/1",
        "export",
        "flags",
        "gold",
        "people",
        "review?against=human",
    ]
    paths += [f"tasks/t{number}" for number in range(1, 41)]
    for path in paths:
        page = visit.get(f"/lead/{PROJECT}/{path}").text
        scripts = re.findall(r"<script\b[^>]*>", page, flags=re.IGNORECASE)
        assert all("/static/" in one or "application/json" in one for one in scripts), (path, scripts)
        assert not re.search(r"<[^>]+\son\w+\s*=", re.sub(r"<[^>]*=\"[^\"]*\"[^>]*>", "", page)), path
        assert "evil.example/x.js>" not in page, path
