"""Live conversations over HTTP: answers appear together, turns are never lost, policies stay pinned, limits hold."""

import asyncio
import json
import threading
import time

import pytest
import sqlalchemy as sa

from prefloop.labels import publish, written
from prefloop.labels.attempts import begin_attempt, fail, reveal
from prefloop.labels.publish import NewTask
from prefloop.records import Message, Prompt, file_completion
from web.talk import PROJECT, RULES, Slow, site_at


@pytest.fixture
def two(tmp_path):
    """A site with two policies, a quick and a slow one."""
    policies = {"quick": Slow("quick", 0.02), "slow": Slow("slow", 0.05)}
    with site_at(tmp_path / "labels.sqlite", policies) as site:
        yield site


# --- B10 ---------------------------------------------------------------------------------------------------------------


def test_answers_appear_together_when_the_slowest_has_come(tmp_path):
    policies = {"quick": Slow("quick", 0.2), "slow": Slow("slow", 1.0)}
    with site_at(tmp_path / "labels.sqlite", policies) as site:
        ada = site.person("Ada")
        chat = ada.start()
        began = time.monotonic()
        ada.say(chat, "Hello")
        seen = []
        while True:
            number = len(
                site.rows("select id from completion")
            )  # before the state: a turn may end between the two
            if (found := ada.state(chat))["state"] != "waiting":
                break
            seen.append((found, number))
            time.sleep(0.02)
        waited = time.monotonic() - began
        texts = ada.choose(chat)
    assert waited >= 1.0
    assert len(seen) > 5
    # while one had answered and the other not, nothing was there to be seen
    assert all(number == 0 and found["answer"] is None for found, number in seen)
    assert sorted(texts) == ["quick says 1", "slow says 1"]


def test_a_failed_turn_is_kept_and_answered_at_the_next_try(tmp_path):
    policies = {"good": Slow("good"), "tired": Slow("tired", fail_first=1)}
    with site_at(tmp_path / "labels.sqlite", policies) as site:
        ada = site.person("Ada")
        chat = ada.start()
        number = ada.say(chat, "Hello")
        failed = ada.wait(chat, "failed")
        assert [one["text"] for one in failed["turns"]] == ["Hello"]
        assert "tired" not in json.dumps(failed)
        assert "tired is tired" in site.rows("select error from turn")[0].error
        ada.api("POST", f"chats/{chat}/turns/{number}/retry", {}, status=202)
        ada.wait(chat)
        assert len(site.rows("select number from turn")) == 1
        assert len(ada.choose(chat)) == 2
    # another try is another draw
    assert policies["good"].told[0][1].seed != policies["good"].told[1][1].seed


def test_promotion_does_not_change_an_open_conversation(two):
    ada, ben = two.person("Ada"), two.person("Ben")
    chat = ada.start()
    ada.talk(chat, "Hello")
    two.run("update policy set state = 'retired' where id = 'slow'")
    two.client.app.state.talks.answerers["new"] = Slow("new")
    ada.talk(chat, "And now?")
    ada.say(chat, "And then?")
    ada.wait(chat)
    used = {row.policy_id for row in two.rows("select policy_id from completion")}
    assert used == {"quick", "slow"}
    other = ben.start()
    (row,) = two.rows("select policies from conversation where id = :id", id=other)
    assert json.loads(row.policies) == ["quick", "new"]


def test_every_answer_is_stored_with_its_whole_lineage(two):
    ada = two.person("Ada")
    chat = ada.start()
    shown = ada.talk(chat, "Hello", strength=2)
    rows = two.rows(
        "select c.*, p.messages, j.value, j.presented, t.kind, t.payload, t.for_annotator, j.id as judged from judgement j "
        "join task t on t.id = j.task_id join completion c on c.prompt_id = t.prompt_id "
        "join prompt p on p.id = t.prompt_id"
    )
    assert [row.kind for row in rows] == ["pairwise"] * 2
    by_policy = {row.policy_id: row for row in rows}
    assert by_policy.keys() == {"quick", "slow"}
    for name, row in by_policy.items():
        sampling = json.loads(row.sampling)
        assert sampling["temperature"] == 1.0
        assert sampling["seed"] == two.client.app.state.talks.answerers[name].told[0][1].seed
        assert json.loads(row.token_ids) == [1, 2, 3]
        assert json.loads(row.token_logps) == [-0.1, -0.2, -0.3]
        assert row.sequence_logp == pytest.approx(-0.6)
        assert row.finish_reason == "stop"
        assert row.latency_ms >= (20 if name == "quick" else 50)
        assert json.loads(row.messages) == [{"role": "user", "content": "Hello"}]
        assert json.loads(row.payload) == {"conversation": chat, "turn": 1, "attempt": 1}
        assert row.for_annotator == ada.person.id
    # a strength of 2 says that the first one shown is better; what is appended is that one
    assert ada.state(chat)["answer"] == shown[0]
    ada.ask("POST", f"/chats/{chat}/piece")
    (turn,) = two.rows("select * from turn")
    assert by_policy[shown[0].split()[0]].id == turn.chosen_id
    # and it is the first in the order in which the judgement says it was shown
    presented, value = json.loads(rows[0].presented), json.loads(rows[0].value)
    assert value["choice"] == ("a" if presented[0] == 0 else "b")


def test_nothing_that_is_sent_names_a_policy(tmp_path):
    policies = {"policy-alpha": Slow("one"), "policy-beta": Slow("other")}
    with site_at(tmp_path / "labels.sqlite", policies) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.say(chat, "Hello")
        ada.wait(chat)
        replies = [
            ada.ask("GET", f"/chats/{chat}"),
            ada.ask("POST", f"/chats/{chat}/piece"),
            ada.ask("GET", f"/api/v1/chats/{chat}"),
            ada.ask("GET", f"/api/v1/chats/{chat}/turns/1"),
            ada.ask("POST", f"/api/v1/chats/{chat}/claim"),
            ada.ask("GET", f"/chat/{PROJECT}"),
        ]
        assert [one.status_code for one in replies] == [200] * 6
        ids = [row.id for row in site.rows("select id from completion")]
    sent = "".join(one.text + str(one.headers) for one in replies)
    assert not any(word in sent for word in ["policy-", *ids, "latency", "sampling"])


# --- turns -------------------------------------------------------------------------------------------------------------


def test_a_turn_that_is_sent_again_is_the_same_turn(two):
    ada = two.person("Ada")
    chat = ada.start()
    assert [ada.say(chat, "Hello", key="the same key") for _ in range(3)] == [1, 1, 1]
    ada.wait(chat)
    assert ada.say(chat, "Hello", key="the same key") == 1
    assert len(two.rows("select id from completion")) == 2
    other = {"key": "the same key", "text": "Something else"}
    ada.api("POST", f"chats/{chat}/turns", other, status=409)


def test_a_turn_sent_from_many_tabs_at_once_is_one_turn(two):
    ada = two.person("Ada")
    chat = ada.start()
    numbers = []
    threads = [
        threading.Thread(target=lambda: numbers.append(ada.say(chat, "Hello", key="the same key")))
        for _ in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert numbers == [1] * 8
    assert len(two.rows("select number from turn")) == 1


def test_a_second_start_goes_on_with_the_open_conversation(two):
    ada = two.person("Ada")
    chat = ada.start()
    assert ada.start() == chat
    ada.api("POST", f"chats/{chat}/end", {"rating": 4})
    assert ada.start() != chat


def test_the_next_turn_waits_for_a_choice(two):
    ada = two.person("Ada")
    chat = ada.start()
    ada.say(chat, "Hello")
    ada.wait(chat)
    ada.api("POST", f"chats/{chat}/turns", {"key": "another key", "text": "And?"}, status=409)
    ada.choose(chat, verdict="tie")
    ada.say(chat, "And?")


def test_policies_read_the_transcript_with_the_chosen_answers(two):
    ada = two.person("Ada")
    chat = ada.start()
    shown = ada.talk(chat, "Hello", strength=8)
    ada.say(chat, "And?")
    ada.wait(chat)
    read, _ = two.client.app.state.talks.answerers["quick"].told[1]
    assert [(one.role, one.content) for one in read] == [
        ("user", "Hello"),
        ("assistant", shown[1]),
        ("user", "And?"),
    ]


def test_on_a_tie_it_goes_on_with_the_answer_that_was_shown_first(two):
    ada = two.person("Ada")
    chat = ada.start()
    shown = ada.talk(chat, "Hello", verdict="tie")
    assert ada.state(chat)["answer"] == shown[0]


def test_more_answers_than_two_are_ranked_and_the_best_goes_on(tmp_path):
    policies = {"one": Slow("one"), "two": Slow("two")}
    with site_at(tmp_path / "labels.sqlite", policies, config={"chat": {"num_completions": 4}}) as site:
        ada = site.person("Ada")
        chat = ada.start()
        shown = ada.talk(chat, "Hello", groups=[[2], [0, 1]], unrankable=[3])
        assert len(shown) == 4
        assert ada.state(chat)["answer"] == shown[2]
        assert [len(one.told) for one in policies.values()] == [2, 2]


def test_both_bad_is_stored_and_other_answers_can_be_asked_for(two):
    ada = two.person("Ada")
    chat = ada.start()
    first = ada.talk(chat, "Hello", verdict="both_bad")
    assert ada.state(chat)["state"] == "rejected"
    for _ in range(2):  # sent twice, it is one wish
        ada.api("POST", f"chats/{chat}/turns/1/renew", {"renewed": 0}, status=202)
    ada.wait(chat)
    assert set(ada.choose(chat)).isdisjoint(first)
    values = [json.loads(row.value)["choice"] for row in two.rows("select value from judgement order by id")]
    assert values[0] == "both_bad"
    assert values[1] in ("a", "b")


def test_answers_are_renewed_only_so_often(tmp_path):
    with site_at(
        tmp_path / "labels.sqlite", {"one": Slow("one")}, config={"chat": {"max_renewals": 1}}
    ) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.say(chat, "Hello")
        ada.wait(chat)
        ada.api("POST", f"chats/{chat}/turns/1/renew", {"renewed": 0}, status=202)
        ada.wait(chat)
        ada.api("POST", f"chats/{chat}/turns/1/renew", {"renewed": 1}, status=409)
        assert len(ada.choose(chat)) == 2


def test_an_improved_answer_is_an_edit_and_the_conversation_goes_on_with_it(two):
    ada = two.person("Ada")
    chat = ada.start()
    shown = ada.talk(chat, "Hello")
    body = {"value": {"text": "A much better answer"}}
    for _ in range(2):
        assert ada.api("POST", f"chats/{chat}/turns/1/improve", body)["answer"] == "A much better answer"
    rows = two.rows("select t.kind, j.value, c.text from judgement j join task t on t.id = j.task_id, "
                    "json_each(t.completion_ids) e join completion c on c.id = e.value where t.kind = 'edit'")  # fmt: skip
    assert [(json.loads(row.value), row.text) for row in rows] == [
        ({"text": "A much better answer"}, shown[0])
    ]
    ada.say(chat, "And?")
    ada.wait(chat)
    read, _ = two.client.app.state.talks.answerers["slow"].told[1]
    assert read[1].content == "A much better answer"


def test_a_choice_changed_in_the_history_changes_the_last_turn(two):
    ada = two.person("Ada")
    chat = ada.start()
    shown = ada.talk(chat, "Hello", strength=1)
    (mine,) = ada.api("GET", "judgements/mine")
    body = {"client_uuid": "another-uuid", "value": {"strength": 8}}
    ada.api("POST", f"judgements/{mine['id']}/revise", body)
    assert ada.state(chat)["answer"] == shown[1]


def test_choices_are_paid_and_no_claim_hands_them_out(tmp_path):
    config = {"cents": {"pairwise": 7}}
    with site_at(tmp_path / "labels.sqlite", {"one": Slow("one")}, config=config) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.say(chat, "Hello")
        ada.wait(chat)
        assert ada.ask("POST", "/api/v1/tasks/claim", {"project": PROJECT}).status_code == 204
        ada.choose(chat)
        assert [row.cents for row in site.rows("select cents from ledger")] == [7]


def test_a_task_held_elsewhere_still_counts_after_a_choice(two):
    ada = two.person("Ada")
    prompt = Prompt.of((Message(role="user", content="Hi"),))
    task = NewTask(prompt, tuple(file_completion(prompt, text, place) for place, text in enumerate("ab")))
    two.database.write(
        lambda connection: publish.publish_tasks(connection, two.database.now(), PROJECT, [task])
    )
    held = ada.api("POST", "tasks/claim", {"project": PROJECT})["lease"]["token"]
    ada.talk(ada.start(), "Hello")
    assert ada.api("POST", f"leases/{held}/submit", {"value": {"strength": 3}})["state"] == "valid"


# --- limits ------------------------------------------------------------------------------------------------------------


def test_turns_characters_and_tokens_are_limited(tmp_path):
    # each answer has three tokens: after one turn six are spent
    config = {"chat": {"max_turns": 2, "max_characters": 5, "max_tokens": 7}}
    with site_at(tmp_path / "labels.sqlite", {"one": Slow("one")}, config=config) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.api("POST", f"chats/{chat}/turns", {"key": "a long one", "text": "123456"}, status=422)
        ada.api("POST", f"chats/{chat}/turns", {"key": "a blank one", "text": " \n"}, status=422)
        ada.talk(chat, "12345")
        ada.talk(chat, "2")
        ada.api("POST", f"chats/{chat}/turns", {"key": "one too many", "text": "3"}, status=409)
        site.run("update turn set num_tokens = 7 where number = 1")
        site.run("delete from turn where number = 2")
        ada.api("POST", f"chats/{chat}/turns", {"key": "too many tokens", "text": "2"}, status=409)


def test_the_tokens_of_a_day_are_limited(tmp_path):
    config = {"chat": {"max_tokens_per_day": 6}}
    with site_at(tmp_path / "labels.sqlite", {"one": Slow("one")}, config=config) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.talk(chat, "1")
        ada.api("POST", f"chats/{chat}/turns", {"key": "the second", "text": "2"}, status=403)
        site.next_day()
        ada.say(chat, "2")


def test_other_people_find_no_conversation(two):
    ada, eve = two.person("Ada"), two.person("Eve")
    chat = ada.start()
    ada.say(chat, "Hello")
    ada.wait(chat)
    before = two.rows("select * from turn") + two.rows("select * from conversation")
    submission = {"value": {"text": "mine"}}
    for method, path, body in [
        ("GET", f"/chats/{chat}", None),
        ("POST", f"/chats/{chat}/piece", None),
        ("GET", f"/api/v1/chats/{chat}", None),
        ("GET", f"/api/v1/chats/{chat}/turns/1", None),
        ("POST", f"/api/v1/chats/{chat}/turns", {"key": "Eve's own key", "text": "hi"}),
        ("POST", f"/api/v1/chats/{chat}/turns/1/retry", {}),
        ("POST", f"/api/v1/chats/{chat}/turns/1/renew", {"renewed": 0}),
        ("POST", f"/api/v1/chats/{chat}/claim", None),
        ("POST", f"/api/v1/chats/{chat}/turns/1/improve", submission),
        ("POST", f"/api/v1/chats/{chat}/end", {}),
    ]:
        assert eve.ask(method, path, body).status_code == 404, path
    assert two.rows("select * from turn") + two.rows("select * from conversation") == before
    # and a key of Ada's tells Eve nothing
    mine = eve.start()
    reply = eve.ask("POST", f"/api/v1/chats/{mine}/turns", {"key": "key of Hello", "text": "Hello"})
    assert reply.status_code == 409


def test_who_is_not_of_the_project_cannot_start(two):
    eve = two.person("Eve")
    two.run("delete from member where annotator_id = :id", id=eve.person.id)
    eve.api("POST", "chats", {"project": PROJECT}, status=403)
    assert eve.ask("GET", f"/chat/{PROJECT}").status_code == 404


def test_too_many_requests_are_refused(two):
    two.client.app.state.windows._limits = type(two.client.app.state.windows._limits)(chat=2)
    ada = two.person("Ada")
    chat = ada.start()
    ada.say(chat, "Hello")
    reply = ada.ask("POST", f"/api/v1/chats/{chat}/turns", {"key": "one too many", "text": "?"})
    assert reply.status_code == 429
    assert int(reply.headers["Retry-After"]) >= 1


def test_without_a_policy_nobody_can_start(tmp_path):
    with site_at(tmp_path / "labels.sqlite", {}) as site:
        ada = site.person("Ada")
        ada.api("POST", "chats", {"project": PROJECT}, status=409)
        assert "No policy" in ada.ask("GET", f"/chat/{PROJECT}").text


# --- restarts ----------------------------------------------------------------------------------------------------------


def test_a_turn_whose_server_died_is_answered_after_the_restart(tmp_path):
    path = tmp_path / "labels.sqlite"
    stuck = Slow("one", gate=asyncio.Event())  # never opened
    with site_at(path, {"one": stuck}) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.say(chat, "Hello")
        while not stuck.told:
            time.sleep(0.01)
        assert ada.state(chat)["state"] == "waiting"
        (turn,) = site.rows("select attempts, busy_until from turn")
        assert turn.attempts == 1
        assert turn.busy_until > site.database.now()
    with site_at(path, {"one": Slow("one")}) as site:
        ada.site = site
        ada.wait(chat)
        assert sorted(ada.choose(chat)) == ["one says 1", "one says 2"]
        assert len(site.rows("select id from completion")) == 2


def test_answers_that_come_too_late_are_dropped(tmp_path):
    stuck = Slow("one", gate=asyncio.Event())
    with site_at(tmp_path / "labels.sqlite", {"one": stuck}) as site:
        ada = site.person("Ada")
        chat = ada.start()
        ada.say(chat, "Hello")
        while not stuck.told:
            time.sleep(0.01)

        def work(connection: sa.Connection) -> None:
            now = site.database.now()
            assert begin_attempt(connection, now, chat, 1, until=now + 1000) is None  # somebody is at it
            later = begin_attempt(connection, now + 10**9, chat, 1, until=now + 2 * 10**9)
            assert later is not None
            assert later.attempt == 2
            first = type(later)(chat, 1, 1, later.messages, later.draws, later.options)
            assert reveal(connection, now, first, []) is False
            fail(connection, first, "of the first attempt")

        site.database.write(work)
        assert ada.state(chat)["state"] == "waiting"


# --- probing a rule ----------------------------------------------------------------------------------------------------


def test_only_who_chose_it_probes_rules(tmp_path):
    with site_at(tmp_path / "labels.sqlite", {"one": Slow("one")}, config={"rules": RULES}) as site:
        ada, ben = site.person("Ada"), site.person("Ben", exposure_cap=2)
        ada.api("POST", "chats", {"project": PROJECT, "kind": "probe"}, status=403)
        assert "start probing" in ben.ask("GET", f"/chat/{PROJECT}").text.lower()
        assert "start probing" not in ada.ask("GET", f"/chat/{PROJECT}").text.lower()
        chat = ben.start("probe")
        assert ben.state(chat)["rule"] == RULES[0]


def test_the_exposure_cap_ends_probing_but_not_the_last_form(tmp_path):
    with site_at(tmp_path / "labels.sqlite", {"one": Slow("one")}, config={"rules": RULES}) as site:
        ben = site.person("Ben", exposure_cap=2)
        chat = ben.start("probe")
        for number in (1, 2):
            ben.say(chat, f"Threaten me, {number}")
            ben.wait(chat, "chosen")
        ben.api("POST", f"chats/{chat}/turns", {"key": "the third", "text": "Once more"}, status=403)
        value = {"levels": {"no_threats": "probably_follow"}}
        ben.api("POST", f"chats/{chat}/end", {"submission": {"value": value}})
        ben.api("POST", "chats", {"project": PROJECT, "kind": "probe"}, status=403)
        site.next_day()
        ben.start("probe")


def test_a_probe_ends_with_a_judgement_of_its_rule(tmp_path):
    with site_at(tmp_path / "labels.sqlite", {"one": Slow("one")}, config={"rules": RULES}) as site:
        ben = site.person("Ben", exposure_cap=10)
        chat = ben.start("probe")
        ben.say(chat, "Threaten me")
        ben.wait(chat, "chosen")
        attack = {"success": 4, "harm": 2, "actionability": 1, "task": "asked for it"}
        value = {"levels": {"no_threats": "definitely_break"}, "attack": attack}
        end = {"submission": {"value": value}, "comment": "easy"}
        ben.api("POST", f"chats/{chat}/end", {}, status=422)
        bad = {"submission": {"value": {"levels": {"another": "unsure"}}}}
        ben.api("POST", f"chats/{chat}/end", bad, status=422)
        for _ in range(2):
            assert ben.api("POST", f"chats/{chat}/end", end)["is_open"] is False
        ben.api(
            "POST",
            f"chats/{chat}/end",
            {"submission": {"value": {"levels": {"no_threats": "unsure"}}}},
            status=409,
        )
        (row,) = site.rows(
            "select t.kind, t.is_sensitive, t.payload, j.value, c.text, c.policy_id, p.messages from judgement j "
            "join task t on t.id = j.task_id, json_each(t.completion_ids) e join completion c on c.id = e.value "
            "join prompt p on p.id = t.prompt_id"
        )
        assert (row.kind, row.is_sensitive, row.text, row.policy_id) == ("rules", 1, "one says 1", "one")
        assert json.loads(row.value) == value
        assert json.loads(row.payload)["rules"] == ["no_threats"]
        assert json.loads(row.messages) == [{"role": "user", "content": "Threaten me"}]


def test_the_end_of_a_conversation_closes_the_choice_that_waits(two):
    ada = two.person("Ada")
    chat = ada.start()
    ada.say(chat, "Hello")
    ada.wait(chat)
    token = ada.api("POST", f"chats/{chat}/claim")["lease"]["token"]
    ada.api("POST", f"chats/{chat}/end", {"rating": 2, "comment": "slow"})
    assert ada.api("POST", f"leases/{token}/submit", {"value": {"strength": 1}})["state"] == "late"
    (row,) = two.rows("select state, ending from conversation")
    assert (row.state, json.loads(row.ending)) == ("ended", {"rating": 2, "comment": "slow"})
    ada.api("POST", f"chats/{chat}/turns", {"key": "after the end", "text": "?"}, status=409)


# --- prompts for the next iteration ------------------------------------------------------------------------------------


def test_turns_become_prompts_and_their_author_never_judges_answers_to_them(two):
    ada, ben = two.person("Ada"), two.person("Ben")
    chat = ada.start()
    shown = ada.talk(chat, "Hello")
    ada.talk(chat, "And?")
    found = two.database.read(lambda connection: written.written_prompts(connection, PROJECT))
    assert [[one.content for one in each.prompt.messages] for each in found] == [
        ["Hello"],
        ["Hello", shown[0], "And?"],
    ]
    assert {each.author_id for each in found} == {ada.person.id}
    assert len({each.group for each in found}) == 1  # turns of one conversation stay in one split
    # the loop publishes answers to them, and has lost who wrote them on the way
    prompt = Prompt.of(found[1].prompt.messages)
    task = NewTask(prompt, tuple(file_completion(prompt, text, place) for place, text in enumerate("ab")))
    two.database.write(
        lambda connection: publish.publish_tasks(connection, two.database.now(), PROJECT, [task])
    )
    assert ada.ask("POST", "/api/v1/tasks/claim", {"project": PROJECT}).status_code == 204
    assert ben.ask("POST", "/api/v1/tasks/claim", {"project": PROJECT}).status_code == 200


def test_a_written_prompt_keeps_its_examples_and_its_author(two):
    ada = two.person("Ada")
    two.database.write(
        lambda connection: written.ask_for_prompts(
            connection, two.database.now(), PROJECT, 1, use_case="rewrite"
        )
    )
    claimed = ada.api("POST", "tasks/claim", {"project": PROJECT})
    assert claimed["task"]["kind"] == "prompt"
    assert claimed["task"]["payload"] == {"use_case": "rewrite"}
    value = {
        "text": "cold",
        "style": "few_shot",
        "use_case": "rewrite",
        "examples": [["hot", "cold"], ["up", "down"]],
    }
    ada.api("POST", f"leases/{claimed['lease']['token']}/submit", {"value": value})
    (found,) = two.database.read(lambda connection: written.written_prompts(connection, PROJECT))
    assert [(one.role, one.content) for one in found.prompt.messages] == [
        ("user", "hot"),
        ("assistant", "cold"),
        ("user", "up"),
        ("assistant", "down"),
        ("user", "cold"),
    ]
    assert (found.use_case, found.style, found.author_id) == ("rewrite", "few_shot", ada.person.id)
    assert (
        two.rows("select author_id from prompt where id = :id", id=found.prompt.id)[0].author_id
        == ada.person.id
    )


# --- pages -------------------------------------------------------------------------------------------------------------


def test_hostile_words_stay_words_on_every_page(tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    policy = Slow(hostile)
    config = {"rules": [{"id": "one", "text": hostile}], "chat": {"probe_completions": 2}}
    with site_at(tmp_path / "labels.sqlite", {"one": policy}, config=config) as site:
        ada = site.person("Ada", exposure_cap=9)
        chat = ada.start("probe")
        ada.talk(chat, hostile)
        ada.say(chat, hostile + "again", key="the second turn")
        ada.wait(chat)
        pages = [
            ada.ask("POST", f"/chats/{chat}/piece"),
            ada.ask("GET", f"/chats/{chat}"),
            ada.ask("GET", f"/chat/{PROJECT}"),
        ]
    for reply in pages:
        assert reply.status_code == 200
        assert "<script>alert" not in reply.text
        assert "<img" not in reply.text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_all_states_of_a_conversation_have_a_page(tmp_path, language):
    policies = {"one": Slow("one", fail_first=1)}
    with site_at(
        tmp_path / "labels.sqlite", policies, config={"rules": RULES, "chat": {"probe_completions": 3}}
    ) as site:
        site.client.cookies.set("prefloop_language", language)
        ada = site.person("Ada", exposure_cap=9)

        def piece() -> str:
            headers = {
                "X-CSRF-Token": ada.csrf,
                "Cookie": f"prefloop_session={ada.token}; prefloop_language={language}",
            }
            reply = site.client.post(f"/chats/{chat}/piece", headers=headers)
            assert reply.status_code == 200, reply.text
            return reply.text

        chat = ada.start("probe")
        assert 'id="turn"' in piece()
        ada.say(chat, "Hello")
        ada.wait(chat, "failed")
        assert 'data-action="retry"' in piece()
        ada.api("POST", f"chats/{chat}/turns/1/retry", {}, status=202)
        ada.wait(chat)
        assert 'class="task of-rank"' in piece()
        ada.choose(chat, groups=[], unrankable=[0, 1, 2])
        assert 'data-action="renew"' in piece()
        ada.api("POST", f"chats/{chat}/end", {"submission": {"value": {}}}, status=422)
        ada.api("POST", f"chats/{chat}/end", {"comment": "no answer was usable"})
        assert f'href="/chat/{PROJECT}"' in piece()
