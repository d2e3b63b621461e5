"""Sampling from OpenAI-compatible servers that serve the policy.

With `api: completions` token ids go in and come back, with the policy's own log-probabilities: vLLM's protocol. With `api:
chat` messages go in and text comes back, which training tokenises itself. Seeds follow from (seed, prompt, temperature),
so the same servers give the same completions whoever of them is asked.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefloop.batches import Codec
from prefloop.config import GenerateSection, RemoteEngine
from prefloop.generate.pool import Call, Pool, pool
from prefloop.generate.sampling import Request, Sampled, Stops, temperatures_of
from prefloop.interfaces import InputError
from prefloop.modeling import context_of
from prefloop.records import content_id
from prefloop.servers import MAX_REPLY_BYTES, NoAnswerError, Server, shortened

REQUESTS_AHEAD = 4
"""How many times over the servers are filled between two moments at which what was sampled is kept."""
BYTES_PER_TOKEN = 500
"""Of a reply, at most: a token's id, its text and log-probability, twice."""

Body = Mapping[str, object]


class Share(NamedTuple):
    """Completions of a prompt that are drawn at one temperature: one request."""

    number: int
    temperature: float
    copies: int

    @property
    def asked(self) -> int:
        """Completions to ask for; greedy ones are all the same, and servers refuse to give several."""
        return self.copies if self.temperature else 1


@contextlib.contextmanager
def remote_sampler(
    folder: Path, codec: Codec, engine: RemoteEngine, options: GenerateSection, *, seed: int, dtype: str
) -> Iterator["RemoteSampler"]:
    """A sampler of the servers that the engine names, or of its own, which end with it."""
    with contextlib.ExitStack() as stack:
        urls = engine.urls
        if engine.replicas:
            from prefloop.generate.serve import serve_policy

            chosen = dtype if engine.dtype == "auto" else engine.dtype
            replicas = stack.enter_context(
                serve_policy(
                    str(folder),
                    number=engine.replicas,
                    dtype=chosen,
                    arguments=engine.server_arguments,
                    logs=folder.parents[2] / "logs" / folder.parent.name,
                )
            )
            urls = replicas.urls
        sampler = RemoteSampler(codec, context_of(folder), engine, options, seed=seed)
        sampler.pool = stack.enter_context(pool(engine, urls, sampler.meet))
        sampler.pool.wait_until_ready()
        yield sampler


class RemoteSampler:
    """Samples from a pool of servers; made by `remote_sampler`."""

    pool: Pool

    def __init__(
        self, codec: Codec, context: int, engine: RemoteEngine, options: GenerateSection, *, seed: int
    ) -> None:
        self.context = context
        self.codec = codec
        self.engine = engine
        self.options = options
        self.seed = seed
        self._model = None if engine.model == "auto" else engine.model
        self._stops = Stops(codec, options)
        drawn = itertools.groupby(temperatures_of(options))
        self._shares = [Share(number, one, len(list(same))) for number, (one, same) in enumerate(drawn)]

    @property
    def requests_per_chunk(self) -> int:
        """Enough to keep all servers busy for a while."""
        return max(1, REQUESTS_AHEAD * self.pool.at_once // len(self._shares))

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Sampled, ...]]:
        """Yields the completions of each request, in order. Raises Unavailable after those that were finished."""
        call, path = (
            (self._completions, "completions")
            if self.engine.api == "completions"
            else (self._chat, "chat/completions")
        )
        parts = self.pool.run(path, (call(request, share) for request in requests for share in self._shares))
        for _ in requests:
            yield tuple(one for _ in self._shares for one in next(parts))

    def meet(self, server: Server, models: str) -> None:
        """Reads what a server says about its models. Raises InputError where it does not fit."""
        found = _models(models)
        if self.engine.model == "auto":
            self._take_name(server, [one["id"] for one in found])
        for one in found:
            self._check_length(server, one)

    def _take_name(self, server: Server, names: Sequence[str]) -> None:
        if len(names) != 1:
            raise InputError(
                f"{server.shown_url}: serves {', '.join(names) or 'no model that it names'}; name one in "
                "generate.engine.model"
            )
        if self._model not in (None, names[0]):
            raise InputError(
                f"{server.shown_url}: serves {names[0]}, another server {self._model}; all must serve the policy. If they "
                "do, name it alike everywhere, or leave one out of generate.engine.urls"
            )
        self._model = names[0]

    def _check_length(self, server: Server, model: Mapping[str, Any]) -> None:
        longest = model.get("max_model_len")
        options = self.options
        needed = min(self.context, options.max_prompt_length + options.max_new_tokens)
        if model["id"] == self._model and isinstance(longest, int) and longest < needed:
            raise InputError(
                f"{server.shown_url}: reads {longest} tokens, but generate.max_prompt_length and generate.max_new_tokens "
                f"allow {needed}; lower them, or start the server with more (vLLM: --max-model-len)"
            )

    # --- api: completions ---

    def _completions(self, request: Request, share: Share) -> Call[tuple[Sampled, ...]]:
        def body() -> Body:
            options = self.options
            return self._common(request, share) | {
                "prompt": list(request.ids),
                "add_special_tokens": False,
                "top_k": options.top_k,
                "min_p": options.min_p,
                "repetition_penalty": options.repetition_penalty,
                "stop_token_ids": sorted(self._stops.token_ids),
                "include_stop_str_in_output": True,
                "skip_special_tokens": True,
                "logprobs": 0,
                "return_token_ids": True,
            }

        def read(text: str, server: Server) -> tuple[Sampled, ...]:
            choices = self._choices(text, server, share)
            return _copies([self._with_tokens(one, server, request) for one in choices], share)

        size = share.asked * BYTES_PER_TOKEN * (len(request.ids) + request.budget)
        return Call(body, read, MAX_REPLY_BYTES + size)

    def _with_tokens(self, choice: Mapping[str, Any], server: Server, request: Request) -> Sampled:
        found = _tokens_and_logps(choice)
        if found is None:
            raise InputError(
                f"{server.shown_url}: gives no token ids with log-probabilities, as vLLM 0.10 and later do; with "
                "`generate.engine.api: chat` prefloop takes the text alone"
            )
        tokens, logps = found
        fed = choice.get("prompt_token_ids")
        if fed is not None and fed != list(request.ids):
            raise InputError(
                f"{server.shown_url}: changes prompts: of {request.prompt.id} it read {len(fed)} tokens, which are not the "
                f"{len(request.ids)} that it was sent, so training would see others"
            )
        if not tokens or len(tokens) > request.budget:
            raise NoAnswerError(f"a completion of {len(tokens)} tokens; 1 to {request.budget} were asked for")
        if not all(map(math.isfinite, logps)):
            raise NoAnswerError("log-probabilities that are not finite")
        ended = self._stops(tokens)
        if choice["finish_reason"] == "stop" and not ended:
            last = self.codec.tokenizer.convert_ids_to_tokens(tokens[-1])
            raise InputError(
                f"{server.shown_url}: ended a completion of prompt {request.prompt.id} at {last!r}, which ends none here: "
                "add it to generate.stop_tokens, or keep the server from ending where it likes (vLLM: "
                "--generation-config vllm)"
            )
        return Sampled(tuple(tokens), "stop" if ended else "length", tuple(logps))

    # --- api: chat ---

    def _chat(self, request: Request, share: Share) -> Call[tuple[Sampled, ...]]:
        def body() -> Body:
            messages = [{"role": one.role, "content": one.content} for one in request.prompt.messages]
            return {**self._common(request, share), "messages": messages, **self._beyond_the_standard()}

        def read(text: str, server: Server) -> tuple[Sampled, ...]:
            choices = self._choices(text, server, share)
            return _copies([_text_of(one, server) for one in choices], share)

        return Call(body, read, MAX_REPLY_BYTES + share.asked * BYTES_PER_TOKEN * request.budget)

    def _beyond_the_standard(self) -> Body:
        """Only what was asked for, since some servers refuse every key that they do not know."""
        options, more = self.options, dict[str, object]()
        if options.top_k:
            more["top_k"] = options.top_k
        if options.min_p:
            more["min_p"] = options.min_p
        if options.repetition_penalty != 1.0:
            more["repetition_penalty"] = options.repetition_penalty
        if options.stop_tokens:
            more["stop_token_ids"] = sorted(self._stops.token_ids)
        if options.stop:
            more["include_stop_str_in_output"] = True
        return more

    # --- both ---

    def _common(self, request: Request, share: Share) -> dict[str, object]:
        assert self._model is not None, "a server is asked after it has been let in"
        options = self.options
        stop: dict[str, object] = {"stop": options.stop} if options.stop else {}
        return {
            "model": self._model,
            "n": share.asked,
            "max_tokens": request.budget,
            "temperature": share.temperature,
            "top_p": options.top_p,
            "seed": int(content_id(self.seed, request.name, share.number), 16) >> 33,
        } | stop

    def _choices(self, text: str, server: Server, share: Share) -> list[dict[str, Any]]:
        """The choices of a reply, in order. Raises NoAnswerError where it is none or was broken off."""
        try:
            choices = json.loads(text)["choices"]
            choices = sorted(choices, key=lambda one: one["index"])
            reasons = [one["finish_reason"] for one in choices]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise NoAnswerError(f"HTTP 200 without completions in it: {shortened(text)}") from None
        if len(choices) != share.asked:
            raise InputError(
                f"{server.shown_url}: gave {len(choices)} completions, not the {share.asked} that `n` asked for; "
                "set generate.num_completions to 1, or use a server that knows `n`"
            )
        for reason in reasons:
            if reason in (None, "abort", "error"):
                raise NoAnswerError(f"the server broke off with finish_reason {reason!r}")
            if reason not in ("stop", "length"):
                raise InputError(
                    f"{server.shown_url}: finish_reason {reason!r}; a completion is ended by `stop` or `length` only"
                )
        return choices


def _models(text: str) -> list[dict[str, Any]]:
    """The models in a reply to `/models`; none where it says nothing that can be read."""
    try:
        listed = json.loads(text)["data"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    found = listed if isinstance(listed, list) else []
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("id"), str)]


def _text_of(choice: Mapping[str, Any], server: Server) -> Sampled:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise NoAnswerError("a completion without text in it")
    if not text and choice["finish_reason"] == "length":
        raise NoAnswerError("a completion that was cut off before its first word")
    # once more: in the JSON the key may have stood in another spelling
    return Sampled(None, choice["finish_reason"], text=server.safe(text))


def _tokens_and_logps(choice: Mapping[str, Any]) -> tuple[list[int], list[float]] | None:
    """What was sampled and its log-probabilities; None where one is missing."""
    tokens = choice.get("token_ids")
    logprobs = choice.get("logprobs")
    logps = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not isinstance(logps, list) or len(tokens) != len(logps):
        return None
    if not all(isinstance(one, int) for one in tokens) or not all(
        isinstance(one, int | float) for one in logps
    ):
        return None
    return tokens, [float(one) for one in logps]


def _copies(sampled: list[Sampled], share: Share) -> tuple[Sampled, ...]:
    return tuple(sampled) if share.asked == share.copies else tuple(sampled * share.copies)
