"""What `prefloop doctor --tokens` shows: the tokens that an experiment's model reads and writes, by role, and which of
them are trained on."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefloop import data, pipeline
from prefloop.config import Experiment, SourceSection
from prefloop.interfaces import InputError
from prefloop.records import Completion, Message, Prompt, file_completion
from prefloop.stages.shared import compared_with_trainer, model_folder, sampling
from prefloop.store import Workspace

if TYPE_CHECKING:
    from prefloop.batches import Codec

Part = Literal["template", "system", "user", "assistant"]
SAMPLED_TOKENS = 24
SENTENCEPIECE_SPACE = "\u2581"


class Piece(NamedTuple):
    """One token."""

    token_id: int
    text: str
    """Its text where that is all it stands for, otherwise as the vocabulary spells it."""
    part: Part
    trained: bool
    """Whether losses count it."""


class Sample(NamedTuple):
    """A prompt and an answer as the model reads them."""

    title: str
    pieces: tuple[Piece, ...]


class Check(NamedTuple):
    """Something that must hold between text, engine and training."""

    name: str
    state: Literal["ok", "note", "problem"]
    detail: str


def look(x: Experiment, workspace: Workspace, watcher: pipeline.Watcher) -> Iterator[Sample | Check]:
    """Samples of the experiment's data and model, and what was checked on them. Brings the model into the workspace."""
    from prefloop.modeling import load_codec

    base = pipeline.base(x, workspace, watcher)
    codec = load_codec(model_folder(base))
    seen: list[tuple[Prompt, Completion]] = []
    for title, prompt, completion in _examples(x):
        yield _sample(title, codec, prompt, completion)
        seen.append((prompt, completion))
    prompt = _first_prompt(x)
    if prompt is None and not seen:
        raise InputError("this experiment has neither prompts nor demonstrations nor pairs to look at")
    prompt = prompt or seen[0][0]
    shape = {"num_completions": 1, "temperatures": None, "max_new_tokens": SAMPLED_TOKENS}
    with sampling(x, base, version=0, seed=x.seed, dtype=x.model.dtype, **shape) as generator:
        groups = [group for group in generator.generate([prompt]) if group.completions]
    for group in groups:
        seen.append((prompt, group.completions[0]))
        yield _sample("sampled from the model as it is before training", codec, prompt, group.completions[0])
    yield _bos_check(codec, seen)
    yield _terminator_check(codec, seen)
    yield _prefix_check(codec, prompt)
    yield _engine_check(compared_with_trainer(x, base, groups))


def _examples(x: Experiment) -> Iterator[tuple[str, Prompt, Completion]]:
    """The first demonstration and the first pair that the experiment trains on."""
    if x.sft.data is not None:
        (shown,) = data.read_demonstrations(_one(x.sft.data)).rows[:1]
        prompt = Prompt.of(shown.messages[:-1])
        yield "a demonstration of sft.data", prompt, file_completion(prompt, shown.messages[-1].content)
    for key, source in (("policy.offline_data", x.policy.offline_data), ("reward.data", x.reward.data)):
        if source is not None and (pairs := data.read_pairs(_one(source)).rows):
            yield f"the chosen answer of a pair of {key}", pairs[0].prompt, pairs[0].chosen


def _first_prompt(x: Experiment) -> Prompt | None:
    if x.prompts is None:
        return None
    return data.read_prompts(_one(x.prompts)).rows[0]


def _one(source: SourceSection) -> SourceSection:
    return source.model_copy(update={"limit": 1})


def _sample(title: str, codec: "Codec", prompt: Prompt, completion: Completion) -> Sample:
    answer = codec.completion_ids(prompt.messages, completion)
    pieces = [
        Piece(token, _shown(codec, token), part, False)
        for token, part in prompt_parts(codec, prompt.messages)
    ]
    pieces += [Piece(token, _shown(codec, token), "assistant", True) for token in answer]
    return Sample(title, tuple(pieces))


def prompt_parts(codec: "Codec", messages: Sequence[Message]) -> list[tuple[int, Part]]:
    """Token ids of a prompt, each with the role of the turn whose text it belongs to, or that of the template."""
    text, ids = codec.prompt_text(messages), codec.prompt_ids(messages)
    spans = _spans(text, messages)
    if not codec.tokenizer.is_fast:  # no offsets
        return [(token, "template") for token in ids]
    offsets = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    added = len(ids) - len(offsets)  # a BOS that the template does not write
    parts: list[Part] = ["template"] * added
    for start, end in offsets:
        found: list[Part] = [part for low, high, part in spans if start < high and end > low]
        parts.append(found[0] if found else "template")
    return list(zip(ids, parts, strict=True))


def _spans(text: str, messages: Sequence[Message]) -> list[tuple[int, int, Part]]:
    """Where the contents of turns stand in the rendered text; templates may strip them."""
    spans: list[tuple[int, int, Part]] = []
    place = 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, place) if content else -1
        if start >= 0:
            place = start + len(content)
            spans.append((start, place, message.role))
    return spans


def _shown(codec: "Codec", token: int) -> str:
    tokenizer = codec.tokenizer
    spelled = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.all_special_ids:
        return spelled
    if SENTENCEPIECE_SPACE in spelled:  # decoding a token alone would lose it
        return spelled.replace(SENTENCEPIECE_SPACE, " ")
    text = tokenizer.decode([token])
    return text if text and "\ufffd" not in text else spelled


# --- checks ----------------------------------------------------------------------------------------------------------


def _bos_check(codec: "Codec", seen: Sequence[tuple[Prompt, Completion]]) -> Check:
    bos, name = codec.tokenizer.bos_token_id, codec.tokenizer.bos_token
    if bos is None or bos == codec.terminator_id:
        return Check("BOS", "ok", "the tokenizer has none of its own")
    counts = {
        [*codec.prompt_ids(prompt.messages), *codec.completion_ids(prompt.messages, completion)].count(bos)
        for prompt, completion in seen
    }
    state = "ok" if counts in ({0}, {1}) else "problem"
    return Check("BOS", state, f"{name} stands in a sequence {_times(counts)}")


def _terminator_check(codec: "Codec", seen: Sequence[tuple[Prompt, Completion]]) -> Check:
    """Answers end with the terminator once; those that were cut have none."""
    wrong = []
    for prompt, completion in seen:
        ids = codec.completion_ids(prompt.messages, completion)
        wanted = 0 if completion.finish_reason == "length" else 1
        if ids.count(codec.terminator_id) != wanted or (wanted and ids[-1] != codec.terminator_id):
            wrong.append(completion.text[:40])
    name = codec.tokenizer.eos_token
    if wrong:
        return Check("terminator", "problem", f"{name} does not end, once, the answer {wrong[0]!r}")
    return Check("terminator", "ok", f"{name} ends every answer that was not cut, and belongs to it")


def _prefix_check(codec: "Codec", prompt: Prompt) -> Check:
    """What the policy read before its answer must still stand there in later turns."""
    answer = Message(role="assistant", content="Yes.")
    later = Message(role="user", content="And then?")
    before, after = (
        codec.prompt_text(turns) for turns in (prompt.messages, (*prompt.messages, answer, later))
    )
    if after.startswith(before):
        return Check("earlier turns", "ok", "are rendered alike in longer conversations")
    return Check(
        "earlier turns",
        "note",
        "the template renders them in another way once more turns follow; see model.template",
    )


def _engine_check(gap: float | None) -> Check:
    """That there is a gap at all: one that is too large has stopped this already."""
    if gap is None:
        return Check("engine, trainer", "note", "nothing was compared: the engine says no log-probabilities")
    return Check("engine, trainer", "ok", f"their log-probabilities of the sampled tokens agree to {gap:.0e}")


def _times(counts: set[int]) -> str:
    return " or ".join({0: "never", 1: "once", 2: "twice"}.get(one, f"{one} times") for one in sorted(counts))
