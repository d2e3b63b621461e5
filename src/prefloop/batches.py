"""From conversations to token ids to batches.

One place decides how text becomes tokens: the chat template, exactly one BOS, the terminator exactly once. Token ids that
a sampler emitted are used as they are. Knows nothing about losses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import torch
from torch import Tensor

from prefloop.interfaces import InputError
from prefloop.records import Completion, Message

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LENGTH_BUCKET = 8
"""Batch lengths are rounded up to a multiple of this, so that shapes repeat and memory is reused."""

Item = TypeVar("Item")


class Codec:
    """A tokenizer with its chat template and terminator, checked once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; set model.template to `plain`, "
                "a .jinja file or a template"
            )
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no EOS token; set model.terminator"
            )
        self.terminator_id: int = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.terminator_id
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("x").input_ids[:1] == [bos]
        self._wanted_bos: int | None = bos if adds_bos else None
        self._check_bos()
        self._check_terminator()

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation through the template, up to where the answer starts."""
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation up to where the answer starts, with the BOS that the tokenizer wants."""
        return self._ids(self.prompt_text(messages))

    def completion_ids(self, messages: Sequence[Message], completion: Completion) -> list[int]:
        """Token ids of an answer: the sampler's own, or its text tokenised in context with the terminator at the end."""
        if completion.token_ids is not None:
            return list(completion.token_ids)
        return self.answer_ids(messages, completion.text)

    def answer_ids(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of an answer given as text, terminator included, tokenised as it continues the prompt."""
        before = self.prompt_text(messages)
        prompt, joint = self._ids(before), self._ids(before + text)
        # tokenizers may merge across the border; then the answer is tokenised on its own
        ids = joint[len(prompt) :] if joint[: len(prompt)] == prompt else self._tokenize(text)
        return [*ids, self.terminator_id]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text between BOS and terminator."""
        return [*self._ids(text), self.terminator_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without the terminator and other special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            roles = ", ".join(message.role for message in messages)
            raise InputError(f"chat template cannot render a conversation of {roles}: {error}") from error

    def _tokenize(self, text: str) -> list[int]:
        # lengths are checked where rows are made; the tokenizer need not warn about them
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _ids(self, text: str) -> list[int]:
        ids = self._tokenize(text)
        bos = self._wanted_bos
        if bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def _check_bos(self) -> None:
        bos = self.tokenizer.bos_token_id
        ids = self.prompt_ids([Message(role="user", content="x")])
        if bos is not None and ids[:2] == [bos, bos]:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template adds a second BOS ({self.tokenizer.bos_token}); "
                "remove it from the template"
            )

    def _check_terminator(self) -> None:
        """The template's own end of an answer must be what is learned and stopped at."""
        turns = [Message(role="user", content="x")]
        before = self.prompt_text(turns)
        try:
            after = self._render(
                [*turns, Message(role="assistant", content="y")], add_generation_prompt=False
            )
        except InputError:
            return  # some templates only render prompts
        if not after.startswith(before) or "y" not in after[len(before) :]:
            return
        tail = self._tokenize(after[len(before) :].partition("y")[2])
        special = set(self.tokenizer.all_special_ids)
        ends = [token for token in tail[:2] if token in special]
        if ends and ends[0] != self.terminator_id:
            wanted = self.tokenizer.convert_ids_to_tokens(ends[0])
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template ends an answer with {wanted} but the terminator is "
                f"{self.tokenizer.eos_token}; set model.terminator to '{wanted}'"
            )


def resolve_template(setting: str, tokenizer: Any) -> str | None:
    """The chat template that `model.template` asks for. Raises InputError."""
    if setting == "auto":
        return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if setting == "plain":
        return PLAIN_TEMPLATE
    if "{" in setting:
        return setting
    path = Path(setting)
    if not path.is_file():
        raise InputError(f"model.template = {setting!r}: not `auto`, `plain`, a template, or a readable file")
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Row:
    """One sequence to score: a prompt, and the completion whose tokens count."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    """Positions within the completion that do not count: the later prompts of a packed row."""

    @property
    def num_counted(self) -> int:
        """Tokens that carry loss."""
        return len(self.completion_ids) - len(self.ignored)

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. A causal model needs no attention mask then: padding comes after everything that counts."""

    input_ids: Tensor
    """[B, T]"""
    completion_mask: Tensor
    """[B, T], 1 where the token is part of the completion."""
    last: Tensor
    """[B], position of each row's last real token."""
    first_target: int
    """Earliest completion position in the batch; nothing before it needs logits."""


def cut(row: Row, *, max_length: int, max_prompt_length: int, truncation: str) -> tuple[Row, bool]:
    """A row that fits, and whether it had to be cut: first the prompt to its allowance, then the completion's end."""
    if row.length <= max_length:
        return row, False
    prompt = row.prompt_ids
    if len(prompt) > max_prompt_length:
        prompt = prompt[-max_prompt_length:] if truncation == "keep_end" else prompt[:max_prompt_length]
    room = max(max_length - len(prompt), 0)
    return Row(prompt, row.completion_ids[:room], tuple(one for one in row.ignored if one < room)), True


def collate(rows: Sequence[Row], *, pad_id: int, device: torch.device) -> Batch:
    """Pads rows to one rounded length."""
    longest = max(row.length for row in rows)
    width = -(-longest // LENGTH_BUCKET) * LENGTH_BUCKET
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.float32)
    for index, row in enumerate(rows):
        ids[index, : row.length] = torch.tensor([*row.prompt_ids, *row.completion_ids], dtype=torch.long)
        mask[index, len(row.prompt_ids) : row.length] = 1.0
        mask[index, [len(row.prompt_ids) + one for one in row.ignored]] = 0.0
    last = torch.tensor([row.length - 1 for row in rows])
    first = min(len(row.prompt_ids) for row in rows)
    return Batch(ids.to(device), mask.to(device), last.to(device), first)


def microbatches(
    items: Sequence[Item], length: Callable[[Item], int], *, max_tokens: int, sequences: int = 1
) -> Iterator[list[Item]]:
    """Cuts items into groups whose padded size stays within `max_tokens`; an item alone may exceed it.

    Items are grouped by similar length; the order within a step does not matter because losses are summed.
    """
    group: list[Item] = []
    widest = 0
    for item in sorted(items, key=length):
        grown = max(widest, length(item))
        if group and grown * (len(group) + 1) * sequences > max_tokens:
            yield group
            group, grown = [], length(item)
        group.append(item)
        widest = grown
    if group:
        yield group


def check_tokenizer_has_distinct_pad(tokenizer: Any, name: str) -> None:
    """A reward model reads the last token that is not padding, so padding must be a token of its own."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            f"{name}: the reward model's pad token is its EOS token, so its scores would not see the end of an answer; "
            "give it a pad token of its own"
        )
