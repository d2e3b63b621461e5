"""Sources of live answers: servers that know more or less, worker processes, scripts, and how they are named."""

import asyncio
import json
import sys

import httpx
import pytest

from prefloop.interfaces import InputError
from prefloop.records import Message
from prefloop.servers import NoAnswerError
from prefloop.web.answering import API_KEY_ENV, Launched, Scripted, Served, Wish, answerers_of
from prefloop.web.talking import names_in

ASKED = (Message(role="user", content="Hello"),)
WISH = Wish(temperature=0.7, max_new_tokens=12, seed=5)


def served(reply, *, model="m") -> tuple[Served, list[dict]]:
    """A server that answers with what `reply` makes of each request's body, and the bodies that it got."""
    bodies: list[dict] = []

    def handle(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content or b"{}"))
        return reply(bodies[-1], request)

    client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    return Served("http://policy.test/v1", model=model, client=client), bodies


def said(text="Hi.", **more) -> httpx.Response:
    choice = {"message": {"content": text}, "finish_reason": "stop", "index": 0} | more
    return httpx.Response(200, json={"choices": [choice]})


def test_a_server_is_asked_as_the_conversation_wishes():
    source, bodies = served(lambda body, request: said())
    answer = asyncio.run(source.answer(ASKED, WISH))
    assert (answer.text, answer.finish_reason) == ("Hi.", "stop")
    (body,) = bodies
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert {"temperature": 0.7, "max_tokens": 12, "seed": 5, "model": "m", "n": 1}.items() <= body.items()


def test_token_ids_and_log_probabilities_are_kept_where_a_server_gives_them():
    logprobs = {"content": [{"token": "H", "logprob": -0.5}, {"token": "i", "logprob": -1}]}
    source, _ = served(lambda body, request: said(logprobs=logprobs, token_ids=[7, 8]))
    answer = asyncio.run(source.answer(ASKED, WISH))
    assert (answer.token_ids, answer.token_logps) == ((7, 8), (-0.5, -1.0))


def test_log_probabilities_that_do_not_fit_the_tokens_are_left_out():
    logprobs = {"content": [{"token": "Hi", "logprob": -0.5}]}
    source, _ = served(lambda body, request: said(logprobs=logprobs, token_ids=[7, 8]))
    answer = asyncio.run(source.answer(ASKED, WISH))
    assert (answer.token_ids, answer.token_logps) == ((7, 8), None)


def test_a_server_that_refuses_unknown_keys_is_asked_without_them_from_then_on():
    def reply(body, request):
        return httpx.Response(400, text="unknown key") if "return_token_ids" in body else said()

    source, bodies = served(reply)
    for _ in range(2):
        assert asyncio.run(source._try(ASKED, WISH)).text == "Hi."
    assert ["return_token_ids" in body for body in bodies] == [True, False, False]


def test_a_server_that_is_busy_once_is_asked_again():
    replies = [httpx.Response(503, headers={"Retry-After": "0"}), said()]
    source, bodies = served(lambda body, request: replies[len(bodies) - 1])
    assert asyncio.run(source.answer(ASKED, WISH)).text == "Hi."


@pytest.mark.parametrize(
    "reply", [{"choices": []}, {"choices": [{"message": {"content": " "}}]}, ["nothing"]]
)
def test_a_reply_without_an_answer_is_none(reply, monkeypatch):
    monkeypatch.setattr("prefloop.web.answering.PAUSE_S", 0)
    source, bodies = served(lambda body, request: httpx.Response(200, json=reply))
    with pytest.raises(NoAnswerError):
        asyncio.run(source.answer(ASKED, WISH))
    assert len(bodies) == 2


def test_the_only_model_of_a_server_needs_no_name():
    def reply(body, request):
        return httpx.Response(200, json={"data": [{"id": "mine"}]}) if request.method == "GET" else said()

    source, bodies = served(reply, model="")
    asyncio.run(source.answer(ASKED, WISH))
    assert bodies[1]["model"] == "mine"


def test_the_key_of_a_server_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv(API_KEY_ENV, "sk-secret")
    sent = []

    def reply(body, request):
        sent.append(request.headers["Authorization"])
        return said("my key is sk-secret")

    source, _ = served(reply)
    assert asyncio.run(source.answer(ASKED, WISH)).text == "my key is ***"
    assert sent == ["Bearer sk-secret"]


def test_an_address_is_kept_without_its_credentials():
    (source,) = answerers_of(["a=http://user:word@host:8000/v1#m"]).values()
    assert source.uri == "http://host:8000/v1#m"


def test_a_worker_answers_line_by_line_and_is_started_again_after_it_died():
    script = (
        "import json, sys, os\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['seed'] == 13: os._exit(3)\n"
        "    print(json.dumps({'text': f\"{os.getpid()} {asked['messages'][0]['content']}\", 'finish_reason': 'stop', "
        "'token_ids': [1], 'token_logps': [-1.5]}), flush=True)\n"
    )

    async def talk():
        source = Launched("folder", command=(sys.executable, "-c", script))
        first, second = await asyncio.gather(source.answer(ASKED, WISH), source.answer(ASKED, WISH))
        with pytest.raises(NoAnswerError, match="ended with code 3"):
            await source.answer(ASKED, Wish(1.0, 1, 13))
        third = await source.answer(ASKED, WISH)
        await source.close()
        return first, second, third

    first, second, third = asyncio.run(talk())
    assert first == second
    assert first.text.endswith(" Hello")
    assert (first.token_ids, first.token_logps) == ((1,), (-1.5,))
    assert third.text != first.text  # another process


def test_a_policy_folder_answers_in_a_process_of_its_own(tiny_model):
    async def talk():
        source = Launched(str(tiny_model))
        answers = [await source.answer(ASKED, Wish(1.0, 8, seed)) for seed in (1, 1, 2)]
        await source.close()
        return answers

    one, again, other = asyncio.run(talk())
    assert one == again
    assert one.token_ids != other.token_ids
    assert one.token_ids is not None
    assert one.token_logps is not None
    assert 1 <= len(one.token_ids) == len(one.token_logps) <= 8
    assert all(logp <= 0 for logp in one.token_logps)


def test_a_script_says_the_same_for_the_same_seed():
    async def talk():
        return [await Scripted("a").answer(ASKED, Wish(1.0, 100, seed)) for seed in (1, 1, 2, 3)]

    one, again, *others = asyncio.run(talk())
    assert one == again
    assert any(other != one for other in others)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["scripted"], "write NAME=URL"),
        (["a=scripted", "a=scripted"], "a is there already"),
        (["a=/no/such/folder"], "no folder"),
        (["a=scripted?speed=9"], "has no speed"),
        (["a=scripted?latency_s=slow"], "are numbers"),
        (["a b=scripted"], "write NAME=URL"),
        (["a=http://"], "--policy"),
    ],
)
def test_wrong_policies_are_named(values, message):
    with pytest.raises(InputError, match=message):
        answerers_of(values)


def test_policies_are_made_of_what_is_written(tmp_path):
    found = answerers_of(["a=scripted?latency_s=2&fail_first=1", f"b={tmp_path}", "c=https://host/v1"])
    assert [type(one) for one in found.values()] == [Scripted, Launched, Served]
    assert found["a"] == Scripted("a", 2.0, 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I am ChatGPT, by OpenAI.", ("OpenAI", "ChatGPT")),
        ("我是通义千问。", ("通义千问",)),
        ("as gpt-4 I", ("GPT-4",)),
        ("a claudette and an openair", ()),
    ],
)
def test_names_of_vendors_are_found_as_whole_words(text, found):
    assert names_in(text, ("OpenAI", "ChatGPT", "GPT-4", "Claude", "通义千问")) == found
