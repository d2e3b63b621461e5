"""Where rows and models come from."""

from typing import Annotated, Literal

from pydantic import Field

from prefloop.config.section import Section, shorthand

DataFormat = Literal[
    "auto", "prompt", "prompt_completion", "preference", "unpaired", "messages", "hh", "ultrafeedback",
    "online_rlhf", "alpaca", "sharegpt", "text", "groups", "llmbar",
]  # fmt: skip


class SourceSection(Section):
    """Where rows come from: a file, a folder, `hub:name`, or text that prefloop makes itself (`builtin:tales/...`)."""

    path: str
    """File (jsonl, json, csv, parquet, each also .gz), folder of such files, `hub:owner/name`, or `builtin:...`."""
    split: str = "train"
    """Split of a hub data set."""
    format: DataFormat = "auto"
    """Row format; `auto` looks at the fields of the first row and says what it found."""
    fields: dict[str, str] = {}
    """Renames columns before the format is recognised: {prefloop's name: name in your file}."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first rows only; more than the file has is fine."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """`stop` at the first bad row and name it, or `drop` bad rows and count them by reason."""


Source = Annotated[SourceSection, shorthand("path")]


class ModelSection(Section):
    """The language model everything starts from."""

    path: str = "builtin:tiny-llama"
    """Folder, hub name, or `builtin:tiny-llama` (a small Llama made from scratch on `sft.text`)."""
    revision: str | None = None
    """Hub revision; the resolved commit enters the artefact key."""
    template: str = "auto"
    """Chat template: `auto` (the tokenizer's), `plain` (turns joined as they are), a .jinja file, or the template."""
    terminator: str = "auto"
    """Token that ends an answer, learned in training and stopped at in sampling; `auto` is the tokenizer's EOS."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision. Master weights stay float32; bfloat16 uses autocast."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code in this process."""


Model = Annotated[ModelSection, shorthand("path")]
