"""Policies, references and reward models as ordinary transformers folders.

Everything that loads, makes or saves a model is here. A saved folder carries its chat template, terminator and pad token,
so that `AutoModelForCausalLM.from_pretrained` and inference servers open it as it is. Knows nothing about training.
"""

import contextlib
import ctypes
import logging
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from prefloop.batches import Codec, check_tokenizer_has_distinct_pad, resolve_template
from prefloop.config import ModelSection, RuntimeSection
from prefloop.interfaces import InputError, Unavailable

transformers_logging.disable_progress_bar()
Dtype = Literal["float32", "bfloat16"]
logger = logging.getLogger(__name__)

PAD = "<|pad|>"
TINY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|tale|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|tale|>{% endif %}"
)
UNUSED_TOKEN = re.compile(r"[<\[].*(pad|reserved_special).*[>\]]", re.IGNORECASE)
"""Tokens that a vocabulary keeps for padding or for nothing."""
HEAD = "score.weight"
"""The scalar head of a reward model."""
REWARD_NOTES = "prefloop_reward"
"""Key of config.json under which a reward model says what it is and how its scores are shifted and scaled."""
SCALAR_KINDS = frozenset({"bradley_terry", "margin_ranking", "plackett_luce", "sparrow"})
"""Reward models that are a transformers model with one output and nothing else."""
SCORING_KINDS = SCALAR_KINDS | {"ensemble", "multi_objective", "process", "rules"}
"""Reward models that score completions, whatever they are made of."""
TINY_VOCABULARY = 1024
TINY_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def device_of(runtime: RuntimeSection) -> torch.device:
    """The device models run on. Raises InputError when it is asked for but missing."""
    if runtime.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[runtime.device]:
        raise InputError(
            f"runtime.device = {runtime.device}: no such device here; `prefloop doctor` shows what there is"
        )
    return torch.device(runtime.device)


def stock_attention(runtime: RuntimeSection) -> str:
    """The attention asked of transformers when a model is loaded; prompt sharing takes over where groups are read."""
    return "sdpa" if runtime.attention == "flex" else runtime.attention


def on_device(model: PreTrainedModel, runtime: RuntimeSection) -> PreTrainedModel:
    """The model, moved to the device it runs on."""
    nn.Module.to(model, device_of(runtime))
    return model


def in_dtype(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The model with its weights in another type, for use without training."""
    nn.Module.to(model, getattr(torch, dtype))
    return model


def settle(runtime: RuntimeSection) -> None:
    """Fits torch to this machine: threads as asked, and freed memory kept for reuse on a CPU."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if platform.system() == "Linux" and device_of(runtime).type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to tune
            libc = ctypes.CDLL("libc.so.6")
            # large tensors come and go every step; returning them to the kernel costs a page fault per 4 KiB
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def _reading(path: str, what: str) -> Iterator[None]:
    """Turns what the libraries raise about an unreadable model into one line; their warnings are ours to check."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise InputError(
            f"{path}: the weights of this {what} cannot be read ({error}); copy or download them again"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:  # JSON of another shape than the libraries expect
        raise InputError(
            f"{path}: not a readable {what}: {type(error).__name__}: {error}; copy or download it again"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        first = " ".join(lines) if lines[0].rstrip().endswith(":") else lines[0]
        if (
            isinstance(error, OSError)
            and not Path(path).exists()
            and "/" in path
            and not path.startswith((".", "/"))
        ):
            raise Unavailable(f"{path}: cannot be fetched as a {what}: {first}") from error
        raise InputError(f"{path}: not a readable {what}: {first}") from error
    finally:
        transformers_logging.set_verbosity(before)


def _complete(path: str, loaded: Any, *, made_here: frozenset[str] = frozenset()) -> PreTrainedModel:
    """The model that was loaded with a report; refused where its files lack weights, which would be random then."""
    model, report = loaded
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])} - made_here)
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise InputError(
            f"{path}: weights are missing or have other shapes than config.json says: {lacking[0]}{more}; "
            "copy or download the folder again"
        )
    return model


def check_model_folder(path: str) -> None:
    """Refuses what cannot be a model before any library is asked. Raises InputError."""
    folder = Path(path)
    if folder.is_file():
        raise InputError(f"{path}: is a file; a model is a folder with config.json, or a hub name")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{path}: no config.json in this folder, so it is not a transformers model")
    if not folder.exists() and path.startswith((".", "/", "~")):
        raise InputError(f"{path}: no such model folder")


def load_tokenizer(path: str, *, revision: str | None = None) -> Any:
    """The tokenizer of a model folder or hub name. Raises InputError or Unavailable."""
    check_model_folder(path)
    with _reading(path, "tokenizer"):
        return AutoTokenizer.from_pretrained(path, revision=revision)


def load_codec(path: Path) -> Codec:
    """The codec of a model folder that prefloop saved."""
    return Codec(load_tokenizer(str(path)))


def context_of(model: Path | PretrainedConfig) -> int:
    """Tokens that a sequence may have, by the model's folder or its configuration."""
    config = AutoConfig.from_pretrained(model) if isinstance(model, Path) else model
    return int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30))


def load_policy(
    path: Path | str, runtime: RuntimeSection, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model with float32 weights, in evaluation mode, on its device."""
    check_model_folder(str(path))
    with _reading(str(path), "language model"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        _check_architecture(str(path), config, CAUSAL_ENDINGS, "a language model")
        loaded = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=torch.float32,
            attn_implementation=stock_attention(runtime),
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return on_device(_complete(str(path), loaded), runtime).eval()


def load_reward_model(
    path: Path | str, runtime: RuntimeSection, *, kinds: frozenset[str] = SCALAR_KINDS
) -> tuple[PreTrainedModel, Codec]:
    """A reward model of one of the kinds and its codec. Refuses pairwise and classification models, and pad = eos."""
    check_model_folder(str(path))
    with _reading(str(path), "reward model"):
        config = AutoConfig.from_pretrained(path)
        _check_architecture(str(path), config, REWARD_ENDINGS, "a scalar reward model")
        if config.num_labels != 1:
            raise InputError(
                f"{path}: has {config.num_labels} outputs, so it is a multi-objective or classification model; "
                "a scalar reward model has one"
            )
        if (kind := reward_notes(config).get("kind", "bradley_terry")) not in kinds:
            raise InputError(
                f"{path}: is a reward model of kind {kind}, but {' or '.join(sorted(kinds))} is needed here"
            )
        tokenizer = load_tokenizer(str(path))
        check_tokenizer_has_distinct_pad(tokenizer, str(path))
        loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=stock_attention(runtime),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model = _complete(str(path), loaded)
    model.config.pad_token_id = tokenizer.pad_token_id
    return on_device(model, runtime).eval(), Codec(tokenizer)


def reward_notes(config: Any) -> dict[str, Any]:
    """What a reward model that prefloop trained says about itself; nothing for others."""
    return getattr(config, REWARD_NOTES, None) or {}


def note_reward(model: PreTrainedModel, **notes: object) -> None:
    """Adds to what the model says about itself; saved with it."""
    setattr(model.config, REWARD_NOTES, reward_notes(model.config) | notes)


CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
REWARD_ENDINGS = ("ForSequenceClassification",)


def _check_architecture(path: str, config: Any, endings: tuple[str, ...], role: str) -> None:
    architectures = list(config.architectures or [])
    if architectures and not any(name.endswith(endings) for name in architectures):
        raise InputError(f"{path}: is {', '.join(architectures)}, not {role} (…{endings[0]})")


def make_tiny_model(texts: Sequence[str], folder: Path, *, seed: int) -> None:
    """A small Llama with random weights and a byte-pair tokenizer learned from `texts`, saved to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = [PAD, "<|bos|>", "<|end|>", "<|user|>", "<|tale|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,  # type: ignore[call-arg]
        special_tokens=special,  # type: ignore[call-arg]
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # type: ignore[call-arg]
        show_progress=False,  # type: ignore[call-arg]
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token=PAD,
        additional_special_tokens=["<|user|>", "<|tale|>"],
    )
    fast.chat_template = TINY_TEMPLATE
    config = LlamaConfig(vocab_size=len(fast), **TINY_SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save_model(model, fast, folder, dtype="float32")


def import_model(section: ModelSection, folder: Path, runtime: RuntimeSection) -> dict[str, Any]:
    """Brings a model folder or hub model into the workspace with its template, terminator and pad token settled.

    Returns what was settled, for the manifest. Raises InputError for a template or terminator that cannot work.
    """
    tokenizer = load_tokenizer(section.path, revision=section.revision)
    template = resolve_template(section.template, tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    former_eos = tokenizer.eos_token
    if section.terminator != "auto":
        token_id = tokenizer.convert_tokens_to_ids(section.terminator)
        if token_id is None or (
            token_id == tokenizer.unk_token_id and section.terminator != tokenizer.unk_token
        ):
            raise InputError(f"model.terminator = {section.terminator!r}: {section.path} has no such token")
        tokenizer.eos_token = section.terminator
    model = load_policy(
        section.path, runtime, revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    added = _settle_pad(tokenizer, model, former_eos)
    Codec(tokenizer)  # checks template, BOS and terminator before anything is spent
    save_model(model, tokenizer, folder, dtype=section.dtype)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "architecture": type(model).__name__,
        "terminator": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "pad_added": added,
    }


def _settle_pad(tokenizer: Any, model: PreTrainedModel, former_eos: str | None) -> bool:
    """Makes sure that padding is a token of its own that text never holds; returns whether the vocabulary grew."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    reserved = sorted(one for one in tokenizer.get_vocab() if UNUSED_TOKEN.fullmatch(one))
    replaced = [one for one in (former_eos, tokenizer.unk_token) if one not in (None, tokenizer.eos_token)]
    if reserved or replaced:
        tokenizer.pad_token = (*reserved, *replaced)[0]
        return False
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) <= embeddings.weight.shape[0]:
        return False
    model.resize_token_embeddings(len(tokenizer))
    return True


def new_reward_model(trunk: Path | str, runtime: RuntimeSection) -> tuple[PreTrainedModel, Codec]:
    """A reward model on a language model's trunk: its scalar head starts at zero, so all scores do."""
    tokenizer = load_tokenizer(str(trunk))
    if not tokenizer.chat_template or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise InputError(
            f"{trunk}: reward.start must be `sft` or a model with a chat template and its own pad token"
        )
    with _reading(str(trunk), "language model"):
        loaded = AutoModelForSequenceClassification.from_pretrained(
            trunk,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation=stock_attention(runtime),
            pad_token_id=tokenizer.pad_token_id,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model = _complete(str(trunk), loaded, made_here=frozenset({HEAD}))
    nn.init.zeros_(model.get_parameter(HEAD))
    setattr(model.config, REWARD_NOTES, {})  # of the reward model that it starts from, if it does
    return on_device(model, runtime), Codec(tokenizer)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a model's trunk, in the order in which they are computed. Raises InputError where there are none."""
    number = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise InputError(f"{type(model).__name__}: its layers cannot be told apart by their number, {number}")


def save_model(
    model: PreTrainedModel, tokenizer: Any, folder: Path, *, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Saves weights, tokenizer and generation defaults as an ordinary transformers folder."""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config = GenerationConfig.from_model_config(model.config)
    nn.Module.to(model, getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.init_kwargs.pop(
        "local_files_only", None
    )  # whether the hub was switched off: the bytes must not tell
    tokenizer.save_pretrained(folder)
