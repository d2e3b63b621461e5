"""Accounts, people and the audit as the store keeps them."""

import base64
import time

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.low_level import Type

from prefloop.labels import accounts, people, publish, queue, tokens
from prefloop.labels.audit import audit, entries
from prefloop.labels.database import open_database
from prefloop.labels.errors import Conflict, ConsentNeeded, Forbidden, Invalid, NotFound
from prefloop.labels.projects import ProjectConfig, parse_config
from prefloop.labels.schema import annotator, invite, judgement, member
from prefloop.records import Message, Prompt, file_completion

NOW = 1_800_000_000_000
MINUTE, HOUR = 60_000, 3_600_000


@pytest.fixture
def store(tmp_path):
    database = open_database(str(tmp_path / "labels.sqlite"), clock=lambda: NOW / 1000)
    yield database.write
    database.close()


@pytest.fixture
def root(store):
    return store(lambda c: people.add_person(c, NOW, "Root", role="admin"))


def add(store, name, role="annotator", **more):
    return store(lambda c: people.add_person(c, NOW, name, role=role, **more))


# --- passwords -------------------------------------------------------------------------------------------------------


def test_passwords_are_kept_as_argon2id_with_the_parameters_of_rfc_9106():
    hashed = accounts.hash_password("correct horse battery")
    assert hashed.startswith(
        "$argon2id$v=19$m=65536,t=3,p=4$"
    )  # RFC 9106, section 4: the second recommended option
    assert hashed != accounts.hash_password("correct horse battery")  # salted
    PasswordHasher(type=Type.ID).verify(hashed, "correct horse battery")


def test_a_password_is_right_or_wrong():
    hashed = accounts.hash_password("correct horse battery")
    assert accounts.verify_password(hashed, "correct horse battery") == accounts.Verified(True)
    for wrong in ("", "Correct horse battery", "correct horse battery ", "x" * 5000):
        assert not accounts.verify_password(hashed, wrong).is_right
    assert not accounts.verify_password("not a hash", "correct horse battery").is_right


def test_a_password_is_the_same_from_every_keyboard():
    hashed = accounts.hash_password("caf\u00e9 au lait, s'il vous plait")
    assert accounts.verify_password(hashed, "cafe\u0301 au lait, s'il vous plait").is_right


def test_a_hash_with_older_parameters_is_made_anew_at_login():
    old = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("correct horse battery")
    verified = accounts.verify_password(old, "correct horse battery")
    assert verified.is_right
    assert verified.rehashed is not None
    assert "m=65536,t=3,p=4" in verified.rehashed
    assert accounts.verify_password(verified.rehashed, "correct horse battery") == accounts.Verified(True)


def test_an_unknown_account_costs_as_much_time_as_a_wrong_password():
    hashed = accounts.hash_password("correct horse battery")
    accounts.verify_password(None, "warm")

    def fastest(hashed):
        times = []
        for _ in range(4):
            start = time.process_time()
            assert not accounts.verify_password(hashed, "a wrong password").is_right
            times.append(time.process_time() - start)
        return min(times)

    assert 1 / 3 < fastest(None) / fastest(hashed) < 3  # an early exit would be a thousandth


@pytest.mark.parametrize(
    "password", ["", "short", "aaaaaaaaaaaa", "x" * 1001, "ada@example.org", "Ada Lovelace"]
)
def test_passwords_that_are_easy_to_guess_are_refused(password):
    with pytest.raises(Invalid):
        accounts.check_new_password(password, "Ada Lovelace", "ada@example.org")


def test_one_logs_in_by_address_or_by_name_and_programs_do_not(store):
    ada = add(store, "Ada", email="ada@example.org")
    add(store, "Judge", "judge")
    for called in ("Ada", " Ada ", "ada@example.org", "ADA@Example.org"):
        assert store(lambda c, called=called: accounts.login_account(c, called)).id == ada.id
    for called in ("ada", "", "Judge", "bob@example.org"):
        assert store(lambda c, called=called: accounts.login_account(c, called)) is None


def test_a_name_cannot_look_like_an_address_or_hide_characters(store):
    for name in ("ada@example.org", "", " ", "a\nb", "a\u202eb", "x" * 81):
        with pytest.raises(Invalid):
            add(store, name)


# --- links and invites -----------------------------------------------------------------------------------------------


def test_a_link_lets_in_once_and_soon(store, root):
    token = store(lambda c: accounts.make_link(c, NOW, root.id, actor=root.id))
    assert store(lambda c: accounts.redeem_link(c, NOW + 14 * MINUTE, token)).id == root.id
    late = store(lambda c: accounts.make_link(c, NOW, root.id, actor=root.id))
    for used, now in ((token, NOW), (late, NOW + 15 * MINUTE), ("", NOW), ("x", NOW)):
        with pytest.raises(NotFound):
            store(lambda c, used=used, now=now: accounts.redeem_link(c, now, used))


def test_a_link_is_worth_nothing_after_the_password_was_changed_or_the_person_disabled(store, root):
    other = add(store, "Other", "admin")
    first = store(lambda c: accounts.make_link(c, NOW, other.id, actor=root.id))
    store(lambda c: accounts.set_password(c, NOW, other.id, "hash", actor=other.id))
    second = store(lambda c: accounts.make_link(c, NOW, other.id, actor=root.id))
    store(lambda c: people.disable_person(c, NOW, other.id, actor=root.id))
    for token in (first, second):
        with pytest.raises(NotFound):
            store(lambda c, token=token: accounts.redeem_link(c, NOW, token))


def test_the_first_start_makes_one_admin_and_the_next_ones_none(store):
    first = store(lambda c: accounts.first_admin_link(c, NOW))
    second = store(lambda c: accounts.first_admin_link(c, NOW))
    admins = store(lambda c: [accounts.redeem_link(c, NOW, token) for token in (first, second)])
    assert [(one.name, one.role) for one in admins] == [("admin", "admin")] * 2
    assert admins[0].id == admins[1].id


def test_an_invite_makes_one_account_with_its_role_and_projects(store, root):
    store(lambda c: publish.add_project(c, NOW, "p", ProjectConfig()))
    token = store(
        lambda c: accounts.make_invite(
            c, NOW, actor=root.id, role="reviewer", project_ids=["p"], email="A@b.org"
        )
    )
    for _ in range(2):  # looking uses nothing up
        found = store(lambda c: accounts.open_invite(c, NOW + 71 * HOUR, token))
        assert (found.role, found.project_ids, found.email) == ("reviewer", ("p",), "a@b.org")

    def accept(name):
        return store(
            lambda c: accounts.accept_invite(c, NOW, token, name=name, email="other@b.org", password_hash="h")
        )

    ada = accept("Ada")
    row = store(lambda c: c.execute(sa.select(annotator).where(annotator.c.id == ada.id)).one())
    assert (row.role, row.email) == ("reviewer", "a@b.org")  # of the invite, whatever the form says
    assert store(lambda c: people.projects_of_people(c)) == {ada.id: ["p"]}
    with pytest.raises(NotFound):
        accept("Bob")
    assert "Bob" not in [one.name for one in store(people.list_people)]


def test_invites_end_by_time_and_by_being_taken_back(store, root):
    old = store(lambda c: accounts.make_invite(c, NOW, actor=root.id, hours=1))
    gone = store(lambda c: accounts.make_invite(c, NOW, actor=root.id))
    store(lambda c: accounts.withdraw_invite(c, NOW, accounts.token_hash(gone), actor=root.id))
    for token in (old, gone):
        with pytest.raises(NotFound):
            store(lambda c, token=token: accounts.open_invite(c, NOW + HOUR, token))


def test_invites_are_for_people_and_for_projects_that_are_there(store, root):
    for wrong in ({"role": "judge"}, {"role": "king"}, {"hours": 0}, {"hours": 721}, {"email": "nobody"}):
        with pytest.raises(Invalid):
            store(lambda c, wrong=wrong: accounts.make_invite(c, NOW, actor=root.id, **wrong))
    with pytest.raises(NotFound):
        store(lambda c: accounts.make_invite(c, NOW, actor=root.id, project_ids=["p"]))


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_random_and_only_its_sha256_is_stored(store, root):
    made = [
        store(
            lambda c: tokens.make_token(
                c, NOW, root.id, actor=root.id, name="n", scopes=["admin", "tasks:read"]
            )
        )
        for _ in range(3)
    ]
    assert len({token for _, token in made}) == 3
    for _, token in made:
        secret = token.removeprefix("pfl_")
        assert len(base64.urlsafe_b64decode(secret + "=")) == 32  # 256 bits
    row = store(lambda c: tokens.find_token(c, NOW, made[0][1]))
    assert (row.name, row.scopes) == ("Root", ["admin", "tasks:read"])
    listed = store(tokens.list_tokens)
    assert "token_hash" not in listed[0]._mapping


def test_tokens_need_known_scopes_a_purpose_and_an_end(store, root):
    good = {"name": "n", "scopes": ["admin"], "days": 1}
    for wrong in ({"scopes": []}, {"scopes": ["root"]}, {"name": " "}, {"days": 0}, {"days": 367}):
        with pytest.raises(Invalid):
            store(lambda c, wrong=wrong: tokens.make_token(c, NOW, root.id, actor=root.id, **(good | wrong)))


# --- people ----------------------------------------------------------------------------------------------------------


def test_the_last_admin_stays(store, root):
    for change in (
        lambda c: people.change_role(c, NOW, root.id, "lead", actor=root.id),
        lambda c: people.disable_person(c, NOW, root.id, actor=root.id),
        lambda c: people.delete_person(c, NOW, root.id, actor=root.id),
    ):
        with pytest.raises(Invalid, match="only admin"):
            store(change)
    add(store, "Second", "admin")
    store(lambda c: people.change_role(c, NOW, root.id, "lead", actor=root.id))


def test_people_and_programs_do_not_become_each_other(store, root):
    ann, judge = add(store, "Ann"), add(store, "Judge", "judge")
    for person, role in ((ann, "judge"), (judge, "annotator"), (ann, "king")):
        with pytest.raises(Invalid):
            store(lambda c, p=person, r=role: people.change_role(c, NOW, p.id, r, actor=root.id))


def test_only_oneself_takes_on_more_tasks_that_disturb(store, root):
    ann = add(store, "Ann")

    def cap(number, actor):
        store(lambda c: people.set_exposure_cap(c, NOW, ann.id, number, actor=actor))

    with pytest.raises(Forbidden):
        cap(1, root.id)
    cap(20, ann.id)
    with pytest.raises(Forbidden):
        cap(21, root.id)
    cap(5, root.id)
    assert store(lambda c: people.find_person(c, id=ann.id)).exposure_cap == 5
    cap(0, root.id)
    assert store(lambda c: people.find_person(c, id=ann.id)).exposure_cap is None


def test_a_deleted_person_leaves_judgements_and_a_tombstone(store, root):
    ann = add(store, "Ann Secret", email="ann@secret.example", skills=["law"], languages=["en"])
    prompt = Prompt.of((Message(role="user", content="q"),))
    task = publish.NewTask(prompt, (file_completion(prompt, "a"), file_completion(prompt, "b", 1)))

    def judge(c):
        publish.add_project(c, NOW, "p", ProjectConfig(gold_share=0))
        publish.publish_tasks(c, NOW, "p", [task, task])
        people.join_project(c, "p", ann.id)
        held = queue.claim(c, NOW, "p", ann)
        return queue.submit(c, NOW, held.token, ann, queue.Submission(value={"strength": 2}))

    stored = store(judge)
    token = store(lambda c: tokens.make_token(c, NOW, ann.id, actor=ann.id, name="n", scopes=["admin"]))[1]
    session = store(lambda c: accounts.open_session(c, NOW, ann.id))
    store(lambda c: people.delete_person(c, NOW, ann.id, actor=root.id))
    rows = store(
        lambda c: [
            repr(tuple(row))
            for table in (annotator, invite, member, judgement)
            for row in c.execute(sa.select(table))
        ]
    )
    assert not [row for row in rows if "Secret" in row or "secret.example" in row]
    kept = store(lambda c: c.execute(sa.select(judgement).where(judgement.c.id == stored.id)).one())
    assert (kept.annotator_id, kept.state) == (ann.id, "valid")
    tombstone = store(lambda c: c.execute(sa.select(annotator).where(annotator.c.id == ann.id)).one())
    assert (tombstone.state, tombstone.email, tombstone.password_hash) == ("deleted", None, None)
    assert store(lambda c: accounts.find_session(c, NOW, session)) is None
    assert store(lambda c: tokens.find_token(c, NOW, token)) is None
    assert add(store, "Ann Secret", email="ann@secret.example").id != ann.id  # the name is free again
    assert not [one for one in store(entries) if "Secret" in repr(one)]
    with pytest.raises(NotFound):
        store(lambda c: people.delete_person(c, NOW, ann.id, actor=root.id))


def test_consent_comes_before_the_first_task_and_again_for_other_words(store):
    ann, judge = add(store, "Ann"), add(store, "Judge", "judge")
    first, second = ProjectConfig(consent="be told"), ProjectConfig(consent="be told", warning="violence")

    def start(c):
        publish.add_project(c, NOW, "p", first)
        for one in (ann, judge):
            people.join_project(c, "p", one.id)

    store(start)

    def claim(person):
        return store(lambda c: queue.claim(c, NOW, "p", person))

    with pytest.raises(ConsentNeeded):
        claim(ann)
    assert claim(judge) is None  # a program agrees to nothing
    with pytest.raises(Conflict):
        store(lambda c: people.accept_consent(c, NOW, "p", ann, second.consent_version))
    store(lambda c: people.accept_consent(c, NOW, "p", ann, first.consent_version))
    assert claim(ann) is None
    store(lambda c: publish.configure_project(c, "p", second))
    with pytest.raises(ConsentNeeded):
        claim(ann)
    noted = [one for one in store(entries) if one.action == "consent.accept"]
    assert [(one.actor, one.object, dict(one.detail)) for one in noted] == [
        ("Ann", "p", {"version": first.consent_version})
    ]
    with pytest.raises(NotFound):
        store(lambda c: people.accept_consent(c, NOW, "p", add_outside(c), second.consent_version))


def add_outside(connection):
    return people.add_person(connection, NOW, "Outside")


def test_projects_are_seen_by_their_members_and_by_admins(store, root):
    lead = add(store, "Lead", "lead")
    for id in ("mine", "theirs"):
        store(lambda c, id=id: publish.add_project(c, NOW, id, ProjectConfig()))
    store(lambda c: people.join_project(c, "mine", lead.id))
    store(lambda c: people.require_member(c, "mine", lead))
    store(lambda c: people.require_member(c, "theirs", root))
    for id, person in (("theirs", lead), ("nothing", lead), ("nothing", root)):
        with pytest.raises(NotFound):
            store(lambda c, id=id, person=person: people.require_member(c, id, person))


# --- audit -----------------------------------------------------------------------------------------------------------


def test_the_database_itself_refuses_to_change_the_audit(store):
    store(lambda c: audit(c, NOW, "a", "thing.made", "b"))
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            store(lambda c, statement=statement: c.execute(sa.text(statement)))
    assert [one.action for one in store(entries)] == ["thing.made"]


def test_the_audit_is_read_in_pages_and_by_beginnings_of_actions(store):
    def many(c):
        for number in range(250):
            audit(c, NOW, "a" if number % 2 else "b", "x.odd" if number % 2 else "y.even", str(number))

    store(many)
    first = store(entries)
    second = store(lambda c: entries(c, before=first[-1].id))
    third = store(lambda c: entries(c, before=second[-1].id))
    assert [int(one.object) for page in (first, second, third) for one in page] == list(range(249, -1, -1))
    assert {one.action for one in store(lambda c: entries(c, action="x."))} == {"x.odd"}
    assert store(lambda c: entries(c, action="%")) == []
    assert {one.actor for one in store(lambda c: entries(c, actor="b"))} == {"b"}


def test_every_change_of_a_person_is_noted_with_who_made_it(store, root):
    ann = add(store, "Ann")
    for change in (
        lambda c: people.change_role(c, NOW, ann.id, "lead", actor=root.id),
        lambda c: people.change_profile(c, NOW, ann.id, actor=root.id, skills=["maths"]),
        lambda c: people.disable_person(c, NOW, ann.id, actor=root.id),
        lambda c: people.enable_person(c, NOW, ann.id, actor=root.id),
        lambda c: people.delete_person(c, NOW, ann.id, actor=root.id),
    ):
        store(change)
    noted = [(one.actor, one.action, one.object) for one in reversed(store(entries))]
    expected = ["person.role", "person.profile", "person.disable", "person.enable", "person.delete"]
    assert noted == [("Root", action, ann.id) for action in expected]


# --- a project's YAML ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("kind: pairwise\noverlap: 0\n", ["line 2: overlap:"]),
        ("kind: pairwise\n\n# a note\ngold_shares: 0.1\n", ["line 4: gold_shares:"]),
        ("dwell:\n  least_s: -1\n", ["line 2: dwell.least_s:"]),
        ("form:\n- name: good\n  label: Good\n- name: Bad\n  label: Bad\n", ["line 4: form.1.name:"]),
        ("overlap: x\ngold_share: 2\n", ["line 1: overlap:", "line 2: gold_share:"]),
        ("cents:\n  pairwise: five\n", ["line 2: cents.pairwise:"]),
        ("kind: rules\n", ["line 1: rules"]),
        ("- kind\n", ["line 1: write keys and values"]),
        ("kind: pairwise\nform: [1, 2\n", ["line 3: not YAML"]),
        ("kind: [\n", ["line 2: not YAML"]),
        ("a: \x00", ["not YAML"]),
        ("!!python/object/apply:os.system ['true']", ["line 1: not YAML"]),
    ],
)
def test_what_is_wrong_with_a_project_is_named_by_line_and_key(text, places):
    with pytest.raises(Invalid) as refused:
        parse_config(text)
    lines = str(refused.value).splitlines()
    assert [line[: len(place)] for line, place in zip(lines, places, strict=True)] == places


def test_a_project_keeps_the_yaml_that_it_was_written_as(store):
    source = "# why two: the guidelines are new\noverlap: 2\n"
    store(lambda c: publish.add_project(c, NOW, "p", parse_config(source), source=source))
    assert store(lambda c: publish.project_source(c, "p")) == source
    store(lambda c: publish.configure_project(c, "p", ProjectConfig(overlap=3)))
    assert store(lambda c: publish.project_source(c, "p")) == "overlap: 3\n"
