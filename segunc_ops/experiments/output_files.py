"""Files that are written whole or not at all, in a folder that is tried before the work."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial")
# Enough that a file system which is full already does not find room for it.
_TRIAL_BYTES = 1 << 16


class OutputError(OSError):
    """A file or folder that cannot be written; the message names it."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once it is complete and on disk.

    Until then it lies beside it under a hidden name, and is removed whatever goes wrong; what a
    process leaves that is killed outright is for :func:`remove_partial_files`.

    Args:
        path: the file; its folder is made if need be.

    Raises:
        OutputError: it cannot be written, as on a full disk; what was there before is there still.
    """
    # Of a name of its own, so that no two processes ever write one file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except Exception as error:
        # torch.save raises an error of its own while that of the disk is handled.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OutputError(f"{path}: cannot be written ({cause.strerror or cause})") from error


def by_folder(paths: Iterable[Path]) -> dict[Path, set[str]]:
    """The names of files by the folder they lie in."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    return names


def remove_partial_files(folder: Path, names: Iterable[str | Path]) -> None:
    """Removes what killed processes left in a folder of the files with these names.

    Args:
        folder: where they lie, if it is there.
        names: of the files, with their sub-folders.
    """
    for parent, files in by_folder(folder / name for name in names).items():
        for path in parent.iterdir() if parent.is_dir() else ():
            found = _PARTIAL.fullmatch(path.name)
            if found and found[1] in files:
                path.unlink(missing_ok=True)


def try_room(files: Iterable[tuple[Path, int]]) -> None:
    """Tries whether files of these sizes fit beside each other on their disk; leaves nothing.

    Args:
        files: what they are to be called, in folders that are there, and their bytes.

    Raises:
        OutputError: one does not fit, or is larger than a file may be.
    """
    with ExitStack() as stack:
        for path, size in files:
            try:
                file = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
                for start in range(0, size, _TRIAL_BYTES):
                    # No two blocks alike, which some file systems would store once.
                    file.write(os.urandom(min(_TRIAL_BYTES, size - start)))
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(
                    f"{path}: will not fit ({error.strerror or error}), as it takes about "
                    f"{size / 1e6:.1f} MB; make room or choose another disk with --output"
                ) from error


def try_output(folder: Path, names: Collection[str] = ()) -> None:
    """Tries whether files can be written to a folder, which need not be there; leaves nothing.

    Args:
        folder: where they are to lie.
        names: what they are to be called.

    Raises:
        OutputError: a part of the path is no folder, cannot be written to or is on a full disk, or
            a folder stands where a file is to be written.
    """
    place = folder
    try:
        while True:
            try:
                place.lstat()
                break
            except (FileNotFoundError, NotADirectoryError):
                place = place.parent
        if not place.is_dir():
            raise OutputError(
                f"{place}: expected a folder for the output, got a file; name another with --output"
            )
        for name in names:
            if (folder / name).is_dir():
                raise OutputError(
                    f"{folder / name}: a file is to be written here, but there is a folder; move "
                    "it away or name another with --output"
                )
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{place}: cannot be written to ({error.strerror or error}); name another with --output"
        ) from error
