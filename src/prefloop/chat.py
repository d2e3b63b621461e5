"""One side of `prefloop chat`: a policy and the conversation so far."""

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
