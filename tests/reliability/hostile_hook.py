"""Whether anything ran: an audit hook over one command, and what it counts as running code.

The interpreter tells a hook of every import, compilation, execution, process, socket, file opened and native library loaded.
While the hook is armed, an event of these kinds is noted where it is not what reading a file needs:

    exec, compile            of code that is not metarec's or an installed package's own
    import                   of a module that no installed package has
    os.system, os.exec, subprocess.Popen, os.fork, os.posix_spawn, pty.spawn     all; but for the reader of legacy files
    socket.connect, .bind, .getaddrinfo                                          all
    open for writing, os.mkdir, os.rename, os.remove, os.link, os.symlink ...    outside of the allowed directories
    pickle.find_class                                                            all: nothing is unpickled here
    os.putenv, os.chmod, os.chown, os.kill, ctypes.dlopen                        all

A marker file is looked for as well, in case something runs where no hook sees it.
"""

from __future__ import annotations

import getpass
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROCESSES = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
SOCKETS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip
ALWAYS = ("os.kill", "os.chflags", "os.setxattr", "ctypes.dlopen", "webbrowser.open", "ftplib.connect")
HYDRA_SETS = ("HYDRA_", "PYTHONWARNINGS", "METAREC_", "OMP_", "KMP_", "MKL_", "CUBLAS_", "TORCH")
JOKES = ("antigravity", "this", "__hello__")  # modules of the standard library that hostile files here ask for
ROOTS = [Path(path).resolve() for path in {*sysconfig.get_paths().values(), *map(str, Path(__file__).parents[2:3])}]
_LEGACY = "metarec.runs.legacy"


class Watch:
    """What ran, while armed; one for the whole process, since an audit hook cannot be taken out again."""

    def __init__(self) -> None:
        self.armed, self.allowed = False, list[Path]()
        self.noted: list[str] = []
        self._children = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        self.armed = False  # what is asked below makes events of its own
        try:
            if (found := self._judge(event, args)) is not None:
                self.noted.append(f"{event}: {found}")
        finally:
            self.armed = True

    def _judge(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "subprocess.Popen":
            words = [str(word) for word in args[1]]
            self._children = self._children or _LEGACY in words
            asks_commit = words[:2] == ["git", "-C"] and words[3:] == ["rev-parse", "HEAD"]  # of the run card
            return None if _LEGACY in words or asks_commit else str(words)[:200]
        if event == "os.kill" and args[1] == 9 and self._children:  # the reader of legacy files, when it has answered
            return None
        if event == "pickle.find_class":
            return f"{args[0]}.{args[1]}"
        if event in PROCESSES or event in SOCKETS or event in ALWAYS:
            return None if event == "ctypes.dlopen" and self._installed(args[0]) else str(args)[:200]
        if event == "os.putenv":
            return None if os.fsdecode(args[0]).startswith(HYDRA_SETS) else str(args)[:200]
        if event in ("exec", "compile"):
            name = getattr(args[0], "co_filename", None) if event == "exec" else args[1]
            return None if self._ours(os.fsdecode(name) if isinstance(name, str | bytes) else "") else str(name)[:200]
        if event == "import" and args[1] is not None:
            return None if self._installed(args[1]) else str(args[1])[:200]
        if event == "open" and isinstance(args[0], str | bytes) and isinstance(args[2], int):
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            unnamed = os.path.isdir(args[0])  # a file without a name, in the directory of temporary ones
            return str(args[0]) if writes and not unnamed and not self._allowed(args[0]) else None
        if event in CHANGES:
            paths = [path for path in args[:2] if isinstance(path, str | bytes | os.PathLike)]
            return None if all(self._allowed(path) for path in paths) else str(paths)[:200]
        return None

    def _ours(self, name: str) -> bool:
        """Code of an installed package, of metarec or of these tests; code without a file is a library's own making
        (dataclasses, namedtuples), which only code with a file can ask for."""
        return name.startswith("<") or self._installed(name)

    def _installed(self, name: Any) -> bool:
        if name is None or not os.path.isabs(os.fsdecode(name)):
            return True  # frozen, or a library by its bare name
        path = Path(os.fsdecode(name))
        return any(path.is_relative_to(root) or path.resolve().is_relative_to(root) for root in ROOTS)

    def _allowed(self, path: Any) -> bool:
        name = os.fsdecode(path)
        full = Path(os.path.abspath(name))
        if name == os.devnull or "__pycache__" in name:
            return True
        return any(full.is_relative_to(place) and _real(full).is_relative_to(place) for place in self.allowed)


def _inductor() -> Path:
    """Where torch keeps what it compiles: a name of its own in the directory of temporary files."""
    return Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


_WATCH: Watch | None = None


@contextmanager
def watched(*allowed: Path) -> Iterator[list[str]]:
    """The events that count as running code, noted inside of the block; files may be written below `allowed`."""
    global _WATCH
    _WATCH = _WATCH or Watch()
    _WATCH.noted, before = [], set(sys.modules)
    _WATCH.allowed = [_real(path) for path in (*allowed, _inductor())]
    noted = _WATCH.noted
    _WATCH.armed = True
    try:
        yield noted
    finally:
        _WATCH.armed = False
        for name in sorted(set(sys.modules) - before):
            file = getattr(sys.modules[name], "__file__", None)
            if name in JOKES or (file and not _WATCH._installed(file)):
                noted.append(f"new module: {name} from {file}")
