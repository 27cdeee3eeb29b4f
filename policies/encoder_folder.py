"""A folder with a sentence-transformers ONNX export, read: the model, its tokenizer, and how its makers use it.

Everything but the model and `tokenizer.json` is optional:

    model.onnx or onnx/model.onnx       or the only *.onnx of the two places
    config.json                         vocab_size, max_position_embeddings
    tokenizer_config.json               model_max_length
    sentence_bert_config.json           max_seq_length, do_lower_case
    modules.json, 1_Pooling/config.json how token vectors become a text vector
    config_sentence_transformers.json   prompts and default_prompt_name: the prefix of every text
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    # sum / sqrt(n) points where the mean points, and every vector is brought to unit length.
    "pooling_mode_mean_sqrt_len_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_MODULES_UNDERSTOOD = {"Transformer", "Pooling", "Normalize"}
_DEFAULT_MAX_TOKENS = 512
# Tokenizers without a limit say so by numbers like 1e30.
_ABSURD_MAX_TOKENS = 1_000_000
# These count positions from the padding id + 1, so that many of their positions are never used.
_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer"}


@dataclass(frozen=True)
class EncoderFolder:
    """What the folder says. `pooling` is None where it names none; `vocab_size` where config.json has none."""

    name: str
    model: bytes
    tokenizer: bytes
    pooling: str | None
    more_modules: tuple[str, ...]
    prefix: str
    lower_case: bool
    max_tokens: int
    vocab_size: int | None


def read_encoder_folder(folder: Path) -> EncoderFolder:
    """Raises ValueError, in one line, where a file is missing or asks for what is not supported; OSError."""
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    model = _model_file(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError("there is no tokenizer.json")
    config = _json(folder / "config.json")
    sentence = _json(folder / "sentence_bert_config.json")
    prefix = _prefix(_json(folder / "config_sentence_transformers.json"))
    pooling, more_modules = _pooling(folder, prefix)
    vocab_size = config.get("vocab_size")
    return EncoderFolder(
        name=folder.resolve().name,
        model=model.read_bytes(),
        tokenizer=(folder / "tokenizer.json").read_bytes(),
        pooling=pooling,
        more_modules=more_modules,
        prefix=prefix,
        lower_case=sentence.get("do_lower_case") is True,
        max_tokens=_max_tokens(sentence, _json(folder / "tokenizer_config.json"), config),
        vocab_size=vocab_size if isinstance(vocab_size, int) else None,
    )


def _model_file(folder: Path) -> Path:
    for path in (folder / "model.onnx", folder / "onnx" / "model.onnx"):
        if path.is_file():
            return path
    found = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError("there is no model.onnx and no onnx/model.onnx")
    names = ", ".join(str(path.relative_to(folder)) for path in found)
    raise ValueError(f"there are several models ({names}): name the one to use model.onnx")


def _json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is no such file."""
    found = _read_json(path, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return found


def _read_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error


def _pooling(folder: Path, prefix: str) -> tuple[str | None, tuple[str, ...]]:
    """(pooling, kinds of module after it that are not ours to follow)."""
    modules = _read_json(folder / "modules.json", [])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError("modules.json is not a list of modules")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    paths = [str(m.get("path", "")) for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    config = _json(folder / (paths[0] if paths else "1_Pooling") / "config.json")
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    more = tuple(kind for kind in kinds if kind not in _MODULES_UNDERSTOOD)
    if not modes:
        return None, more
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise ValueError(f"its pooling ({' and '.join(modes)}) is not one of {', '.join(_POOLINGS)}")
    if prefix and config.get("include_prompt") is False:
        raise ValueError("its pooling leaves out the tokens of the prompt, which is not supported")
    return _POOLINGS[modes[0]], more


def _prefix(config: dict[str, Any]) -> str:
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"config_sentence_transformers.json has no prompt {name!r}, its default_prompt_name")
    return str(prompts[name])


def _max_tokens(sentence: dict[str, Any], tokenizer: dict[str, Any], config: dict[str, Any]) -> int:
    """Tokens of a text, special ones included: the first limit given, never more than there are positions."""
    positions = _limit(config.get("max_position_embeddings"))
    if positions is not None and config.get("model_type") in _POSITIONS_AFTER_PADDING:
        padding = config.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    asked = _limit(sentence.get("max_seq_length")) or _limit(tokenizer.get("model_max_length"))
    return min(asked or positions or _DEFAULT_MAX_TOKENS, positions or _ABSURD_MAX_TOKENS)


def _limit(value: object) -> int | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _ABSURD_MAX_TOKENS
    return int(value) if usable else None  # type: ignore[call-overload]
