"""Talking with a policy: one side of `prefloop chat`, and the worker process that a labelling server starts.

The worker (`python -m prefloop.chat FOLDER`) reads a JSON object a line from its input, until it ends, and answers each
with a line. Whatever libraries print goes to its error output.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable

from prefloop.config import GenerateSection, RuntimeSection
from prefloop.generate.groups import Author
from prefloop.generate.hf import hf_generator
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Message, Prompt


class Conversation:
    """Remembers the turns and answers the next one."""

    def __init__(self, folder: str, *, temperature: float, max_new_tokens: int) -> None:
        from pathlib import Path

        options = GenerateSection(
            num_completions=1,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            max_prompt_length=100_000,
        )
        self._generator = hf_generator(
            load_policy(folder, RuntimeSection()),
            load_codec(Path(folder)),
            options,
            seed=0,
            author=Author(folder, 0),
            runtime=RuntimeSection(),
        )
        self._turns: tuple[Message, ...] = ()

    def start_over(self) -> None:
        """Forgets the conversation."""
        self._turns = ()

    def answer(self, message: str) -> str:
        """The policy's next turn; a conversation that no longer fits the context says so."""
        asked = (*self._turns, Message(role="user", content=message))
        (group,) = self._generator.generate([Prompt.of(asked)])
        if not group.completions:
            return "(the conversation is longer than the model's context; an empty line starts over)"
        text = group.completions[0].text
        self._turns = (*asked, Message(role="assistant", content=text))
        return text


def answer_lines(folder: str, lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Answers each line, which has messages, temperature, max_new_tokens and seed."""
    from pathlib import Path

    runtime = RuntimeSection()
    model, codec = load_policy(folder, runtime), load_codec(Path(folder))
    for line in lines:
        asked = json.loads(line)
        options = GenerateSection(
            num_completions=1,
            temperature=asked["temperature"],
            max_new_tokens=asked["max_new_tokens"],
            max_prompt_length=100_000,
        )
        generator = hf_generator(
            model, codec, options, seed=asked["seed"], author=Author(folder, 0), runtime=runtime
        )
        messages = tuple(Message.model_validate(one) for one in asked["messages"])
        (group,) = generator.generate([Prompt.of(messages)])
        if not group.completions:
            write(json.dumps({"error": "the conversation is longer than the model's context"}) + "\n")
            continue
        found = group.completions[0]
        said = {
            "text": found.text,
            "finish_reason": found.finish_reason,
            "token_ids": found.token_ids,
            "token_logps": found.token_logps,
        }
        write(json.dumps(said) + "\n")


def main() -> None:
    """The worker process."""
    with os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1) as answers:
        os.dup2(2, 1)
        answer_lines(sys.argv[1], sys.stdin, answers.write)


if __name__ == "__main__":
    main()
