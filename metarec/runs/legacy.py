"""Import of PyTorch ``.pt`` and ``.pth`` files: the one place that opens them, in a process that may do nothing else.

Only a flat dict of tensors is taken, either the file's top level or under ``model_state_dict`` or ``state_dict``. The
loader runs with ``weights_only=True``, stated and without any second try. That is needed and not enough: it bounds no
memory, and it is a program over foreign bytes that has had holes. So

 1  the archive is looked at first: entries must be stored, not compressed, and all of them together no larger than the file
    (a small file cannot claim gigabytes);
 2  a child process opens the file: it is handed one descriptor to read and one to write, has its memory, processor time,
    open files and processes limited (`limits`), a time limit from outside, and an audit hook that ends it where anything
    is started, connected to, imported or opened;
 3  the child first tells names, types and shapes, found without reading a single number (device "meta"); the caller
    compares them with what its model has (`accept`), and only then are the tensors read;
 4  they come back as safetensors, and are held against what was told.

    python -m metarec.runs.legacy READ WRITE SIZE      the child; READ, WRITE: descriptors that it was started with
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from metarec import strict_json
from metarec.errors import CheckpointError

_NESTED = ("model_state_dict", "state_dict")
_FIX = "save it with torch.save(model.state_dict(), path), or give a metarec checkpoint"
SECONDS = 60.0  # of the processor, to start and read, and one more for every BYTES_A_SECOND
BYTES_A_SECOND = 50e6
MOST = 10_000  # tensors
ROOM = 2**28  # bytes that the child may take beside the tensors, which stand there three times
FORBIDDEN = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.mkdir",
    "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.kill", "os.putenv", "os.truncate", "shutil.",
    "socket.", "import", "pickle.", "ctypes.", "exec", "compile", "pty.", "webbrowser.", "urllib.", "ftplib.", "smtplib.",
    "tempfile.",
)  # fmt: skip
Accept = Callable[[dict[str, Tensor]], object]


def read_legacy(path: Path, accept: Accept | None = None) -> dict[str, Tensor]:
    """The named tensors of ``path``, of any shape [*S]: dense, contiguous and on the CPU; anything else in it is a
    CheckpointError.

    ``accept`` is given tensors of the same names, types and shapes without numbers (device "meta") before any number is
    read, and raises for what the caller has no place for.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_archive(path, file, size)
        with tempfile.TemporaryFile() as result:
            told = _child(path, file.fileno(), result.fileno(), size, accept)
            result.seek(0)
            data = result.read(2 * size + ROOM)
    try:
        found = {name: value.clone() for name, value in parse_tensors(data).items()}
    except (SafetensorError, ValueError, KeyError, AssertionError) as error:
        raise CheckpointError(path, "damaged", f"its tensors did not come through ({error})", _FIX) from error
    if _described(found) != told:
        raise CheckpointError(path, "damaged", "its tensors are not those that it told first", _FIX)
    return {name: found[name] for name in told}


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO without a writer would hang
    except OSError as error:
        value = "missing" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise CheckpointError(path, value, error.strerror or "cannot be read", "check the path") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise CheckpointError(path, stat.filemode(mode), "not a regular file", "give the .pth file itself")
    with open(handle, "rb") as file:
        yield file


def _check_archive(path: Path, file: IO[bytes], size: int) -> None:
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(path, "damaged", f"no PyTorch archive ({error})", _FIX) from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise CheckpointError(path, entry.filename, "a compressed entry, which PyTorch never writes", _FIX)
    if (total := sum(entry.file_size for entry in entries)) > size:
        raise CheckpointError(path, f"{total:,} bytes", f"its entries overlap: the file has {size:,} bytes", _FIX)


def _child(path: Path, read: int, write: int, size: int, accept: Accept | None) -> dict[str, list[Any]]:
    """Name -> [type, shape] of the tensors that the child has written to the descriptor `write`."""
    package = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-P", "-m", "metarec.runs.legacy", str(read), str(write), str(size)]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(read, write),
        env=environment, cwd="/",
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        # of the wall, against a hang alone: the processor's own limit is in `limits`, and a machine may be busy
        clock = threading.Timer(5 * (SECONDS + size / BYTES_A_SECOND), child.kill)
        clock.daemon = True
        clock.start()
        try:
            told = _answer(path, child.stdout.readline())
            if accept is not None:
                accept({name: _numberless(path, *what) for name, what in told.items()})
            child.stdin.write(b"go\n")
            child.stdin.flush()
            if _answer(path, child.stdout.readline()) != {"done": True}:
                raise CheckpointError(path, "the reader", "was ended by its limits", _FIX)
        except BrokenPipeError as error:
            raise CheckpointError(path, "the reader", "was ended by its limits", _FIX) from error
        finally:
            clock.cancel()
            child.kill()
    return told


def _answer(path: Path, line: bytes) -> dict[str, Any]:
    """What the child said; CheckpointError where it refused the file, or was ended."""
    if not line:
        what = "the process that reads it was ended: it asks for more memory or time than its size allows"
        raise CheckpointError(path, "no answer", what, _FIX)
    found: dict[str, Any] = strict_json.loads(line)
    if "refused" in found:
        where, value, what = found["refused"]
        raise CheckpointError(f"{path}: {where}" if where else path, value, what, _FIX)
    return found


def _numberless(path: Path, kind: str, shape: list[int]) -> Tensor:
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(path, kind, "no type of numbers", _FIX)
    return torch.empty(shape, dtype=dtype, device="meta")


def _described(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    return {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in tensors.items()}


# --- the child ------------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """(where in the file, value, what is wrong)"""


def limits(size: int) -> None:
    """Bound what this process may take from now on, for a file of so many bytes."""
    import resource

    linux = sys.platform == "linux"
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if linux else 2**40
    processor = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + int(SECONDS + size / BYTES_A_SECOND)
    for kind, most in (
        (resource.RLIMIT_AS, taken + 3 * size + ROOM), (resource.RLIMIT_CPU, processor), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 2 * size + ROOM), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 0),
    ):  # fmt: skip
        resource.setrlimit(kind, (most, most))


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: the process ends where its work is anything but reading and writing what it was handed open."""
    if event.startswith(FORBIDDEN) or (event == "open" and not isinstance(args[0], int)):
        os._exit(3)


def _main(read: int, write: int, size: int) -> None:
    torch.set_num_threads(1)
    warm = io.BytesIO()  # what the loader imports at its first use is imported here
    torch.save({"w": torch.zeros(2)}, warm)
    for device in ("meta", "cpu"):
        warm.seek(0)
        pack_tensors(_numbers(torch.load(warm, map_location=device, weights_only=True)) if device == "cpu" else {})
    json.dumps({})
    limits(size)
    sys.addaudithook(_watch)
    try:
        with os.fdopen(os.dup(read), "rb") as file:
            file.seek(0)  # the parent has looked at the archive through the same open file
            named = _named(torch.load(file, map_location="meta", weights_only=True))
            for name, value in named.items():
                _check(name, value, size)
            _say(_described(named))
            if sys.stdin.readline() != "go\n":
                return
            file.seek(0)
            found = _numbers(_named(torch.load(file, map_location="cpu", weights_only=True)))
        with os.fdopen(os.dup(write), "wb") as out:
            out.write(pack_tensors(found))
        _say({"done": True})
    except _Refused as reason:
        _say({"refused": reason.args})
    except MemoryError:
        _say({"refused": ("", "memory", "it asks for more memory than its size allows")})
    except Exception as error:  # the loader raises half a dozen kinds; each means "no file of plain tensors"
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        _say({"refused": ("", type(error).__name__, f"not a file of plain tensors ({first[:200]})")})


def _named(content: object) -> dict[str, Tensor]:
    """The flat dict in what was loaded."""
    if isinstance(content, dict):
        content = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise _Refused("", type(content).__name__, "no dict of named tensors")
    if len(content) > MOST:
        raise _Refused("", f"{len(content):,} tensors", f"more than {MOST:,}")
    for key in content:
        if not isinstance(key, str):
            raise _Refused("", repr(key)[:80], "a tensor's name must be text")
    return content


def _check(name: str, value: object, size: int) -> None:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        raise _Refused(name, type(value).__name__, "not a dense tensor")
    if value.numel() * value.element_size() > size:
        raise _Refused(name, str(tuple(value.shape)), "a tensor larger than its file")


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of their own: safetensors refuses memory that is shared."""
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main(*(int(word) for word in sys.argv[1:4]))
