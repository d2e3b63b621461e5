"""An OpenAI-compatible server for tests, a process of its own: `python fake_server.py --port=8000 --model=FOLDER`.

Understands as much of vLLM's command line and protocol as prefloop uses. Tokens follow from prompt and seed; with
`--compute` they are sampled from the model with transformers, and log-probabilities are the model's. Faults are switched on
by a POST to /faults; GET /seen tells what was asked.
"""

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FIRST_TOKEN, LAST_TOKEN = 10, 200
P_STOP = 0.08


class Fake:
    """What the server is told to do, and what it was asked."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.faults: dict = json.loads(options.faults)
        self.bodies: list[dict] = []
        self.headers: list[str | None] = []
        self.now = self.most_at_once = self.probes = 0
        self.lock = threading.Lock()
        self.model = Computed(options.model) if options.compute else None

    def completions(self, body: dict) -> dict:
        choices = []
        for index in range(body["n"]):
            tokens, logps = (self.model or invented)(body, index)
            ended = tokens[-1] in body["stop_token_ids"]
            choice = {"index": index, "text": "x", "finish_reason": "stop" if ended else "length"}
            if self.faults.get("reason"):
                choice["finish_reason"] = self.faults["reason"]
            if not self.faults.get("no_token_ids"):
                choice["token_ids"] = tokens
                choice["prompt_token_ids"] = (
                    [1, *body["prompt"]] if self.faults.get("extra_bos") else body["prompt"]
                )
            off = self.faults.get("wrong_logps", 0.0)
            choice["logprobs"] = {"token_logprobs": [one - off for one in logps]}
            choices.append(choice)
        return {"choices": choices[::-1]}  # in no order that one may count on

    def chat(self, body: dict) -> dict:
        number = 1 if self.faults.get("ignores_n") else body["n"]
        return {
            "choices": [
                {
                    "index": index,
                    "finish_reason": "length" if (body["seed"] + index) % 3 == 0 else "stop",
                    "message": {
                        "role": "assistant",
                        "content": f"{self.faults.get('says', 'an answer')} {body['seed'] + index}",
                    },
                }
                for index in range(number)
            ]
        }


def invented(body: dict, index: int) -> tuple[list[int], list[float]]:
    """Tokens by prompt and seed."""
    numbers = random.Random(f"{body['prompt']} {body['seed']} {index} {body['temperature']}")
    tokens: list[int] = []
    while len(tokens) < body["max_tokens"]:
        if numbers.random() < P_STOP:
            tokens.append(body["stop_token_ids"][0])
            break
        tokens.append(numbers.randint(FIRST_TOKEN, LAST_TOKEN))
    return tokens, [-numbers.random() for _ in tokens]


class Computed:
    """Tokens of a model, at temperature 1 or greedy."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.lock = threading.Lock()

    def __call__(self, body: dict, index: int) -> tuple[list[int], list[float]]:
        torch = self.torch
        generator = torch.Generator().manual_seed(body["seed"] + index)
        tokens, logps = [], []
        with self.lock, torch.no_grad():
            while len(tokens) < body["max_tokens"]:
                last = self.model(torch.tensor([body["prompt"] + tokens])).logits[0, -1].log_softmax(-1)
                one = int(
                    torch.multinomial(last.exp(), 1, generator=generator)
                    if body["temperature"]
                    else last.argmax()
                )
                tokens.append(one)
                logps.append(float(last[one]))
                if one in body["stop_token_ids"]:
                    break
        return tokens, logps


def handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                return self.reply(200, "")
            if self.path == "/seen":
                seen = {
                    "bodies": fake.bodies,
                    "headers": fake.headers,
                    "most_at_once": fake.most_at_once,
                    "probes": fake.probes,
                }
                return self.reply(200, json.dumps(seen))
            fake.probes += 1
            if "models_status" in fake.faults:
                return self.reply(fake.faults["models_status"], "no " + str(self.headers["Authorization"]))
            model = {"id": fake.options.served_model_name, "max_model_len": fake.options.max_model_len}
            return self.reply(200, json.dumps({"data": [model]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/faults":
                fake.faults = body
                return self.reply(200, "")
            with fake.lock:
                fake.bodies.append(body)
                fake.headers.append(self.headers["Authorization"])
                fake.now += 1
                fake.most_at_once = max(fake.most_at_once, fake.now)
                if len(fake.bodies) > fake.faults.get("dies_after", 1 << 30):
                    os.kill(os.getpid(), signal.SIGKILL)
            try:
                self.answer(body)
            finally:
                with fake.lock:
                    fake.now -= 1

        def answer(self, body: dict) -> None:
            faults = fake.faults
            time.sleep(faults.get("service_s", fake.options.service_s))
            while fake.faults.get("hang"):
                time.sleep(0.01)
            if "status" in faults:
                text = faults.get("text", "out of order") + " for " + str(self.headers["Authorization"])
                return self.reply(faults["status"], text, faults.get("headers", {}))
            if faults.get("garbage"):
                return self.reply(200, '{"choices": [{"half":')
            answer = fake.chat(body) if self.path.endswith("/chat/completions") else fake.completions(body)
            return self.reply(200, json.dumps(answer))

        def reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
            data = text.encode()
            try:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the client has given up waiting

        def log_message(self, format: str, *args: object) -> None: ...

    return Handler


class Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="module")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--served-model-name", default="policy")
    parser.add_argument("--max-model-len", type=int, default=100_000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--service-s", type=float, default=0.0)
    parser.add_argument("--faults", default="{}")
    parser.add_argument("--compute", action="store_true")
    parser.add_argument("--pids", type=Path, help="a file that gets a line for each start")
    parser.add_argument("--fails", action="store_true", help="ends at once, with a message")
    options = parser.parse_args()
    sys.stderr.write(f"fake server {vars(options)}\n")
    if options.pids:
        with options.pids.open("a") as file:
            file.write(f"{os.getpid()}\n")
    if options.fails:
        raise SystemExit("no memory left for the keys and values")
    Listening((options.host, options.port), handler(Fake(options))).serve_forever(0.01)


if __name__ == "__main__":
    main()
