"""The compiled code of a run: a folder of its own, and a marker of the process that uses it.

torch.compile keeps its code in one folder of the user, and a process that is killed while it writes leaves broken
files there that every later process loads.  So each run has a folder of its own, and a marker beside it whose lock
dies with the process: whoever finds the marker without its lock knows that the process before was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from omnic.errors import InputError, OmnicError

__all__ = ["CompileCache"]

# Where torch looks for compiled code; torch itself sets it for its worker processes.
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class CompileCache:
    """Makes torch keep compiled code in a run's folder; use it in a ``with`` around all that compiles.

    Args:
        run: folder of the run; the marker is in it.
        say: told when code of a killed process was thrown away.
        folder: where the code lies instead of in the run's folder, for several runs that may share it.

    Raises:
        InputError: another process that is alive works on the run, or the folder cannot be written.
    """

    def __init__(self, run: Path, say: Callable[[str], None], folder: Path | None = None) -> None:
        self.run, self.say, self._shared = run, say, folder is not None
        self.folder = (folder or run / "compiled").absolute()
        self.marker = run / "compiled.in-use"
        self._handle = -1
        self._before: str | None = None

    def __enter__(self) -> CompileCache:
        try:
            killed = self._mark()
            if killed and self.folder.exists() and any(self.folder.iterdir()):
                shutil.rmtree(self.folder)
                _drop_headers()
                self.say(f"{self.folder}: compiled code of a process that was killed is thrown away and made anew")
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._release()
            raise InputError(
                f"{self.folder} cannot be written: {error.strerror}", "free some space, or choose -o elsewhere"
            ) from error
        self._before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = str(self.folder)
        _forget()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = self._before
        _forget()
        # What an unforeseen error left behind is as doubtful as what a killed process left.
        if kind is None or issubclass(kind, OmnicError):
            self.marker.unlink(missing_ok=True)
        self._release()

    def drop(self) -> None:
        """Remove the code of a run that is finished; a folder that is shared stays."""
        if not self._shared:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self) -> bool:
        """Take the marker and its lock; tell whether a process that is gone left one."""
        while True:
            handle = os.open(self.marker, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.read(handle, 32).decode("ascii", "replace").strip()
                os.close(handle)
                raise InputError(
                    f"{self.run} is being trained by process {owner or 'unknown'}",
                    "wait for it, or choose another folder with -o",
                ) from error
            # Between open and lock the process before may have ended and removed the file.
            if self.marker.exists() and os.stat(self.marker).st_ino == os.fstat(handle).st_ino:
                break
            os.close(handle)
        self._handle = handle
        left = bool(os.read(handle, 32))
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        os.fsync(handle)
        return left

    def _release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _drop_headers() -> None:
    """Remove the precompiled headers that torch keeps for all processes of a user: half a one stops the compiler.

    A process that reads one goes on reading it, and one that finds none compiles without.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    for header in Path(default_cache_dir(), "precompiled_headers").glob("*.gch"):
        header.unlink(missing_ok=True)


def _forget() -> None:
    """Drop what this process remembers of code in another folder."""
    if "torch._inductor.utils" in sys.modules:
        from torch._inductor.utils import clear_caches

        clear_caches()
