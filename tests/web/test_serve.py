"""The server is not shown to a network before somebody is in charge of it."""

import socket
import threading
import time

import pytest
import uvicorn

from prefloop.interfaces import InputError
from prefloop.web import guard
from prefloop.web.serve import check_binding, is_loopback, uvicorn_options

HTTPS = "https://label.example.org"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "localhost", "::1", "[::1]"])
def test_this_machine_is_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "label.example.org", ""])
def test_everything_else_is_a_network(host):
    assert not is_loopback(host)


def test_on_ones_own_machine_nothing_is_asked_for(place):
    check_binding(place.database, "127.0.0.1", "http://127.0.0.1:8765")


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:8765"), ("0.0.0.0", HTTPS), ("127.0.0.1", HTTPS)]
)
def test_a_network_is_refused_until_an_admin_has_a_password(place, host, url):
    with pytest.raises(InputError, match="no admin has a password"):
        check_binding(place.database, host, url)
    place.person("Lead", "lead", password="correct horse battery")
    with pytest.raises(InputError, match="no admin has a password"):
        check_binding(place.database, host, url, "accept")


def test_plain_http_beyond_this_machine_must_be_accepted(place):
    place.person("Root", "admin", password="correct horse battery")
    check_binding(place.database, "0.0.0.0", HTTPS)
    with pytest.raises(InputError, match="plain http"):
        check_binding(place.database, "0.0.0.0", "http://label.lan")
    check_binding(place.database, "0.0.0.0", "http://label.lan", "accept")


@pytest.mark.parametrize("url", ["", "label.example.org", "ftp://x", "https://", "https://x/labels"])
def test_the_public_address_must_be_one(place, url):
    with pytest.raises(InputError, match="public_url"):
        check_binding(place.database, "127.0.0.1", url)


def test_the_server_limits_its_connections_and_says_nothing_of_itself():
    options = uvicorn_options()
    assert options["limit_concurrency"] == 1000
    assert options["timeout_keep_alive"] == 15
    assert (options["server_header"], options["access_log"]) == (False, False)
    assert options["proxy_headers"]


def test_only_a_proxy_on_this_machine_can_say_where_a_request_came_from(monkeypatch):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    config = uvicorn.Config("none", **uvicorn_options())
    assert set(config.forwarded_allow_ips.split(",")) <= {"127.0.0.1", "::1"}


def test_who_falls_silent_in_the_middle_of_a_request_is_cut_off(place, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(place.app, port=port, log_level="error", **uvicorn_options()))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        head = (
            "POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        )
        client.sendall((head + "Content-Length: 100\r\n\r\ncalled=a").encode())
        assert client.recv(200).startswith(b"HTTP/1.1 408 ")
    server.should_exit = True
    thread.join()
