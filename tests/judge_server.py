"""An OpenAI-compatible endpoint on this machine whose replies a test chooses."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """An endpoint whose replies a test chooses; it remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[dict], tuple[int, dict[str, str], str]] = lambda body: said("[[A]]")
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.bodies.append(body | {"path": self.path})
                    outer.keys.append(self.headers["Authorization"])
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                status, headers, text = outer.answer(body)
                with outer._lock:
                    outer._now -= 1
                data = text.encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client has given up waiting

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def said(text: str, top: Mapping[str, float] | None = None) -> tuple[int, dict[str, str], str]:
    """A reply; `top` are log-probabilities of its first token."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    choice: dict = {"message": {"content": text}}
    if top is not None:
        likely = [{"token": token, "logprob": logp} for token, logp in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": likely}]}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage})
