"""Webhooks: signed, sent again with pauses, put aside in the end."""

import base64
import hashlib
import hmac
import json

import pytest
import sqlalchemy as sa

from prefloop.labels import publish, webhooks
from prefloop.labels.database import open_database
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.schema import delivery


class Receiver:
    """Takes what is sent, or not."""

    def __init__(self):
        self.got = []
        self.is_up = True

    def __call__(self, envelope):
        self.got.append(envelope)
        if not self.is_up:
            raise webhooks.UndeliveredError("answered 500")


class Clock:
    now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def database(tmp_path, clock):
    opened = open_database(str(tmp_path / "labels.sqlite"), clock=clock)
    opened.write(lambda c: publish.add_project(c, opened.now(), "p", ProjectConfig()))
    opened.write(lambda c: publish.add_project(c, opened.now(), "other", ProjectConfig()))
    yield opened
    opened.close()


def add(database, *events, project="p", url="https://hooks.example.org/x"):
    return database.write(
        lambda c: webhooks.add_webhook(c, database.now(), project, url, events, actor="root")
    )


def announce(database, event="round.frozen", project="p"):
    return database.write(lambda c: webhooks.announce(c, database.now(), project, event, {"round": "r1"}))


def states(database):
    wanted = sa.select(delivery.c.state, delivery.c.attempts).order_by(delivery.c.created_at)
    return [tuple(row) for row in database.read(lambda c: c.execute(wanted).all())]


def test_the_signature_is_that_of_the_example_of_standard_webhooks():
    signed = webhooks.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_can_check_what_it_gets_with_the_secret(database):
    _, secret = add(database, "round.frozen")
    announce(database)
    receiver = Receiver()
    assert webhooks.deliver_due(database, receiver) == 1
    [envelope] = receiver.got
    signed = (
        f"{envelope.headers['webhook-id']}.{envelope.headers['webhook-timestamp']}.".encode() + envelope.body
    )
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert envelope.headers["webhook-signature"] == f"v1,{mac}"
    assert len(key) == 24
    assert json.loads(envelope.body) == {
        "type": "round.frozen",
        "timestamp": 1_800_000_000_000,
        "data": {"project": "p", "round": "r1"},
    }
    assert webhooks.deliver_due(database, receiver) == 0
    assert states(database) == [("delivered", 1)]


def test_events_go_to_the_webhooks_of_their_project_that_want_them(database):
    frozen, _ = add(database, "round.frozen")
    add(database, "round.promoted")
    add(database, "round.frozen", project="other")
    off, _ = add(database, "round.frozen")
    database.write(lambda c: webhooks.set_webhook_state(c, 0, off, "disabled", actor="root"))
    assert announce(database) == 1
    assert database.read(lambda c: c.execute(sa.select(delivery.c.webhook_id)).scalars().all()) == [frozen]


def test_an_event_is_put_down_only_if_its_change_is(database):
    add(database, "round.frozen")

    def fails(connection):
        webhooks.announce(connection, database.now(), "p", "round.frozen", {})
        raise Invalid("no")

    with pytest.raises(Invalid):
        database.write(fails)
    assert states(database) == []


def test_what_does_not_arrive_is_sent_again_with_growing_pauses_and_is_dead_in_the_end(database, clock):
    add(database, "round.frozen")
    announce(database)
    receiver = Receiver()
    receiver.is_up = False
    pauses = [10, 60, 300, 1800, 7200, 21600]
    webhooks.deliver_due(database, receiver)
    for number, pause in enumerate(pauses, 1):
        clock.now += pause - 1
        webhooks.deliver_due(database, receiver)
        assert len(receiver.got) == number  # not yet
        clock.now += 1
        webhooks.deliver_due(database, receiver)
        assert len(receiver.got) == number + 1
    assert states(database) == [("dead", 7)]
    clock.now += 10**6
    assert webhooks.deliver_due(database, receiver) == 0
    assert len(receiver.got) == 7
    assert len({one.headers["webhook-id"] for one in receiver.got}) == 1  # receivers can tell repeats
    assert (
        len({one.headers["webhook-signature"] for one in receiver.got}) == 7
    )  # each is signed with its own time


def test_a_dead_event_can_be_sent_anew(database, clock):
    add(database, "round.frozen")
    announce(database)
    receiver = Receiver()
    database.write(lambda c: c.execute(sa.update(delivery).values(state="dead", attempts=7)))
    [id] = database.read(lambda c: c.execute(sa.select(delivery.c.id)).scalars().all())
    database.write(lambda c: webhooks.send_again(c, database.now(), id, actor="root"))
    assert webhooks.deliver_due(database, receiver) == 1
    with pytest.raises(NotFound):
        database.write(lambda c: webhooks.send_again(c, database.now(), id, actor="root"))


def test_a_process_that_dies_while_sending_leaves_the_event_to_others(database, clock):
    add(database, "round.frozen")
    announce(database)

    class KilledError(Exception):
        pass

    def dies(envelope):
        raise KilledError

    with pytest.raises(KilledError):
        webhooks.deliver_due(database, dies)
    receiver = Receiver()
    assert webhooks.deliver_due(database, receiver) == 0  # the other one may still be at it
    clock.now += 61
    assert webhooks.deliver_due(database, receiver) == 1


@pytest.mark.parametrize(
    "url", ["", "ftp://x/y", "javascript:alert(1)", "https://", "https://u:p@example.org/"]
)
def test_addresses_that_are_none_are_refused(database, url):
    with pytest.raises(Invalid):
        add(database, "round.frozen", url=url)


def test_unknown_events_and_projects_are_refused(database):
    for events in ((), ("round.square",)):
        with pytest.raises(Invalid):
            add(database, *events)
    with pytest.raises(NotFound):
        add(database, "round.frozen", project="nothing")


def test_the_list_of_webhooks_has_no_secret(database):
    _, secret = add(database, "round.frozen")
    assert secret not in repr(database.read(webhooks.list_webhooks))
