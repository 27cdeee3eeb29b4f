"""Files and folders that are there whole or not at all, also after a power failure. A leaf."""

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

_STAGING = ".new-"


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """A new folder `target` with `files`, by name. Raises OSError; nothing of it is there then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target.parent))
    try:
        staging.chmod(0o755)
        for name, content in files.items():
            _write(staging / name, content)
        _flush(staging)
        staging.rename(target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def replace_file(place: Path, content: bytes) -> None:
    """`place` holds `content` from one moment to the next. Raises OSError; it is as it was then."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    _write(temporary, content)
    temporary.replace(place)
    _flush(place.parent)


def drop_folders(parent: Path, kept: Collection[str]) -> None:
    """Remove the folders in `parent` but those named `kept`; only for who is alone in writing there."""
    for entry in folders(parent):
        if entry.name not in kept:
            shutil.rmtree(entry, ignore_errors=True)
    # Left behind by a writer that was killed.
    for leftover in parent.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def folders(parent: Path) -> list[Path]:
    """The folders in `parent`, but hidden ones; none where there is no such place. Raises OSError."""
    try:
        return [entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write(place: Path, content: bytes) -> None:
    with place.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
