"""Where the server goes when somebody types an address: to the internet, and nowhere near itself."""

import http.server
import threading
import time

import pytest

from prefloop.labels.webhooks import Envelope, UndeliveredError
from prefloop.web.outgoing import Blocked, fetch, is_public, webhook_sender


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep credentials
        "100.64.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",  # 169.254.169.254 through NAT64
        "2002:7f00:1::",  # 127.0.0.1 through 6to4
        "2001:db8::1",
    ],
)
def test_addresses_of_machines_and_networks_of_ones_own_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/latest/meta-data",
        "http://localhost:8765/admin",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://",
        "http://user:password@8.8.8.8/",
        "http://example.org:99999/",
        "http://ex\u00e4mple.org/",
        "not an address",
    ],
)
def test_addresses_that_lead_inside_or_nowhere_are_blocked(url):
    with pytest.raises(Blocked):
        fetch(url, timeout_s=1)


def test_one_private_address_among_public_ones_is_enough_to_block():
    with pytest.raises(Blocked, match="not a public address"):
        fetch("http://two.example/", resolve=lambda host, port: ["8.8.8.8", "10.0.0.1"])


# --- against a server of one's own -----------------------------------------------------------------------------------


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.seen.append((self.path, self.headers["host"]))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", "http://" + self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b".")
                time.sleep(0.1)
            return
        self.send_response(int(self.path[1:]) if self.path[1:].isdigit() else 200)
        self.end_headers()
        self.wfile.write(b"x" * 100_000 if self.path == "/large" else b"hello")

    def do_POST(self):
        self.server.bodies.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(302 if self.path == "/moved" else 204)
        if self.path == "/moved":
            self.send_header("Location", "/elsewhere")
        self.end_headers()


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen, server.bodies = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def at(site, path, **options):
    """Asks the site under a name that was allowed, as a name of the own network can be."""
    url = f"http://hooks.internal:{site.server_port}{path}"
    known = {"hooks.internal": ["127.0.0.1"], "evil.example": ["127.0.0.1"]}
    return fetch(
        url, allowed_hosts=["hooks.internal"], resolve=lambda host, port: known.get(host, [host]), **options
    )


def test_an_allowed_name_is_reached_under_its_name(site):
    assert at(site, "/").body == b"hello"
    assert site.seen == [("/", f"hooks.internal:{site.server_port}")]


def test_a_name_is_resolved_once_so_that_its_answer_cannot_change(site):
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    url = f"http://hooks.internal:{site.server_port}/"
    reply = fetch(url, allowed_hosts=["hooks.internal"], resolve=lambda host, port: next(answers))
    assert reply.body == b"hello"
    assert next(answers) == ["10.0.0.1"]  # never asked for


def test_a_redirect_to_a_private_address_is_blocked(site):
    for target in (
        "169.254.169.254/latest",
        f"127.0.0.1:{site.server_port}/",
        f"evil.example:{site.server_port}/",
    ):
        with pytest.raises(Blocked, match="not a public address"):
            at(site, f"/to/{target}", redirects=3)
    assert {path for path, _ in site.seen if not path.startswith("/to/")} == set()


def test_redirects_end(site):
    here = f"hooks.internal:{site.server_port}"
    assert at(site, f"/to/{here}/to/{here}/", redirects=2).body == b"hello"
    with pytest.raises(Blocked, match="too often"):
        at(site, f"/to/{here}/to/{here}/", redirects=1)


def test_too_much_and_too_slow_are_cut_off(site):
    with pytest.raises(Blocked, match="more than 64000 bytes"):
        at(site, "/large")
    began = time.monotonic()
    with pytest.raises(Blocked):
        at(site, "/slow", timeout_s=0.5)
    assert time.monotonic() - began < 3


def test_webhooks_are_posted_follow_no_redirects_and_want_a_2xx(site):
    send = webhook_sender(["hooks.internal"], resolve=lambda host, port: ["127.0.0.1"])
    base = f"http://hooks.internal:{site.server_port}"
    send(Envelope(f"{base}/", b'{"a": 1}', {"webhook-id": "m1", "content-type": "application/json"}))
    headers, body = site.bodies[0]
    assert (headers["webhook-id"], headers["content-type"], body) == ("m1", "application/json", b'{"a": 1}')
    with pytest.raises(UndeliveredError, match="answered 302"):
        send(Envelope(f"{base}/moved", b"{}", {}))
    with pytest.raises(UndeliveredError, match="not a public address"):
        webhook_sender()(Envelope(f"http://127.0.0.1:{site.server_port}/", b"{}", {}))
    assert len(site.bodies) == 2
