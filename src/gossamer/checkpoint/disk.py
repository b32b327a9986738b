"""Files that survive a kill, a full disk and a power cut; locks that end with their process.

    write      temporary beside the file -> fsync -> rename -> fsync of the folder
               leaves the old file or the new one, never a part of one
    append     one line -> fsync
               leaves at worst a last line that is incomplete
    lock       flock on a file that names its holder
               the system releases it when the holder dies

A temporary file is locked while it is written. So the next writer finds the temporary files of dead writers, and
removes them.
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
BEYOND = 1 << 30  # the byte that Windows locks: beyond the content, because its locks keep readers out


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A temporary file to write into. At the end it is synchronised and renamed to ``path``.

    Raises: UsageError where that fails. The old file stays then, and the temporary file is removed.
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
    """Replaces a text file. Raises UsageError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append(path: Path, line: str) -> None:
    """Adds one line to a text file. Raises UsageError."""
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
    """Makes a folder and those above it; returns the new ones, innermost first. Raises OSError."""
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
    """Waits until a file, or the list of names in a folder, is on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows cannot synchronise folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, *LOCKLESS):
            raise
        # otherwise it is a folder on a file system that cannot synchronise folders
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Removes the temporary files of ``path`` whose writers are dead: those that are not locked."""
    if sys.platform == "win32":
        return
    # gossamer 0.1.0 wrote the second form, and the one without eight characters
    own = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8}|[a-z0-9_]{8})?\.tmp")
    for name in os.listdir(path.parent):
        if name.startswith(path.name) and own.fullmatch(name):
            _remove_unlocked(path.parent / name)


@contextmanager
def lock(path: Path, what: str) -> Generator[None, None, None]:
    """Holds the lock of the file ``path``. The file exists only while the lock is held, or after its holder died.

    Raises: UsageError, with ``what`` as the name, if another process holds the lock, or this one holds it elsewhere.
    """
    try:
        handle = _locked(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unwritten(path, error) from error
    if handle is None:
        holder = path.read_text(errors="replace").strip() if path.is_file() else ""
        by = f"process {holder}" if holder else "another process"
        raise UsageError(what, f"{by} is writing here", remedy="wait until it has ended, or end it; or another folder")
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        if sys.platform != "win32":
            path.unlink(missing_ok=True)  # before the lock is released, so that the next holder makes a new file
            with suppress(FileNotFoundError):  # the folder was removed
                sync(path.parent)
        os.close(handle)
        if sys.platform == "win32":
            path.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> UsageError:
    """The error that says why a file could not be written."""
    if error.errno in FULL:
        remedy = "free some space, and continue: the file that was there before is complete"
        return UsageError(str(path), f"the disk is full: {error.strerror}", remedy=remedy)
    remedy = "a place that exists and can be written, and a folder where a folder is needed"
    return UsageError(str(path), f"cannot be written: {error.strerror or error}", remedy=remedy)


# -------------------------------------------------------------------- details


def _temporary(path: Path) -> tuple[int | None, Path]:
    """A new file beside ``path``, and the handle that keeps it locked."""
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if sys.platform == "win32":
            return None, temporary
        handle = _locked(temporary, os.O_RDWR)
        if handle is not None:
            return handle, temporary


def _locked(path: Path, flags: int) -> int | None:
    """A handle that holds the lock of the file that has this name now; None if the lock is held elsewhere."""
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
            os.close(handle)  # its last holder has removed it since
            continue
        if os.path.samestat(there, os.fstat(handle)):
            return handle
        os.close(handle)


def _try(handle: int) -> bool:
    """Locks an open file, unless it is locked already."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, BEYOND, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in LOCKLESS:
            said = "this file system has no locks: nothing keeps two processes from writing the same files"
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
