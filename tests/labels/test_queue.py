"""Claims, leases and answers keep their contract, on SQLite and on PostgreSQL."""

from collections import Counter, defaultdict

import pytest
import sqlalchemy as sa

from labels.small_store import PROJECT, SmallStore, check
from prefloop.labels import publish, queue
from prefloop.labels.errors import Conflict, Forbidden, Frozen, Invalid, NotFound
from prefloop.labels.guidelines import acknowledge_guidelines
from prefloop.labels.schema import annotator, judgement, lease, ledger, member, round_, task

MINUTE_MS = 60_000
PAID = {"cents": {"pairwise": 5}}


@pytest.fixture
def open_store(any_store) -> SmallStore:
    return any_store


def test_a_judgement_tells_which_guidelines_were_read_not_those_of_its_older_task(open_store):
    store = open_store
    store.project()
    store.publish()
    a = store.person()

    def write_and_read(connection):
        for number in (1, 2):
            assert publish.publish_guidelines(connection, store.now, PROJECT, f"version {number}") == number
        acknowledge_guidelines(connection, PROJECT, a, 2)

    store.database.write(write_and_read)
    stored = store.judge(a)
    assert store.rows(task)[0].guideline_version == 0
    assert store.judgement(stored.id).guideline_version == 2


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_task_goes_to_as_many_people_as_its_overlap_and_to_nobody_twice(open_store):
    store = open_store
    store.project(overlap=2)
    (one,) = store.publish()
    a, b, c = (store.person() for _ in range(3))
    assert store.held(a).task_id == store.held(b).task_id == one
    assert store.claim(c) is None
    store.judge(a)
    assert store.claim(a) is None
    store.judge(b)
    assert store.claim(c) is None
    assert (store.task(one).valid, store.task(one).leased) == (2, 0)
    assert store.task(one).done_at == store.now
    check(store)


def test_claiming_again_gives_the_same_lease(open_store):
    store = open_store
    store.project()
    store.publish(2)
    a = store.person()
    first = store.held(a)
    store.wait(minutes=1)
    assert store.held(a) == first
    assert store.served(a) == 1


def test_one_person_holds_a_task_in_each_of_their_projects(open_store):
    store = open_store
    store.project()
    store.publish(2)
    a = store.person()
    first = store.held(a)

    def other_project(connection):
        publish.add_project(connection, store.now, "other", publish.ProjectConfig(gold_share=0))
        connection.execute(sa.insert(member).values(project_id="other", annotator_id=a.id))

    store.database.write(other_project)
    assert store.claim(a, "other") is None
    assert store.held(a) == first


def test_tasks_come_by_priority_and_then_in_the_order_of_publication(open_store):
    store = open_store
    store.project()
    low = store.publish(2, priority=-1.5)
    high = store.publish(2, priority=0.5)
    usual = store.publish(2)
    a = store.person()
    came = []
    while (held := store.claim(a)) is not None:
        came.append(held.task_id)
        store.submit(a, held.token)
    assert came == high + usual + low


def test_urgent_tasks_come_first_though_they_were_published_in_mid_work(open_store):
    store = open_store
    store.project(overlap=2)
    store.publish(3)
    a = store.person()
    store.judge(a)
    (urgent,) = store.publish(priority=1)
    assert store.held(a).task_id == urgent


def test_only_members_claim(open_store):
    store = open_store
    store.project()
    store.publish()
    stranger = store.person(is_member=False)
    with pytest.raises(Forbidden, match="not a member"):
        store.claim(stranger)
    with pytest.raises(NotFound):
        store.claim(stranger, "nothing")


def test_who_failed_the_qualification_or_has_guidelines_to_read_gets_nothing(open_store):
    store = open_store
    store.project()
    store.publish()
    a = store.person()
    store.database.write(
        lambda connection: publish.publish_guidelines(connection, store.now, "project", "Be fair.")
    )
    with pytest.raises(Forbidden, match="version 1 of the guidelines"):
        store.claim(a)
    store.change(sa.update(member).values(guideline_version=1, qualification="failed"))
    with pytest.raises(Forbidden, match="qualification"):
        store.claim(a)
    store.change(sa.update(member).values(qualification="passed"))
    assert store.claim(a) is not None


def test_skills_languages_and_authors_decide_who_is_asked(open_store):
    store = open_store
    store.project(overlap=5)
    writer = store.person(skills=["law", "code"], languages=["zh", "en"])
    plain, speaker = store.person(), store.person(languages=["en"])
    (law,) = store.publish(skill="law")
    (chinese,) = store.publish(lang="zh")
    (own,) = store.publish(author_id=writer.id)

    def all_of(person):
        found = []
        while (held := store.claim(person)) is not None:
            found.append(held.task_id)
            store.submit(person, held.token)
        return found

    assert all_of(writer) == [law, chinese]
    assert all_of(plain) == [chinese, own]  # who names no language reads any
    assert all_of(speaker) == [own]


def test_sensitive_tasks_come_only_to_who_takes_them_and_only_so_many_a_day(open_store):
    store = open_store
    store.project(overlap=5)
    store.publish(4, is_sensitive=True)
    mild = store.publish(2, priority=-1)
    careful, brave = store.person(), store.person(exposure_cap=2)
    assert store.held(careful).task_id == mild[0]
    kinds = []
    for _ in range(4):
        held = store.held(brave)
        kinds.append(store.task(held.task_id).is_sensitive)
        store.submit(brave, held.token)
    assert kinds == [True, True, False, False]
    assert store.claim(brave) is None
    store.wait(hours=24, minutes=1)
    assert store.task(store.held(brave).task_id).is_sensitive


def test_a_sensitive_task_that_was_let_go_was_seen_all_the_same(open_store):
    store = open_store
    store.project(overlap=5)
    store.publish(2, is_sensitive=True)
    a = store.person(exposure_cap=1)
    store.held(a)
    store.wait(minutes=16)
    assert store.claim(a) is None


def test_places_given_back_are_found_by_who_has_passed_them(open_store):
    store = open_store
    store.project()
    ids = store.publish(6)
    a, b = store.person(), store.person()
    early = store.held(b)
    for _ in range(3):
        store.judge(a)
    assert early.task_id == ids[0]
    store.skip(b, early.token)
    assert store.held(a).task_id == ids[0]


def test_who_found_nothing_finds_what_comes_back_and_what_is_new(open_store):
    store = open_store
    store.project()
    (one,) = store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    assert store.claim(b) is None
    store.skip(a, token)
    assert store.held(b).task_id == one
    assert store.claim(a) is None
    (new,) = store.publish()
    assert store.held(a).task_id == new


def test_a_new_skill_counts_within_minutes(open_store):
    store = open_store
    store.project()
    (law,) = store.publish(skill="law")
    store.publish(3)
    a = store.person()
    store.judge(a)
    store.change(sa.update(annotator).where(annotator.c.id == a.id).values(skills=["law"]))
    skilled = type(a)(a.id, a.name, skills=("law",))
    store.wait(minutes=6)
    assert store.held(skilled).task_id == law


def test_ai_judges_never_fill_the_places_of_people(open_store):
    store = open_store
    store.project(overlap=1, ai_overlap=1)
    (one,) = store.publish()
    judge, second, person = store.person(role="judge"), store.person(role="judge"), store.person()
    stored = store.judge(judge, {"p_first": 0.9, "p_first_swapped": 0.7})
    assert store.judgement(stored.id).kind == "ai"
    assert store.claim(second) is None
    assert (store.task(one).valid, store.task(one).ai_valid) == (0, 1)
    store.judge(person)
    assert (store.task(one).valid, store.task(one).ai_valid) == (1, 1)
    check(store)


def test_without_an_overlap_of_their_own_ai_judges_get_nothing(open_store):
    store = open_store
    store.project()
    store.publish()
    assert store.claim(store.person(role="judge")) is None


def test_a_turn_of_ones_own_conversation_is_taken_at_once_and_what_was_held_goes_back(open_store):
    store = open_store
    store.project(**PAID)
    (usual,) = store.publish()
    a, b = store.person(), store.person()
    before = store.held(a)
    (turn,) = store.publish(for_annotator=a.id, overlap=1)

    def claim_own(person, task_id):
        return store.database.write(
            lambda connection: queue.claim_own(connection, store.now, task_id, person)
        )

    with pytest.raises(NotFound):
        claim_own(b, turn)
    with pytest.raises(NotFound):
        claim_own(a, usual)
    held = claim_own(a, turn)
    assert claim_own(a, turn) == held
    assert (held.task_id, store.served(a)) == (turn, 2)
    check(store)
    assert store.submit(a, before.token).state == "valid"
    store.submit(a, held.token)
    with pytest.raises(NotFound):
        claim_own(a, turn)
    check(store)


def test_a_turn_is_not_taken_where_there_is_no_money_for_it(open_store):
    store = open_store
    store.project(budget_cents=4, **PAID)
    a = store.person()
    (turn,) = store.publish(for_annotator=a.id, overlap=1)
    with pytest.raises(Conflict, match="budget"):
        store.database.write(lambda connection: queue.claim_own(connection, store.now, turn, a))
    check(store)


def test_who_may_take_tasks_is_told_without_one(open_store):
    store = open_store
    store.project()
    member_, stranger = store.person(), store.person(is_member=False)
    store.database.read(lambda connection: queue.admit(connection, "project", member_))
    with pytest.raises(Forbidden):
        store.database.read(lambda connection: queue.admit(connection, "project", stranger))


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_lasts_fifteen_minutes_and_then_its_place_is_free(open_store):
    store = open_store
    store.project()
    (one,) = store.publish()
    a, b = store.person(), store.person()
    held = store.held(a)
    assert held.expires_at == store.now + 15 * MINUTE_MS
    store.wait(minutes=14.99)
    assert store.claim(b) is None
    store.wait(minutes=0.01)
    assert store.held(b).task_id == one
    assert store.claim(a) is None
    check(store)


def test_heartbeats_keep_a_task_for_two_hours_at_most(open_store):
    store = open_store
    store.project()
    store.publish()
    a, b = store.person(), store.person()
    held = store.held(a)
    for _ in range(119):
        store.wait(minutes=1)
        until = store.heartbeat(a, held.token)
        assert until == min(store.now + 15 * MINUTE_MS, held.created_at + 120 * MINUTE_MS)
    assert until == held.limit_at
    store.wait(minutes=1)
    with pytest.raises(Conflict, match="too long"):
        store.heartbeat(a, held.token)
    assert store.claim(b) is not None


def test_a_heartbeat_does_not_bring_back_what_has_run_out(open_store):
    store = open_store
    store.project(overlap=2)
    store.publish()
    a, b = store.person(), store.person()
    held = store.held(a)
    store.wait(minutes=15)
    with pytest.raises(Conflict):
        store.heartbeat(a, held.token)
    store.held(b)
    with pytest.raises(Conflict):
        store.heartbeat(a, held.token)
    assert store.rows(lease, lease.c.token == held.token)[0].expires_at == held.expires_at


def test_a_lease_is_never_longer_than_its_limit(open_store):
    store = open_store
    store.project(lease_minutes=30, lease_limit_minutes=20)
    store.publish()
    assert store.held(store.person()).expires_at == store.now + 20 * MINUTE_MS


def test_others_leases_are_not_there(open_store):
    store = open_store
    store.project()
    store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    for attempt in (
        lambda: store.submit(b, token),
        lambda: store.skip(b, token),
        lambda: store.heartbeat(b, token),
        lambda: store.draft(b, token, {}),
    ):
        with pytest.raises(NotFound):
            attempt()
    check(store)


def test_a_draft_comes_back_with_the_lease_and_after_it_ran_out(open_store):
    store = open_store
    store.project()
    store.publish()
    a = store.person()
    held = store.held(a)
    store.draft(a, held.token, {"strength": 3, "comment": "not yet"})
    assert store.held(a).draft == {"strength": 3, "comment": "not yet"}
    store.wait(minutes=20)
    again = store.held(a)
    assert (again.token, again.presented, again.draft) == (
        held.token,
        held.presented,
        {"strength": 3, "comment": "not yet"},
    )
    with pytest.raises(Invalid, match="draft"):
        store.draft(a, held.token, {"comment": "x" * 1_000_001})


def test_who_comes_back_to_another_place_sees_the_other_order_and_no_old_draft(open_store):
    store = open_store
    store.project(overlap=2)
    (one,) = store.publish()
    a, b, c = (store.person() for _ in range(3))
    first = store.held(a)
    store.draft(a, first.token, {"strength": 3})
    store.wait(minutes=20)
    store.judge(b)  # takes the second place, for a may still come
    store.held(c)  # takes the first
    store.wait(minutes=20)
    store.change(sa.update(lease).where(lease.c.annotator_id == c.id).values(expires_at=store.now + 60_000))
    assert store.claim(a) is None
    store.wait(minutes=2)
    back = store.held(a)
    assert (back.task_id, back.slot, back.draft) == (one, first.slot, {"strength": 3})
    check(store)


# --- orders ----------------------------------------------------------------------------------------------------------


def test_four_hundred_places_are_shown_in_exactly_balanced_orders(open_store):
    store = open_store
    store.project(overlap=2)
    ids = store.publish(200)
    a, b = store.person(), store.person()
    for person in (a, b, a, b) * 100:
        if (held := store.claim(person)) is not None:
            store.submit(person, held.token)
    for person in (a, b):
        while (held := store.claim(person)) is not None:
            store.submit(person, held.token)
    orders = defaultdict(list)
    for row in store.rows(judgement):
        orders[row.task_id].append(tuple(row.presented))
    assert set(orders) == set(ids)
    assert all(sorted(shown) == [(0, 1), (1, 0)] for shown in orders.values())
    # by a secret, not by who comes first: both orders come first about equally often (400 places, 5 standard deviations)
    first = Counter(shown[0] for shown in orders.values())
    assert abs(first[0, 1] - 100) < 5 * 200**0.5 / 2


def test_orders_stay_balanced_when_leases_run_out_and_answers_come_late(open_store):
    store = open_store
    store.project(overlap=2)
    store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    store.wait(minutes=20)
    store.judge(b)
    assert store.submit(a, token).state == "valid"
    assert sorted(tuple(row.presented) for row in store.rows(judgement)) == [(0, 1), (1, 0)]


def test_five_texts_stand_in_every_place_equally_often(open_store):
    store = open_store
    store.project(kind="rank", overlap=10)
    store.publish(texts="abcde")
    presented = [store.held(store.person()).presented for _ in range(10)]
    for place in range(5):
        assert Counter(order[place] for order in presented) == dict.fromkeys(range(5), 2)


def test_the_same_strength_means_the_same_text_whichever_side_it_was_on(open_store):
    store = open_store
    store.project(overlap=2)
    store.publish()
    for person in (store.person(), store.person()):
        held = store.held(person)
        # always strongly for the text "a", which is completion 0
        store.submit(person, held.token, {"strength": 1 if held.presented[0] == 0 else 8})
    values = [(row.value["choice"], row.value["strength"]) for row in store.rows(judgement)]
    assert values == [("a", 1), ("a", 1)]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_same_answer_again_is_the_same_judgement(open_store):
    store = open_store
    store.project(**PAID)
    store.publish()
    a = store.person()
    token = store.held(a).token
    first = store.submit(a, token, active_ms=5000)
    assert store.submit(a, token, active_ms=7000) == first
    with pytest.raises(Conflict):
        store.submit(a, token, {"strength": 7})
    with pytest.raises(Conflict):
        store.submit(a, token, comment="and another thing")
    with pytest.raises(Conflict):
        store.skip(a, token)
    with pytest.raises(NotFound):
        store.submit(a, "another-uuid")
    assert len(store.rows(judgement)) == len(store.rows(ledger)) == 1
    check(store)


def test_a_value_that_does_not_fit_leaves_the_lease_as_it_was(open_store):
    store = open_store
    store.project()
    store.publish()
    a = store.person()
    held = store.held(a)
    with pytest.raises(Invalid):
        store.submit(a, held.token, {"strength": 9})
    assert store.held(a) == held
    check(store)


def test_a_late_answer_counts_while_its_place_is_free(open_store):
    store = open_store
    store.project()
    (one,) = store.publish()
    a = store.person()
    token = store.held(a).token
    store.wait(hours=5)
    assert store.submit(a, token).state == "valid"
    assert store.task(one).leased == 0
    check(store)


def test_a_late_answer_counts_though_somebody_noticed_that_its_lease_ran_out(open_store):
    store = open_store
    store.project(overlap=2)
    (one,) = store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    store.wait(minutes=20)
    store.held(b)
    assert store.submit(a, token).state == "valid"
    assert (store.task(one).valid, store.task(one).leased) == (1, 1)
    check(store)


def test_an_answer_whose_place_is_taken_is_surplus_and_paid(open_store):
    store = open_store
    store.project(**PAID)
    (one,) = store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    store.wait(minutes=20)
    store.held(b)
    stored = store.submit(a, token)
    assert stored.state == "surplus"
    assert store.judgement(stored.id).cents == 5
    assert store.judge(b).state == "valid"
    assert store.task(one).valid == 1
    assert store.round().spent_cents == 10
    check(store)


def test_a_late_answer_takes_the_place_of_a_lease_that_ran_out_as_well(open_store):
    store = open_store
    store.project()
    store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    store.wait(minutes=20)
    store.held(b)
    store.wait(minutes=20)
    assert store.submit(a, token).state == "valid"
    check(store)


def test_answers_after_the_freeze_are_late_and_paid(open_store):
    store = open_store
    store.project(overlap=2, **PAID)
    (one,) = store.publish()
    a, b = store.person(), store.person()
    open_token, over_token = store.held(a).token, store.held(b).token
    store.freeze()
    assert store.submit(a, open_token).state == "late"
    store.wait(minutes=20)
    assert store.submit(b, over_token).state == "late"
    assert (store.task(one).valid, store.task(one).leased) == (0, 0)
    assert (store.round().spent_cents, store.round().reserved_cents) == (10, 0)
    check(store)


def test_nothing_of_a_frozen_round_is_given_out(open_store):
    store = open_store
    store.project(overlap=2)
    store.publish(3)
    a = store.person()
    store.judge(a)
    store.freeze()
    assert store.claim(a) is None
    store.next_round()
    (new,) = store.publish()
    assert store.held(a).task_id == new


def test_a_skip_frees_the_place_and_is_final(open_store):
    store = open_store
    store.project(**PAID)
    (one,) = store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    with pytest.raises(Invalid, match="reason"):
        store.skip(a, token, "bored")
    stored = store.skip(a, token)
    assert store.skip(a, token) == stored
    assert (stored.state, store.task(one).skips) == ("skipped", 1)
    assert store.claim(a) is None
    assert store.held(b).task_id == one
    assert store.rows(ledger) == []
    check(store)


# --- changing one's mind ---------------------------------------------------------------------------------------------


def test_a_revision_follows_the_one_before_and_is_not_paid_again(open_store):
    store = open_store
    store.project(**PAID)
    (one,) = store.publish()
    a = store.person()
    held = store.held(a)
    first = store.submit(a, held.token, {"strength": 2})
    second = store.revise(a, first.id, {"strength": 7})
    store.revise(a, second.id, {"verdict": "tie"}, comment="after all")
    rows = store.rows(judgement)
    assert [(row.revision, row.supersedes, row.state) for row in rows] == [
        (0, None, "valid"),
        (1, first.id, "valid"),
        (2, second.id, "valid"),
    ]
    assert rows[2].value["choice"] == "tie"
    assert {tuple(row.presented) for row in rows} == {held.presented}
    assert store.task(one).valid == 1
    assert store.round().spent_cents == 5
    check(store)


def test_a_revision_is_sent_twice_and_stored_once(open_store):
    store = open_store
    store.project()
    store.publish()
    a = store.person()
    first = store.judge(a)
    second = store.revise(a, first.id, {"strength": 7}, key="key-of-this-click")
    assert store.revise(a, first.id, {"strength": 7}, key="key-of-this-click") == second
    with pytest.raises(Conflict, match="key"):
        store.revise(a, first.id, {"strength": 6}, key="key-of-this-click")
    with pytest.raises(Conflict, match="meanwhile"):
        store.revise(a, first.id, {"strength": 7}, key="key-of-another-click")
    with pytest.raises(Conflict, match="meanwhile"):
        store.withdraw(a, first.id)
    check(store)


def test_a_key_of_something_else_is_refused(open_store):
    store = open_store
    store.project()
    store.publish(2)
    a = store.person()
    first = store.judge(a)
    second = store.judge(a)
    revised = store.revise(a, first.id, {"strength": 7}, key="key-of-this-click")
    with pytest.raises(Conflict):
        store.revise(a, second.id, {"strength": 7}, key="key-of-this-click")
    with pytest.raises(Conflict):
        store.revise(a, revised.id, {"strength": 3}, key=store.judgement(second.id).client_uuid)
    check(store)


def test_the_token_of_an_open_lease_cannot_be_used_up_by_a_revision(open_store):
    store = open_store
    store.project()
    store.publish(2)
    a = store.person()
    first = store.judge(a)
    held = store.held(a)
    with pytest.raises(Conflict):
        store.revise(a, first.id, {"strength": 7}, key=held.token)
    assert store.submit(a, held.token).state == "valid"


def test_after_the_freeze_answers_stay(open_store):
    store = open_store
    store.project()
    store.publish()
    a = store.person()
    first = store.judge(a)
    store.freeze()
    with pytest.raises(Frozen, match="frozen"):
        store.revise(a, first.id, {"strength": 7})
    with pytest.raises(Frozen):
        store.withdraw(a, first.id)
    assert len(store.rows(judgement)) == 1


def test_what_is_taken_back_frees_its_place_and_its_pay(open_store):
    store = open_store
    store.project(**PAID)
    (one,) = store.publish()
    a, b = store.person(), store.person()
    first = store.judge(a)
    gone = store.withdraw(a, first.id)
    assert (gone.state, store.judgement(gone.id).value) == ("withdrawn", None)
    assert store.withdraw(a, first.id) == store.withdraw(a, gone.id) == gone
    assert (store.task(one).valid, store.task(one).done_at) == (0, None)
    assert [row.cents for row in store.rows(ledger)] == [5, -5]
    assert store.claim(a) is None  # nobody gets a task twice
    assert store.judge(b).state == "valid"
    assert store.revise(a, gone.id, {"strength": 3}).state == "surplus"
    assert store.round().spent_cents == 10
    check(store)


def test_who_skipped_or_took_back_can_still_answer_and_is_paid_once(open_store):
    store = open_store
    store.project(overlap=2, **PAID)
    (one,) = store.publish()
    a, b = store.person(), store.person()
    skipped = store.skip(a, store.held(a).token)
    answered = store.revise(a, skipped.id, {"strength": 3})
    gone = store.withdraw(a, answered.id)
    again = store.revise(a, gone.id, {"strength": 4})
    assert (answered.state, again.state, again.revision) == ("valid", "valid", 3)
    assert (store.task(one).valid, store.task(one).skips) == (1, 0)
    assert [row.cents for row in store.rows(ledger)] == [5, -5, 5]
    store.judge(b)
    assert store.task(one).done_at is not None
    check(store)


def test_a_revision_takes_the_place_of_a_lease_that_ran_out(open_store):
    store = open_store
    store.project()
    store.publish()
    a, b = store.person(), store.person()
    skipped = store.skip(a, store.held(a).token)
    store.held(b)
    store.wait(minutes=20)
    assert store.revise(a, skipped.id, {"strength": 3}).state == "valid"
    check(store)


def test_a_judge_that_answers_what_it_skipped_takes_no_place_of_people(open_store):
    store = open_store
    store.project(overlap=1, ai_overlap=1)
    (one,) = store.publish()
    judge = store.person(role="judge")
    skipped = store.skip(judge, store.held(judge).token)
    assert store.revise(judge, skipped.id, {"p_first": 0.8}).state == "valid"
    assert (store.task(one).valid, store.task(one).ai_valid) == (0, 1)
    check(store)


def test_surplus_becomes_valid_when_it_is_said_anew_and_a_place_is_free(open_store):
    store = open_store
    store.project(**PAID)
    store.publish()
    a, b = store.person(), store.person()
    token = store.held(a).token
    store.wait(minutes=20)
    taken = store.judge(b)
    surplus = store.submit(a, token)
    store.withdraw(b, taken.id)
    assert store.revise(a, surplus.id, {"strength": 2}).state == "valid"
    assert store.round().spent_cents == 5
    check(store)


def test_others_answers_are_not_there(open_store):
    store = open_store
    store.project()
    store.publish()
    a, b = store.person(), store.person()
    first = store.judge(a)
    with pytest.raises(NotFound):
        store.revise(b, first.id, {"strength": 7})
    with pytest.raises(NotFound):
        store.withdraw(b, first.id)


# --- gold and repeats ------------------------------------------------------------------------------------------------


def test_gold_tasks_come_to_everybody_and_only_now_and_then(open_store):
    store = open_store
    store.project(gold_share=0.25)
    store.publish(300)
    gold = store.publish(30, expected={"choice": "a"})
    people = [store.person() for _ in range(4)]
    seen = defaultdict(list)
    for _ in range(50):
        for person in people:
            held = store.held(person)
            seen[person.id].append(held.task_id in gold)
            store.submit(person, held.token)
    shares = [sum(one) / len(one) for one in seen.values()]
    # 200 draws with a chance of a quarter: 5 standard deviations around it
    assert abs(sum(shares) / 4 - 0.25) < 5 * (0.25 * 0.75 / 200) ** 0.5
    assert len(set(map(tuple, seen.values()))) == 4  # nobody can tell from others when one comes
    assert store.task(gold[0]).valid == 4
    assert all(row.valid <= 1 for row in store.rows(task, ~task.c.is_gold))
    check(store)


def test_repeats_come_to_the_same_person_after_a_day_the_other_way_round(open_store):
    store = open_store
    store.project(repeat_share=0.5, **PAID)
    store.publish(20)
    a, b = store.person(), store.person()
    shown = {}
    for _ in range(20):
        held = store.held(a)
        shown[held.task_id] = held.presented
        store.submit(a, held.token)
    planned = store.rows(task, task.c.repeat_of.is_not(None))
    assert 1 <= len(planned) < 20
    store.wait(hours=23)
    assert store.claim(a) is None
    store.wait(hours=2)
    store.freeze()
    store.next_round()
    assert store.claim(b) is None
    came = []
    while (held := store.claim(a)) is not None:
        row = store.task(held.task_id)
        assert held.presented == shown[row.repeat_of][::-1]
        assert row.round_id == store.round_id  # the round that is open pays
        store.submit(a, held.token)
        came.append(row.repeat_of)
    assert sorted(came) == sorted(row.repeat_of for row in planned)
    assert store.round().spent_cents == 5 * len(came)
    assert len(store.rows(task, task.c.repeat_of.is_not(None))) == len(planned)  # no repeats of repeats
    check(store)


def test_repeats_wait_while_there_is_no_money_for_them(open_store):
    store = open_store
    store.project(repeat_share=0.5, **PAID)
    store.publish(20)
    a = store.person()
    for _ in range(20):
        store.judge(a)
    store.wait(hours=25)
    store.change(sa.update(round_).values(budget_cents=store.round().spent_cents + 4))
    assert store.claim(a) is None
    store.change(sa.update(round_).values(budget_cents=store.round().spent_cents + 5))
    assert store.claim(a) is not None
    check(store)


# --- money -----------------------------------------------------------------------------------------------------------


def test_a_budget_is_never_promised_twice(open_store):
    store = open_store
    store.project(budget_cents=12, **PAID)
    store.publish(5)
    a, b, c = (store.person() for _ in range(3))
    store.held(a)
    token = store.held(b).token
    assert store.claim(c) is None  # 2 cents are left
    assert store.round().reserved_cents == 10
    store.skip(b, token)
    assert store.claim(c) is not None
    store.judge(a)
    store.judge(c)
    assert (store.round().reserved_cents, store.round().spent_cents) == (0, 10)
    assert store.claim(a) is None
    check(store)


def test_a_lease_that_runs_out_frees_its_money_for_tasks_that_were_passed(open_store):
    store = open_store
    store.project(budget_cents=5, overlap=2, **PAID)
    first, second = store.publish(2)
    a, b, c = (store.person() for _ in range(3))
    store.held(a)
    assert store.claim(b) is None
    store.wait(minutes=15)
    assert store.held(b).task_id == first
    assert store.claim(c) is None
    assert second is not None
    check(store)


def test_work_without_pay_goes_on_when_the_budget_is_spent(open_store):
    store = open_store
    store.project(budget_cents=5, **PAID)
    store.publish()
    a = store.person()
    store.judge(a)
    store.publish()
    (free,) = store.publish(kind="rank")
    assert store.held(a).task_id == free


def test_gold_tasks_are_paid_from_the_budget_as_well(open_store):
    store = open_store
    store.project(gold_share=0.5, budget_cents=4, **PAID)
    store.publish(30, expected={"choice": "a"})
    assert all(store.claim(store.person()) is None for _ in range(10))


def test_a_late_answer_is_paid_though_the_budget_is_spent(open_store):
    store = open_store
    store.project(budget_cents=5, **PAID)
    store.publish(2)
    a, b = store.person(), store.person()
    token = store.held(a).token
    store.wait(minutes=20)
    store.judge(b)
    assert store.submit(a, token).state == "surplus"
    assert store.round().spent_cents == 10
    check(store)


def test_who_skipped_is_not_paid_beyond_the_budget(open_store):
    store = open_store
    store.project(budget_cents=5, **PAID)
    store.publish(2)
    a, b = store.person(), store.person()
    skipped = store.skip(a, store.held(a).token)
    store.judge(b)
    with pytest.raises(Conflict, match="budget"):
        store.revise(a, skipped.id, {"strength": 2})
    assert store.judgement(skipped.id).state == "skipped"
    check(store)


def test_ai_judges_cost_nothing(open_store):
    store = open_store
    store.project(budget_cents=0, ai_overlap=1, **PAID)
    store.publish()
    assert store.judge(store.person(role="judge"), {"p_first": 0.2}).state == "valid"
    assert store.rows(ledger) == []


# --- speed by design -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["at", "below", "reopened", "own", "gold"])
def test_every_search_goes_through_an_index_of_its_own(store, look):
    from prefloop.labels.choosing import _search

    wanted = {"at": "room_human", "below": "room_human", "own": "for_annotator"}.get(look, look)
    statement = _search(look, "human", 1, 1, ("pairwise",), sensitive=False, locked=False)
    words = str(statement.compile(store.database.engine))
    values = ("x",) * words.count("?")
    plan = store.database.read(
        lambda connection: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}", values).all()
    )
    steps = [row[-1] for row in plan]
    assert steps[0].startswith(f"SEARCH task USING INDEX ix_task_{wanted} ")
    assert not any(step.startswith("SCAN") for step in steps)
    assert any("TEMP B-TREE" in step for step in steps) == (look == "reopened")


def test_queue_names_what_it_offers():
    assert all(hasattr(queue, name) for name in queue.__all__)


def test_a_task_of_more_texts_than_its_screen_shows_is_refused(store):
    store.project(kind="rank")
    store.publish(texts="abcdefghi")
    with pytest.raises(Invalid, match="a rank task shows 2 to 9 completions, not 10"):
        store.publish(texts="abcdefghij")
    with pytest.raises(Invalid, match="a pairwise task shows 2 completions, not 3"):
        store.publish(texts="abc", kind="pairwise")
