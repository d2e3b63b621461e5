"""Sampling from real HTTP servers on this machine, which are killed, hang and lie."""

import contextlib
import itertools
import json
import signal
import threading
import time
from concurrent.futures import CancelledError

import pytest
from fake_server import invented

from prefloop import tales
from prefloop.config import GenerateSection, RemoteEngine
from prefloop.generate.choose import policy_generator
from prefloop.interfaces import InputError, Unavailable
from prefloop.modeling import load_codec
from prefloop.records import Message, Prompt

KEY = "sk-very-secret-0123456789"
PROMPTS = tales.prompts()[:40]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("POOL_KEY", KEY)


@pytest.fixture
def sampling(tiny_model, runtime):
    """A generator of some servers."""

    def sampling(servers, options=None, **engine):
        fields = {"api_key_env": "POOL_KEY", "timeout_s": 20.0, "patience_s": 0.5, "concurrency": 4} | engine
        section = RemoteEngine(kind="remote", urls=[one.url for one in servers], **fields)
        shape = GenerateSection(**({"num_completions": 3, "max_new_tokens": 12} | (options or {})))
        return policy_generator(
            tiny_model, section, shape, seed=0, version=0, runtime=runtime, dtype="float32"
        )

    return sampling


def rows(groups) -> list[str]:
    return [one.model_dump_json() for one in groups]


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# --- what is asked and what comes back ---


def test_a_request_says_all_that_sampling_follows_from(fake_server, sampling, tiny_model):
    server = fake_server()
    options = {
        "num_completions": 5,
        "temperatures": [{"count": 3, "temperature": 1.0}, {"count": 2, "temperature": 0.5}],
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "stop": ["The end"],
        "stop_tokens": ["<|user|>"],
    }
    codec = load_codec(tiny_model)
    with sampling([server], options) as generator:
        (group,) = generator.generate(PROMPTS[:1])
    one, other = sorted(server.asked, key=lambda body: -body["temperature"])
    assert (one["n"], other["n"], one["temperature"], other["temperature"]) == (3, 2, 1.0, 0.5)
    assert one["prompt"] == codec.prompt_ids(PROMPTS[0].messages)
    shaped = {
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "stop": ["The end"],
        "max_tokens": 12,
    }
    exact = {
        "include_stop_str_in_output": True,
        "return_token_ids": True,
        "add_special_tokens": False,
        "logprobs": 0,
    }
    assert {name: one[name] for name in shaped | exact} == shaped | exact
    assert one["stop_token_ids"] == sorted({codec.terminator_id, codec.token_id("<|user|>")})
    assert one["seed"] != other["seed"]
    assert one["model"] == "policy"
    assert [c.sampling.temperature for c in group.completions] == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert server.seen["headers"] == [f"Bearer {KEY}"] * 2


def test_tokens_terminator_and_log_probabilities_come_back_as_they_were_drawn(
    fake_server, sampling, tiny_model
):
    server = fake_server()
    terminator = load_codec(tiny_model).terminator_id
    with sampling([server]) as generator:
        groups = list(generator.generate(PROMPTS))
    body = next(
        one for one in server.asked if one["prompt"] == load_codec(tiny_model).prompt_ids(PROMPTS[7].messages)
    )
    for index, completion in enumerate(groups[7].completions):
        tokens, logps = invented(body, index)
        assert completion.token_ids == tuple(tokens)
        assert completion.token_logps == pytest.approx(logps, abs=1e-6)
        assert completion.sampled_logps is None
    ends = {
        (one.finish_reason, one.token_ids[-1] == terminator) for group in groups for one in group.completions
    }
    assert ends == {("stop", True), ("length", False)}
    assert all(len(c.token_ids) == 12 for g in groups for c in g.completions if c.finish_reason == "length")


def test_greedy_completions_are_asked_for_once(fake_server, sampling):
    server = fake_server()
    with sampling([server], {"temperature": 0.0}) as generator:
        (group,) = generator.generate(PROMPTS[:1])
    assert [one["n"] for one in server.asked] == [1]
    assert len({one.token_ids for one in group.completions}) == 1
    assert len({one.id for one in group.completions}) == 3


def test_a_prompt_that_is_too_long_is_not_sent(fake_server, sampling):
    server = fake_server()
    long = Prompt.of((Message(role="user", content="Tell a tale of Ada the fox. " * 300),))
    with sampling([server]) as generator:
        groups = list(generator.generate([PROMPTS[0], long, PROMPTS[1]]))
    assert [len(one.completions) for one in groups] == [3, 0, 3]
    assert len(server.asked) == 2


def test_chat_sends_messages_and_takes_text(fake_server, sampling):
    server = fake_server()
    with sampling([server], {"top_k": 5}, api="chat") as generator:
        groups = list(generator.generate(PROMPTS[:5]))
    body = server.asked[0]
    assert body["messages"][-1]["role"] == "user"
    assert "stop" not in body and "prompt" not in body and "min_p" not in body
    assert body["top_k"] == 5
    completions = [one for group in groups for one in group.completions]
    assert {(one.token_ids, one.token_logps) for one in completions} == {(None, None)}
    assert {one.finish_reason for one in completions} == {"stop", "length"}
    assert all(one.text.startswith("an answer ") for one in completions)


def test_no_terminator_is_made_up_for_text_that_was_cut_off(fake_server, sampling, tiny_model):
    codec = load_codec(tiny_model)
    server = fake_server()
    with sampling([server], api="chat") as generator:
        groups = list(generator.generate(PROMPTS[:5]))
    ends = {
        (one.finish_reason, codec.completion_ids(group.prompt.messages, one)[-1] == codec.terminator_id)
        for group in groups
        for one in group.completions
    }
    assert ends == {("stop", True), ("length", False)}


# --- several servers ---


def test_the_groups_are_the_same_whatever_the_number_of_servers(fake_server, sampling):
    with sampling([fake_server()], concurrency=1) as generator:
        expected = rows(generator.generate(PROMPTS))
    servers = [fake_server("--service-s=0.01") for _ in range(3)]
    with sampling(servers) as generator:
        assert rows(generator.generate(PROMPTS)) == expected
    assert all(len(one.asked) > 5 for one in servers)
    assert sum(len(one.asked) for one in servers) == len(PROMPTS)
    assert all(one.seen["most_at_once"] <= 4 for one in servers)


def test_a_slow_server_gets_less(fake_server, sampling):
    slow, fast = fake_server("--service-s=0.2"), fake_server("--service-s=0.01")
    with sampling([slow, fast], concurrency=2) as generator:
        assert len(list(generator.generate(PROMPTS))) == len(PROMPTS)
    assert 0 < len(slow.asked) * 3 < len(fast.asked)


def test_a_server_that_is_killed_loses_nothing(fake_server, sampling):
    servers = [fake_server("--service-s=0.03") for _ in range(3)]
    with sampling(servers) as generator:
        expected = rows(generator.generate(PROMPTS))
        for one in servers:
            one.faults(service_s=0.05)
        found = []
        for number, group in enumerate(generator.generate(PROMPTS)):
            if number == 5:
                servers[1].kill()
            found.append(group)
    assert rows(found) == expected
    assert len({one.prompt.id for one in found}) == len(PROMPTS)


def test_a_server_that_dies_with_requests_under_way_loses_nothing(fake_server, sampling):
    whole = fake_server()
    with sampling([whole]) as generator:
        expected = rows(generator.generate(PROMPTS))
    dying = fake_server("--service-s=0.05", '--faults={"dies_after": 6, "service_s": 0.05}')
    with sampling([dying, fake_server("--service-s=0.05")]) as generator:
        assert rows(generator.generate(PROMPTS)) == expected
    assert dying.process.wait(5) == -signal.SIGKILL


def test_when_all_are_killed_the_first_groups_come_and_the_error_names_the_servers(fake_server, sampling):
    servers = [fake_server("--service-s=0.02") for _ in range(2)]
    found = []
    with sampling(servers) as generator, pytest.raises(Unavailable) as caught:
        for group in generator.generate(PROMPTS):
            found.append(group)
            if len(found) == 4:
                for one in servers:
                    one.kill()
    assert 4 <= len(found) < len(PROMPTS)
    assert all(len(one.completions) == 3 for one in found)
    assert str(caught.value).startswith("no server answered for 0.5 s: ")
    assert all(f"{one.url}: " in str(caught.value) for one in servers)
    assert "run again" in str(caught.value)


def test_a_server_that_comes_back_is_used_again(fake_server, sampling):
    back, other = fake_server("--service-s=0.02"), fake_server("--service-s=0.02")
    with sampling([back, other]) as generator:
        groups = generator.generate(itertools.chain(PROMPTS[:20], PROMPTS[20:]))
        list(itertools.islice(groups, 3))
        back.kill()
        rest = list(groups)
        assert len(rest) == len(PROMPTS) - 3
        back.start()
        assert back.asked == []
        wait_until(lambda: back.seen["probes"])
        assert len(list(generator.generate(PROMPTS))) == len(PROMPTS)
    assert len(back.asked) > 5


def test_servers_that_start_late_are_waited_for(fake_server, sampling):
    server = fake_server()
    server.kill()
    threading.Timer(0.7, server.start).start()
    with sampling([server], patience_s=30.0) as generator:
        assert len(list(generator.generate(PROMPTS[:2]))) == 2


def test_no_server_at_all_is_told_after_patience(fake_server, sampling):
    server = fake_server()
    server.kill()
    started = time.monotonic()
    with (
        pytest.raises(Unavailable, match=f"no server answered for 0.5 s: {server.url}: ConnectError"),
        sampling([server]),
    ):
        pass
    assert 0.5 <= time.monotonic() - started < 5


# --- servers that answer, but badly ---


@pytest.mark.parametrize("fault", [{"status": 503}, {"garbage": True}, {"reason": "abort"}, {"status": 429}])
def test_a_server_with_a_fault_is_left_out_and_others_do_its_work(fake_server, sampling, fault):
    ill, well = fake_server(), fake_server()
    ill.faults(**fault)
    with sampling([ill, well]) as generator:
        assert len(list(generator.generate(PROMPTS))) == len(PROMPTS)
    assert len(well.asked) == len(PROMPTS)
    assert len(ill.asked) <= 8


def test_a_server_with_a_fault_is_let_back_in_when_it_is_well(fake_server, sampling):
    server = fake_server()
    server.faults(status=503)
    threading.Timer(0.6, lambda: server.faults()).start()
    with sampling([server], retries=20) as generator:
        assert len(list(generator.generate(PROMPTS))) == len(PROMPTS)


def test_retries_end_with_what_the_server_said(fake_server, sampling):
    server = fake_server()
    server.faults(status=503, text="the\nqueue is full")
    with sampling([server], retries=2) as generator, pytest.raises(Unavailable) as caught:
        list(generator.generate(PROMPTS[:1]))
    assert f"{server.url}: no answer after 3 tries; the last one: HTTP 503: the queue is full" in str(
        caught.value
    )
    assert len(server.asked) == 3


def test_the_pause_that_a_server_asks_for_is_kept(fake_server, sampling):
    server = fake_server()
    server.faults(status=429, headers={"Retry-After": "1"})
    started = time.monotonic()
    with sampling([server], retries=3, patience_s=20.0) as generator:
        threading.Timer(0.3, lambda: server.faults()).start()
        list(generator.generate(PROMPTS[:1]))
    assert 1.0 <= time.monotonic() - started < 10
    assert len(server.asked) == 2


def test_a_server_that_hangs_is_given_up_after_the_timeout(fake_server, sampling):
    hangs, well = fake_server(), fake_server()
    hangs.faults(hang=True)
    with sampling([hangs, well], timeout_s=0.5) as generator:
        assert len(list(generator.generate(PROMPTS))) == len(PROMPTS)
    assert len(well.asked) == len(PROMPTS)


def test_stopping_does_not_wait_for_a_server_that_hangs(fake_server, sampling):
    server = fake_server()
    server.faults(hang=True)
    started = time.monotonic()
    with sampling([server], timeout_s=600.0) as generator:
        groups = generator.generate(PROMPTS)

        def ask() -> None:
            with contextlib.suppress(CancelledError):
                next(groups)

        threading.Thread(target=ask, daemon=True).start()
        wait_until(lambda: server.seen["most_at_once"] == 4)
    assert time.monotonic() - started < 10


def test_a_wrong_request_is_told_with_the_servers_words_and_not_repeated(fake_server, sampling):
    server = fake_server()
    server.faults(status=400, text="top_k must be at least -1")
    with sampling([server], concurrency=1) as generator, pytest.raises(InputError) as caught:
        list(generator.generate(PROMPTS[:1]))
    assert f"{server.url}: HTTP 400: top_k must be at least -1" in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"no_token_ids": True}, "gives no token ids .* `generate.engine.api: chat`"),
        ({"extra_bos": True}, "changes prompts: of "),
        ({"reason": "stop"}, "which ends none here: add it to generate.stop_tokens"),
        ({"reason": "tool_calls"}, "finish_reason 'tool_calls'"),
    ],
)
def test_a_server_that_cannot_be_trusted_with_tokens_is_told(fake_server, sampling, fault, message):
    server = fake_server()
    server.faults(**fault)
    with sampling([server]) as generator, pytest.raises(InputError, match=message):
        list(generator.generate(PROMPTS))


def test_a_server_that_ignores_the_number_of_completions_is_told(fake_server, sampling):
    server = fake_server()
    server.faults(ignores_n=True)
    with (
        sampling([server], api="chat") as generator,
        pytest.raises(InputError, match="gave 1 completions, not the 3"),
    ):
        list(generator.generate(PROMPTS[:1]))


# --- models ---


def test_servers_that_serve_different_models_are_told(fake_server, sampling):
    servers = [fake_server("--served-model-name=a"), fake_server("--served-model-name=b")]
    with pytest.raises(InputError, match="all must serve the policy"), sampling(servers) as generator:
        list(generator.generate(PROMPTS))


def test_a_model_that_is_named_is_sent(fake_server, sampling):
    server = fake_server("--served-model-name=a")
    with sampling([server], model="mine") as generator:
        list(generator.generate(PROMPTS[:1]))
    assert server.asked[0]["model"] == "mine"


def test_a_server_that_reads_too_little_is_told_at_the_start(fake_server, sampling):
    server = fake_server("--max-model-len=20")
    with pytest.raises(InputError, match="reads 20 tokens, but .* --max-model-len"), sampling([server]):
        pass


def test_a_key_that_is_refused_is_told_at_the_start(fake_server, sampling):
    server = fake_server()
    server.faults(models_status=401)
    with (
        pytest.raises(InputError, match="HTTP 401: no Bearer .*; is the key in POOL_KEY right") as caught,
        sampling([server]),
    ):
        pass
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_message_and_no_text(fake_server, sampling, caplog):
    server = fake_server()
    server.faults(status=503)
    with caplog.at_level("DEBUG", logger="prefloop"):
        with sampling([server], retries=1) as generator, pytest.raises(Unavailable) as caught:
            list(generator.generate(PROMPTS[:1]))
        server.faults(says=f"the key is {KEY}")
        with sampling([server], api="chat") as generator:
            groups = rows(generator.generate(PROMPTS[:1]))
    assert "Bearer ***" in str(caught.value)
    assert "left_out" in caplog.text and "***" in caplog.text
    assert KEY not in str(caught.value) + caplog.text + "".join(groups)
    assert "the key is ***" in json.loads(groups[0])["completions"][0]["text"]
