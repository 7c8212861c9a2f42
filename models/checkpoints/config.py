"""``config.json`` of a checkpoint, read key by key: what every key did is known at the end."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omnic.errors import BundleError, InputError

__all__ = ["Config", "Effect", "read_config"]

#: keys of every configuration that say nothing about what a decoder computes
_NO_EFFECT = {
    word: why
    for why, words in {
        "how the checkpoint was made or is called in transformers": """
            architectures auto_map transformers_version _name_or_path name_or_path model_type tokenizer_class
            torchscript is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size return_dict
            output_attentions
            output_hidden_states return_dict_in_generate prefix _commit_hash _attn_implementation
            _attn_implementation_autoset attn_implementation _experts_implementation problem_type finetuning_task
            task_specific_params id2label label2id num_labels pruned_heads tie_encoder_decoder use_return_dict
            chunk_size_feed_forward gradient_checkpointing keys_to_ignore_at_inference pad_token_id sep_token_id
            decoder_start_token_id unk_token_id use_bfloat16 tf_legacy_loss transformers.js_config unsloth_fixed""",
        "token ids; they go with the tokenizer": "bos_token_id eos_token_id",
        "of training or of other heads only": """
            initializer_range attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop
            embedding_dropout residual_dropout resid_dropout dropout output_router_logits router_aux_loss_coef
            aux_loss_alpha seq_aux router_jitter_noise input_jitter_noise use_cache summary_type summary_use_proj
            summary_activation summary_first_dropout summary_proj_to_labels summary_hidden_act initializer_factor""",
        "of sampling; say it to omnic run": """
            max_length min_length do_sample early_stopping num_beams temperature top_k top_p typical_p
            repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
            num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
            exponential_decay_length_penalty suppress_tokens begin_suppress_tokens num_beam_groups diversity_penalty
            output_scores""",
        "the tensors' own types count": "dtype torch_dtype",
    }.items()
    for word in words.split()
}

_UNSET: Any = object()


@dataclass(frozen=True)
class Effect:
    """What one key did.

    Attributes:
        key: dotted, as ``rope_parameters.factor``.
        value: as written, or the default that was taken.
        effect: the place of the spec it went to, or why it has none; empty for a key nobody read.
        given: the key is in the file (else a default was taken).
    """

    key: str
    value: Any
    effect: str
    given: bool


class Config:
    """The keys of a mapping, each read once and told what for.

    A value of another kind than wanted, or one that omnic cannot express, is an :class:`InputError` that names the
    key and the file.

    Args:
        values: the mapping.
        origin: the file, for messages.
        prefix: of the keys of an inner mapping.
    """

    def __init__(
        self, values: Mapping[str, Any], origin: str, prefix: str = "", _log: list[Effect] | None = None
    ) -> None:
        self._values, self.origin, self._prefix = values, origin, prefix
        self._log: list[Effect] = [] if _log is None else _log
        self._read: set[str] = set()
        self._inner: dict[str, Config] = {}
        self._assumed: dict[str, Any] = {}
        #: tokens the states shall hold, None for the trained length
        self.capacity: int | None = None
        #: names of the checkpoint's tensors, None where only the configuration is at hand
        self.tensors: Collection[str] | None = None

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._value(key) is not None

    def assume(self, **values: Any) -> None:
        """Take these values for keys that the file does not have: the family's defaults."""
        self._assumed |= values

    def _value(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._assumed.get(key)

    def given(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        return key in self._values

    # -- reading ------------------------------------------------------------------------------------------
    def raw(self, key: str, effect: str, default: Any = _UNSET) -> Any:
        """Return the value of a key as it stands; ``default`` where it is missing or null.

        Raises:
            InputError: there is none, and no default.
        """
        self._read.add(key)
        value = self._value(key)
        if value is None:
            if default is _UNSET:
                raise InputError(
                    f"{self.origin} has no '{self._prefix}{key}'", "the file is of another model, or damaged"
                )
            given = key in self._values
            if given or default is not None:
                self._log.append(Effect(self._prefix + key, None if given else default, effect, given))
            return default
        self._log.append(Effect(self._prefix + key, value, effect, key in self._values))
        return value

    def whole(self, key: str, effect: str, default: Any = _UNSET, *, least: int = 0) -> int:
        """Return a whole number that is at least ``least``."""
        value = self.raw(key, effect, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._kind(key, value, "a whole number")
        if value < least:
            raise InputError(f"{self.origin}: {self._prefix}{key} is {value}, less than {least}")
        return value

    def number(self, key: str, effect: str, default: Any = _UNSET, *, positive: bool = False) -> float:
        """Return a number, or one above 0 where nothing else has a meaning."""
        value = self.raw(key, effect, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._kind(key, value, "a number")
        if positive and value <= 0:
            raise InputError(f"{self.origin}: {self._prefix}{key} is {value}, not above 0")
        return float(value)

    def flag(self, key: str, effect: str, default: Any = _UNSET) -> bool:
        """Return true or false."""
        value = self.raw(key, effect, default)
        if value is not default and not isinstance(value, bool):
            raise self._kind(key, value, "true or false")
        return value

    def numbers(self, key: str, effect: str, default: Any = _UNSET) -> list[float]:
        """Return a list of numbers."""
        value = self.raw(key, effect, default)
        if value is default:
            return value
        if not isinstance(value, list) or not all(isinstance(v, int | float) for v in cast("list[Any]", value)):
            raise self._kind(key, value, "a list of numbers")
        return [float(v) for v in cast("list[Any]", value)]

    def words(self, key: str, effect: str, default: Any = _UNSET) -> list[str]:
        """Return a list of words."""
        value = self.raw(key, effect, default)
        if value is default:
            return value
        if not isinstance(value, list) or not all(isinstance(v, str) for v in cast("list[Any]", value)):
            raise self._kind(key, value, "a list of words")
        return cast("list[str]", value)

    def choice(self, key: str, effect: str, choices: Mapping[Any, Any], default: Any = _UNSET) -> Any:
        """Return what ``choices`` has for the value.

        Raises:
            InputError: the value is not among them.
        """
        value = self.raw(key, effect, default)
        if isinstance(value, dict | list) or value not in choices:
            known = ", ".join(json.dumps(c) for c in choices)
            raise InputError(
                f"{self.origin}: omnic cannot express {self._prefix}{key} = {json.dumps(value)}", f"it knows {known}"
            )
        return choices[value]

    def only(self, key: str, value: Any, why: str, default: Any = None) -> None:
        """Accept a key with one value (or ``default``, or missing) and nothing else."""
        if key not in self._values:
            self._read.add(key)
            return
        found = self.raw(key, why, value)
        if found not in (value, default):
            raise InputError(
                f"{self.origin}: omnic cannot express {self._prefix}{key} = {json.dumps(found)}",
                f"only {json.dumps(value)}: {why}",
            )

    def ignore(self, why: str, *keys: str) -> None:
        """Say of keys why they change nothing."""
        for key in keys:
            if key in self._values:
                self.raw(key, f"no effect: {why}", None)

    def section(self, key: str) -> Config | None:
        """Return the keys of an inner mapping, None where it is missing or null."""
        self._read.add(key)
        if key in self._inner:
            return self._inner[key]
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._kind(key, value, "a mapping")
        inner = Config(cast("dict[str, Any]", value), self.origin, f"{self._prefix}{key}.", self._log)
        self._inner[key] = inner
        return inner

    def _kind(self, key: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.origin}: {self._prefix}{key} is {json.dumps(value)[:60]}, not {wanted}")

    # -- what became of them ------------------------------------------------------------------------------
    def unread(self) -> tuple[str, ...]:
        """Return the keys that nothing read and that are not known to have no effect."""
        own = [self._prefix + k for k in self._values if k not in self._read and k not in _NO_EFFECT]
        return (*own, *(key for inner in self._inner.values() for key in inner.unread()))

    def effects(self) -> tuple[Effect, ...]:
        """Return what every key did, unread ones last."""
        idle = [
            Effect(self._prefix + k, v, f"no effect: {_NO_EFFECT[k]}", True)
            for k, v in self._values.items()
            if k not in self._read and k in _NO_EFFECT
        ]
        unread = [Effect(k, self._find(k), "", True) for k in self.unread()]
        read = {(e.key, e.effect): e for e in self._log}  # asked for in several layers, told once
        return (*read.values(), *idle, *unread)

    def _find(self, dotted: str) -> Any:
        value: Any = self._values
        if (own := dotted.removeprefix(self._prefix)) in value:  # keys of GGUF have dots of their own
            return value[own]
        for step in own.split("."):
            value = value[step]
        return value


def read_config(path: Path, what: str = "a checkpoint's configuration") -> Config:
    """Read a JSON object.

    Raises:
        BundleError: no such file, or no JSON object in it.
    """
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path} is not {what}: {error}", "fetch the file again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} is not {what}: it holds no object", "fetch the file again")
    return Config(cast("dict[str, Any]", values), str(path))
