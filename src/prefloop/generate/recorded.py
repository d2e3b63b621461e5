"""Completions from a file of groups, for data that was sampled elsewhere."""

from collections.abc import Iterable, Iterator

from prefloop.records import Group, Prompt


class RecordedGenerator:
    """Gives each prompt the completions that the file has for it."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups = {group.prompt.id: group for group in groups}

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """Yields one group a prompt, in order; a prompt that the file does not have yields no completions."""
        for prompt in prompts:
            yield self._groups.get(prompt.id, Group(prompt=prompt, completions=()))
