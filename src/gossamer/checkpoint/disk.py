"""Files that survive a kill, a full disk and a power cut; locks that end with their process.

    write      temporary file in the same folder -> fsync -> rename -> fsync of the folder
               leaves the old file or the new file, never a part of a file
    append     one line -> fsync
               leaves, at worst, an incomplete last line
    lock       flock on a file that contains the number of the process that holds it
               the system releases it when the process ends

A temporary file is locked while it is written. So the next writer can recognise the temporary files of processes that
have ended, and removes them.
"""

# pyright: strict

import errno
import os
import re
import secrets
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._errors import UsageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of file systems without locks
BEYOND = 1 << 30  # the byte that is locked on Windows: beyond the content, because these locks prevent reading


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A temporary file to write into. At the end it is synchronised and renamed to ``path``.

    Raises: UsageError if that fails. The old file then stays, and the temporary file is removed.
    """
    try:
        make(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        sweep(path)
        handle, temporary = _temporary(path)
        try:
            yield temporary
            sync(temporary)
            if sys.platform == "win32" and handle is not None:
                os.close(handle)  # Windows does not rename open files
                handle = None
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise unwritten(path, error) from error


def write(path: Path, text: str) -> None:
    """Replaces the text of a file. Raises UsageError if that fails."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append(path: Path, line: str) -> None:
    """Adds one line to a text file. Raises UsageError if that fails."""
    try:
        born = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        if born:
            sync(path.parent)
    except OSError as error:
        raise unwritten(path, error) from error


def make(folder: Path) -> list[Path]:
    """Makes a folder and its parents. Returns the new folders, innermost first. Raises OSError."""
    new: list[Path] = []
    for one in (folder, *folder.parents):
        if one.exists():
            break
        new.append(one)
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(new):
        sync(one.parent)
    return new


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, has been written to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows cannot synchronise folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, *LOCKLESS):
            raise
        # else it is a folder, on a file system that cannot synchronise folders
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Removes the temporary files of ``path`` whose writers have ended. Their files are not locked."""
    if sys.platform == "win32":
        return
    # gossamer 0.1.0 wrote the second form, and the form without eight characters
    own = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8}|[a-z0-9_]{8})?\.tmp")
    for name in os.listdir(path.parent):
        if name.startswith(path.name) and own.fullmatch(name):
            _remove_unlocked(path.parent / name)


@contextmanager
def lock(path: Path, what: str) -> Generator[None, None, None]:
    """Holds the lock of the file ``path``. The file exists while the lock is held, and after its process was killed.

    Raises: UsageError, in the name of ``what``, if another process, or other code in this process, holds the lock.
    """
    try:
        handle = _locked(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unwritten(path, error) from error
    if handle is None:
        holder = path.read_text(errors="replace").strip() if path.is_file() else ""
        by = f"process {holder}" if holder else "another process"
        raise UsageError(what, f"{by} is writing here", remedy="wait until it has ended, end it, or use another folder")
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        if sys.platform != "win32":
            path.unlink(missing_ok=True)  # before the lock is released, so that the next process makes a new file
            with suppress(FileNotFoundError):  # the folder may have been removed
                sync(path.parent)
        os.close(handle)
        if sys.platform == "win32":
            path.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> UsageError:
    """The UsageError that explains why a file could not be written."""
    if error.errno in FULL:
        remedy = "free some space, and continue: the previous file is complete"
        return UsageError(str(path), f"the disk is full: {error.strerror}", remedy=remedy)
    remedy = "a path that exists and can be written; its parents must be folders"
    return UsageError(str(path), f"cannot be written: {error.strerror or error}", remedy=remedy)


# -------------------------------------------------------------------- details


def _temporary(path: Path) -> tuple[int | None, Path]:
    """A handle that keeps a new file locked (None on Windows), and the new file, in the folder of ``path``."""
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if sys.platform == "win32":
            return None, temporary
        handle = _locked(temporary, os.O_RDWR)
        if handle is not None:
            return handle, temporary


def _locked(path: Path, flags: int) -> int | None:
    """A handle that holds the lock of the file with this name; None if the lock is held already."""
    while True:
        try:
            handle = os.open(path, flags, 0o666)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                raise
            return None
        try:
            if not _try(handle):
                os.close(handle)
                return None
            there = os.stat(path)
        except FileNotFoundError:
            os.close(handle)  # its last holder has removed the file
            continue
        if os.path.samestat(there, os.fstat(handle)):
            return handle
        os.close(handle)


def _try(handle: int) -> bool:
    """Tries to lock an open file. Returns False if it is locked already."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, BEYOND, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in LOCKLESS:
            said = "this file system has no locks: two processes can write the same files at the same time"
            warnings.warn(said, stacklevel=2)
            return True
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _remove_unlocked(path: Path) -> None:
    handle = _locked(path, os.O_RDWR)
    if handle is not None:
        path.unlink(missing_ok=True)
        os.close(handle)
