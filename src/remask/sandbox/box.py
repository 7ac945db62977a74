"""One process in a bubblewrap box: how it is started, how it is ended."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.sandbox.syscalls import NUMBERS, filter_for

INSIDE = Path(__file__).with_name("inside")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
WRITABLE = ("/work", "/tmp")
ENVIRONMENT = {
    "HOME": "/work",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/box:/box/packages",
    "PYTHONHASHSEED": "0",  # sets of strings in the same order every time: the same program gets the same grade
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "1",  # the C library sets 64 MB of addresses aside for each thread's own; they would count
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
USERS = range(0x70000000, 0x7FFFFFFF)
"""The user ids that systems give to nobody. Each box that root starts has a different one of these: a limit on threads
counts all threads of a user, and boxes of one user would take each other's."""

OLDEST = (0, 8)
"""The oldest bubblewrap this has been tried with; old ones cannot limit the size of a tmpfs (`--size`)."""


@dataclass(frozen=True)
class Limits:
    """The limits of what one program may use. Its tests get the same, and `GRACE` seconds more."""

    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_mb: int = 1024
    file_mb: int = 16
    """The largest file, and the size of each of the two writable folders; both are memory."""
    processes: int = 64
    """The most threads, in truth: other processes are refused."""
    output_kb: int = 4096
    """Printing more than this ends the program."""

    def as_resources(self) -> dict[str, int]:
        """Return the limits as `inside.limits` sets them, in bytes and seconds."""
        return {
            "memory": self.memory_mb << 20,
            "cpu": self.cpu_seconds,
            "file": self.file_mb << 20,
            "processes": self.processes,
        }


class Box:
    """A box is a Python process that sees its interpreter, numpy, two small private folders and the pipes it
    is given.
    """

    def __init__(self, script: str, given: dict[str, Any], pipes: tuple[int, ...], limits: Limits) -> None:
        given = given | {"limits": limits.as_resources(), "user": secrets.choice(USERS)}
        settings = _memory_file(json.dumps(given).encode())
        try:
            seccomp = _memory_file(filter_for(platform.machine()))
            try:
                self.process = subprocess.Popen(
                    command(script, seccomp, limits),
                    stdin=settings,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(seccomp, *pipes),
                    env=ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is this process's to handle
                )
            finally:
                os.close(seccomp)
        finally:
            os.close(settings)
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def kill(self) -> None:
        """End the box, and wait until everything in it is gone.

        The first process of the box is killed, and the kernel ends the others with it; bubblewrap, which waits for it
        outside, then ends by itself. Killing bubblewrap instead would leave an orphan to be reaped by others.
        """
        if self.process.poll() is None:
            for child in _children(self.process.pid):
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            try:
                self.process.wait(timeout=5 if _children(self.process.pid) else 0.5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        """End the box, and close the pipe of its output."""
        self.kill()
        self.output.close()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("remask")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def command(script: str, seccomp: int, limits: Limits) -> list[str]:
    """Return the call of bubblewrap that runs `inside.<script>` in a new box."""
    executable, mounts = interpreter()
    size = str(limits.file_mb << 20)
    # Run by root, bubblewrap needs no user namespace; its process gives up being root by itself (inside/limits.py), and
    # keeps just the two capabilities that takes until it has.
    user = (
        ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if os.getuid() == 0
        else ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    )
    writable = [part for folder in WRITABLE for part in ("--perms", "0777", "--size", size, "--tmpfs", folder)]
    return [
        shutil.which("bwrap") or "bwrap",
        *user,
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "box"),
        *mounts,
        *(part for device in DEVICES for part in ("--dev-bind", device, device)),
        *writable,
        *("--remount-ro", "/", "--chdir", "/work", "--seccomp", str(seccomp)),
        *("--", executable, "-P", "-s", "-S", "-c", f"from inside.{script} import main; main()"),
    ]


def interpreter() -> tuple[str, list[str]]:
    """Return the real path of the interpreter, and the mounts it needs: itself, its library, the system's, numpy."""
    executable = Path(sys.executable).resolve()
    shown: dict[str, Path] = {str(executable): executable, "/box/inside": INSIDE}
    links: dict[str, str] = {}
    for name in LIBRARIES:
        path = Path(name)
        if path.is_symlink():
            links[name] = os.readlink(path)
        elif path.is_dir():
            shown[name] = path
    for prefix in {Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve()}:
        for name in ("lib", "lib64"):
            if (prefix / name).is_dir() and str(prefix / name) not in links:
                shown[str(prefix / name)] = prefix / name
    if Path("/etc/ld.so.cache").is_file():
        shown["/etc/ld.so.cache"] = Path("/etc/ld.so.cache")
    for folder in numpy_folders():
        shown[f"/box/packages/{folder.name}"] = folder
    # Folders that bubblewrap makes on the way to a mount are for its own user alone, which the process will not be.
    parents = {str(parent) for target in [*shown, *DEVICES] for parent in Path(target).parents} - {"/"}
    mounts = [part for parent in sorted(parents) for part in ("--perms", "0755", "--dir", parent)]
    mounts += [part for target, source in shown.items() for part in ("--ro-bind", str(source), target)]
    return str(executable), mounts + [part for name, to in links.items() for part in ("--symlink", to, name)]


def numpy_folders() -> list[Path]:
    """Return the folders of numpy and of the libraries its wheel brings along, where it is installed; it is not
    imported.
    """
    found = importlib.util.find_spec("numpy")
    if found is None or not found.submodule_search_locations:
        return []
    folder = Path(found.submodule_search_locations[0])
    return [path for path in (folder, folder.with_name("numpy.libs")) if path.is_dir()]


MISSING = "generated code is run inside bubblewrap, which is not installed (no `bwrap` on PATH)"
INSTALL = "install it: apt-get install bubblewrap, dnf install bubblewrap, or conda install -c conda-forge bubblewrap"


def check_bubblewrap() -> None:
    """Raises UserError where bubblewrap is missing, too old, or cannot run on this machine."""
    if platform.system() != "Linux" or platform.machine() not in NUMBERS:
        machine = f"{platform.system()} on {platform.machine()}"
        raise UserError(
            f"generated code is run inside bubblewrap, on Linux on {' or '.join(NUMBERS)}; this is {machine}",
            mend="grade on another machine, or in a container on this one",
        )
    found = shutil.which("bwrap")
    if found is None:
        raise UserError(MISSING, mend=INSTALL)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = done.stdout.split()[-1] if done.stdout.split() else "of an unknown version"
    if tuple(int(part) for part in version.split(".") if part.isdigit()) < OLDEST:
        raise UserError(
            f"{found} is bubblewrap {version}; {'.'.join(map(str, OLDEST))} or later is needed",
            mend="install a newer one: conda install -c conda-forge bubblewrap, or a newer release of the system",
        )
