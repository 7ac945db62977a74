"""What untrusted programs try, and that none of it reaches the machine or the verdict.

Where it can be done harmlessly, the same attempt is made without a sandbox first: an attempt that would fail anyway
shows nothing.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.sandbox import Limits, Outcome, Program, Sandbox, box
from remask.sandbox.inside import wire
from remask.sandbox.inside.limits import stack_size
from remask.sandbox.syscalls import NUMBERS, filter_for

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("REMASK_REQUIRE_SANDBOX") != "1",
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)
QUICK = Limits(wall_seconds=8, cpu_seconds=4, memory_mb=512)
ADD = "assert add(2, 3) == 5\nassert add(1, 1) == 2\nassert add('a', 'b') == 'ab'\nassert add([1], [2]) == [1, 2]"

ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    made = Sandbox(QUICK, workers=2)
    made.check()
    return made


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before, files = children(), open_files()
    yield
    assert children() == before
    assert open_files() == files


def children() -> set[str]:
    """Processes whose parent is this one, zombies included."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == os.getpid():
            found.add(text.split()[0])
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def program(source: str, tests: str = ADD, *names: str, **more: Any) -> Program:
    return Program(textwrap.dedent(source), tests, names or ("add",), **more)


def unboxed(source: str, *arguments: str) -> str:
    """What the attempt returns in a plain process: the last line printed."""
    code = f"import sys\n{textwrap.dedent(source)}\nprint(attempt(*sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


# --- the verdict -----------------------------------------------------------------------------------------------------


@needs_bubblewrap
def test_a_right_program_passes_and_a_wrong_one_does_not(sandbox: Sandbox) -> None:
    right, wrong = sandbox.run_all([program("def add(a, b): return a + b"), program("def add(a, b): return a + a")])
    assert (right.status, right.groups, right.share()) == ("passed", {"tests": (4, 4)}, 1.0)
    assert (wrong.status, wrong.groups, wrong.share()) == ("failed", {"tests": (1, 4)}, 0.25)
    assert wrong.message == "add(2, 3) == 5: AssertionError()"


CHEATS = {
    "exits with success": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "exits when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "prints a pass at exit": "import atexit, os\natexit.register(lambda: (print('passed'), os._exit(0)))",
    "prints a pass from a destructor": """
        import os
        class Last:
            def __del__(self, print=print, exit=os._exit):
                print('passed', flush=True)
                exit(0)
        last = Last()
    """,
    "is equal to everything": """
        class Yes:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
        def add(a, b): return Yes()
    """,
    "a number equal to everything": """
        class Yes(int):
            def __eq__(self, other): return True
            __hash__ = None
        def add(a, b): return Yes(7)
    """,
    "text and lists equal to everything": """
        class Text(str):
            def __eq__(self, other): return True
        class Items(list):
            def __eq__(self, other): return True
        class Number(float):
            def __eq__(self, other): return True
        def add(a, b): return {str: Text('x'), list: Items()}.get(type(a), Number(7))
    """,
    "replaces what the tests are run with": "import builtins\nbuiltins.exec = lambda *a: None",
    "leaves the tests by tracing": """
        import sys
        def trace(frame, event, argument):
            if event == 'line' and frame.f_code.co_name == '<module>' and 'add' in frame.f_code.co_names:
                raise SystemExit(0)
            return trace
        sys.settrace(trace)
        def add(a, b): return None
    """,
    "swallows the failure in a hook": """
        import os, sys
        sys.excepthook = lambda *a: (print('passed', flush=True), os._exit(0))
        def add(a, b): return None
    """,
    "reads the answers off the caller's frames": """
        import re, sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for value in frame.f_code.co_consts + tuple(frame.f_locals.values()):
                    if isinstance(value, str) and 'assert add' in value:
                        found = re.search(r'add\\(%s\\) == (.*)' % re.escape(f'{a!r}, {b!r}'), value)
                        if found: return eval(found[1])
                frame = frame.f_back
    """,
}


def fooled(source: str) -> bool:
    """Whether a harness that runs both in one process, and goes by its exit code, takes this for a pass."""
    code = f"{textwrap.dedent(source)}\nTESTS = {ADD!r}\nexec(TESTS)\nprint('passed')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).returncode == 0


@needs_bubblewrap
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_that_fools_a_single_process_does_not_pass(sandbox: Sandbox, name: str) -> None:
    assert fooled(CHEATS[name])
    assert not sandbox.run(program(CHEATS[name])).passed


SABOTAGE = {
    "patches everything the answers go through": """
        import builtins, gc, json, os, sys
        json.dumps = lambda *a, **k: 'true'
        json.loads = lambda *a, **k: True
        builtins.isinstance = builtins.all = builtins.any = lambda *a: True
        sys.stdout = sys.stderr = None
        for name, module in list(sys.modules.items()):
            if name.startswith('inside'):
                module.send = lambda *a: os.write(a[0], b'passed')
        def add(a, b): return None
    """,
    "writes a report of its own to every descriptor": """
        import json, os
        report = b'!' + json.dumps({'started': True, 'loaded': True, 'finished': True, 'late': False, 'lost': None,
                                    'groups': {'tests': [4, 4]}, 'error': ''}).encode()
        for fd in range(65536):
            try:
                os.write(fd, report)
            except OSError:
                pass
        os._exit(0)
    """,
    "writes answers that no one asked for": """
        import json, os
        def frame(value):
            body = json.dumps(value).encode()
            return b'.' + len(body).to_bytes(8, 'big') + body
        for fd in range(3, 65536):
            try:
                os.write(fd, frame(['t', ['ready']]) + frame(['t', ['value', True]]) * 4)
            except OSError:
                pass
    """,
    "announces an endless answer": """
        import os
        for fd in range(3, 65536):
            try:
                os.write(fd, b'.' + b'\\xff' * 8)
            except OSError:
                pass
    """,
    "answers with brackets without end": """
        import os
        for fd in range(3, 65536):
            try:
                os.write(fd, b'.' + (60_000).to_bytes(8, 'big') + b'[' * 60_000)
            except OSError:
                pass
    """,
    "ends the tests' loops early": "def add(a, b): raise StopIteration",
    "raises what the tests may be catching": "def add(a, b): raise AssertionError",
    "raises something with a false name": """
        class ok(BaseException): pass
        ok.__name__ = 'print'
        def add(a, b): raise ok
    """,
    "closes every descriptor": "import os\nos.closerange(0, 65536)\ndef add(a, b): return a + b",
    "does not define the function": "def subtract(a, b): return a - b",
    "is not Python": "def add(a, b) return a + b",
    "cannot be text": "def add(a, b): return a + b\x00",
    "half a character": "def add(a, b): return '\udcff'",
    "is empty": "",
    "returns itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "recurses": "def add(a, b): return add(a, b)",
    "breaks the interpreter": "import ctypes\ndef add(a, b): return ctypes.string_at(0)",
}


@pytest.mark.slow
@needs_bubblewrap
@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage_is_a_failure_like_any_other(sandbox: Sandbox, name: str) -> None:
    tests = ADD + "\nassert all(map(add, [1], [2])) and [*map(add, [1], [2])] == [3]"
    outcome = sandbox.run(program(SABOTAGE[name], tests), limits=replace(QUICK, wall_seconds=2))
    assert not outcome.passed
    assert outcome.share() < 1


@needs_bubblewrap
def test_the_expected_answers_are_nowhere_to_be_found(sandbox: Sandbox) -> None:
    source = """
        import gc, os, sys

        def attempt(*_):
            wanted = 'the expected ' + 'answer is'
            for thing in gc.get_objects():
                if isinstance(thing, dict):
                    for value in list(thing.values()):
                        if isinstance(value, str) and wanted in value:
                            return value
            for fd in range(65536):
                try:
                    os.lseek(fd, 0, 0)
                    if wanted.encode() in os.read(fd, 1 << 20):
                        return 'in a descriptor'
                except OSError:
                    pass
            for folder, _, files in [*os.walk('/box'), *os.walk('/work'), *os.walk('/tmp')]:
                for name in files:
                    with open(os.path.join(folder, name), 'rb') as file:
                        if 'packages' not in folder and wanted.encode() in file.read():
                            return name
            return 'not found'
    """
    secret = "SECRET = 'the expected answer is 918273645'\nassert attempt() == SECRET"
    assert unboxed(f"SECRET = 'the expected answer is 918273645'\n{textwrap.dedent(source)}").endswith("918273645")
    outcome = sandbox.run(
        program(source, secret + "\nassert attempt() == 'not found'", "attempt", setup=secret.split("\n")[0])
    )
    assert outcome.groups == {"tests": (1, 2)}


@needs_bubblewrap
def test_what_setup_defines_is_beyond_the_programs_reach(sandbox: Sandbox) -> None:
    """A reference that calls itself must not end up calling the program that stands in under its name."""
    setup = "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)"
    tests = "assert fib(10) == reference['fib'](10) == 55"
    assert not sandbox.run(program("def fib(n): return 0", tests, "fib", setup=setup)).passed
    assert sandbox.run(program(setup, tests, "fib", setup=setup)).passed


# --- the machine -----------------------------------------------------------------------------------------------------

REACHES = {
    "the network": """
        def attempt(port, *_):
            import socket
            try:
                socket.create_connection(('127.0.0.1', int(port)), timeout=2)
            except OSError:
                return 'refused'
            return 'open'
    """,
    "the parent's environment": """
        def attempt(port, pid, *_):
            import glob, os
            found = [name for name in os.environ if name not in ('PATH', 'PWD', 'LC_CTYPE')]
            for path in ['/proc/%s/environ' % pid, '/proc/1/environ', *glob.glob('/proc/*/environ')]:
                try:
                    open(path, 'rb').read()
                    return 'open'
                except OSError:
                    pass
            allowed = {'HOME', 'TMPDIR', 'LANG', 'PYTHONPATH', 'PYTHONHASHSEED', 'PYTHONDONTWRITEBYTECODE',
                       'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}
            return 'open' if set(found) - allowed else 'refused'
    """,
    "another process": """
        def attempt(port, pid, *_):
            import os
            try:
                os.kill(int(pid), 0)
            except OSError:
                return 'refused'
            return 'open'
    """,
    "a file of the user": """
        def attempt(port, pid, folder, *_):
            try:
                return 'open' if open(folder + '/secret').read() else ''
            except OSError:
                return 'refused'
    """,
    "a folder of the user": """
        def attempt(port, pid, folder, *_):
            try:
                open(folder + '/mark', 'w').write('here')
            except OSError:
                return 'refused'
            return 'open'
    """,
    "new processes": """
        def attempt(*_):
            import os, subprocess, sys
            try:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
                return 'open'
            except OSError:
                pass
            try:
                subprocess.run([sys.executable, '-c', ''])
            except OSError:
                return 'refused'
            return 'open'
    """,
    "accounts": """
        def attempt(*_):
            import os
            for path in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/root/.bashrc', '/home', '/var', '/sys'):
                if os.path.lexists(path):
                    return 'open'
            return 'refused'
    """,
}


@needs_bubblewrap
@pytest.mark.parametrize("name", REACHES)
def test_the_machine_is_out_of_reach(sandbox: Sandbox, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the user's own")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (str(listener.getsockname()[1]), str(os.getpid()), str(tmp_path))
        assert unboxed(REACHES[name], *arguments) == "open"
        (tmp_path / "mark").unlink(missing_ok=True)
        outcome = sandbox.run(program(REACHES[name], f"assert attempt(*{arguments!r}) == 'refused'", "attempt"))
    assert outcome.passed, outcome.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]


@needs_bubblewrap
@pytest.mark.parametrize(
    "call",
    [
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(40, socket.SOCK_STREAM)",  # vsock: to the host of a virtual machine, whatever the namespace
        "socket.getaddrinfo('example.org', 80)",
        "os.setuid(0)",
        "os.chroot('/tmp')",
        "os.unshare(0x10000000) if hasattr(os, 'unshare') else libc('unshare', 0x10000000)",  # a user namespace
        "libc('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc('ptrace', 0, 0, 0, 0)",
        "libc('shmget', 0, 1 << 20, 0o1600)",  # memory that no limit counts
        "libc('memfd_create', b'x', 0)",
        "libc('syscall', 425, 8, 0)",  # io_uring_setup
        "libc('syscall', 435, 0, 0)",  # clone3
        "os.remove(sys.executable)",
        "open(os.__file__, 'a')",
        "open('/mark', 'w')",
        "open('/box/mark', 'w')",
        "open('/dev/mark', 'w')",
        "os.listdir('/proc/self')",
    ],
)
def test_the_kernel_refuses(sandbox: Sandbox, call: str) -> None:
    source = f"""
        import ctypes, os, socket, sys
        def libc(name, *arguments):
            function = getattr(ctypes.CDLL(None, use_errno=True), name)
            if function(*arguments) < 0:
                raise OSError(ctypes.get_errno(), name)
        def attempt():
            try:
                {call}
            except OSError:
                return 'refused'
            return 'open'
    """
    outcome = sandbox.run(program(source, "assert attempt() == 'refused'", "attempt"))
    assert outcome.passed, outcome.message


@needs_bubblewrap
def test_only_the_pipes_are_open_and_nothing_is_shared_between_runs(sandbox: Sandbox) -> None:
    source = """
        import os
        def descriptors():
            found = []
            for fd in range(1024):
                try:
                    os.fstat(fd)
                    found.append(fd)
                except OSError:
                    pass
            return found
        def files():
            before = os.listdir('/tmp') + os.listdir('/work')
            open('/tmp/mark', 'w').write('here')
            open('mark', 'w').write('here')
            return before
    """
    tests = "assert len(descriptors()) == 5\nassert files() == []"
    for outcome in sandbox.run_all([program(source, tests, "descriptors", "files")] * 2):
        assert outcome.passed, outcome.message


@needs_bubblewrap
def test_deleting_everything_it_sees_harms_nobody(sandbox: Sandbox) -> None:
    source = """
        import json, os, shutil
        for folder in ('/box', '/work', '/tmp', '/dev', os.path.dirname(json.__file__)):
            shutil.rmtree(folder, ignore_errors=True)
        def add(a, b): return a + b
    """
    assert sandbox.run(program(source)).passed
    assert sandbox.run(program("import decimal\ndef add(a, b): return a + b")).passed
    assert Path(os.__file__).is_file()


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_bubblewrap
@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("while True: pass", "timeout"),
        ("def add(a, b):\n    while True: pass", "timeout"),
        ("import time\ndef add(a, b): time.sleep(3600)", "timeout"),
        (
            "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, "
            "ValueError): pass\ndef add(a, b):\n    while True: pass",
            "timeout",
        ),
        ("while True: print('x' * 100_000)", "output"),
        ("def add(a, b):\n    while True: print('x' * 100_000)", "output"),
    ],
)
def test_what_does_not_end_is_ended(sandbox: Sandbox, source: str, status: str) -> None:
    started = time.monotonic()
    outcome = sandbox.run(program(source), limits=replace(QUICK, wall_seconds=1, output_kb=500))
    assert outcome.status == status
    assert time.monotonic() - started < 4
    assert len(outcome.output) <= 4096


@needs_bubblewrap
def test_processor_time_is_limited_by_itself(sandbox: Sandbox) -> None:
    outcome = sandbox.run(program("while True: pass"), limits=replace(QUICK, wall_seconds=30, cpu_seconds=1))
    assert outcome.status == "timeout"
    assert outcome.seconds < 10


@needs_bubblewrap
def test_forks_threads_memory_and_files_are_limited(sandbox: Sandbox) -> None:
    source = """
        import os, subprocess, threading, time

        def forks():
            made = 0
            for _ in range(2000):
                try:
                    if os.fork() == 0:
                        time.sleep(3600)
                    made += 1
                except OSError:
                    pass
            return made

        def threads():
            made = 0
            threading.stack_size(32768)
            try:
                for _ in range(2000):
                    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
                    made += 1
            except RuntimeError:
                pass
            return made

        def memory():
            kept = []
            try:
                while True:
                    kept.append(bytearray(10_000_000))
            except MemoryError:
                return sum(map(len, kept))

        def files():
            written = 0
            for folder in ('/tmp', '/work'):
                try:
                    for number in range(100):
                        with open(f'{folder}/{number}', 'wb', buffering=0) as file:
                            written += file.write(bytes(4 << 20))
                except OSError:
                    pass
            return written >> 20
    """
    tests = (
        "assert forks() == 0\nassert 1 <= memory() <= 512 << 20\nassert 1 <= files() <= 32\nassert 60 <= threads() < 64"
    )
    outcome = sandbox.run(program(source, tests, "forks", "threads", "memory", "files"))
    assert outcome.passed, outcome.message


THREADS = """
    import threading

    def together(count):
        everyone, done = threading.Barrier(count), []

        def work(number):
            numbers = sorted(range(1000), reverse=True)
            everyone.wait()
            done.append(number + numbers[-1])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(done) == list(range(count))
"""


@needs_bubblewrap
@pytest.mark.parametrize("memory_mb", [256, 512, 1024])
def test_threads_run_together_up_to_the_limit(sandbox: Sandbox, memory_mb: int) -> None:
    """What the C library sets aside for each thread (its own heap, 8 MB of stack) is not to use up the memory."""
    tests = "assert together(20)\nassert together(40)\nassert together(60)"
    outcome = sandbox.run(program(THREADS, tests, "together"), limits=replace(QUICK, memory_mb=memory_mb))
    assert outcome.passed, outcome.message


@pytest.mark.parametrize(
    ("memory_mb", "threads", "kib"),
    [(4096, 64, 8192), (1024, 64, 8192), (256, 64, 2048), (512, 100, 2620), (64, 512, 256)],
)
def test_stacks_of_all_threads_take_half_of_the_memory_at_most(memory_mb: int, threads: int, kib: int) -> None:
    assert stack_size(memory=memory_mb << 20, processes=threads, cpu=1) == kib << 10


@needs_bubblewrap
def test_programs_side_by_side_do_not_count_each_others_threads(sandbox: Sandbox) -> None:
    waiting = THREADS.replace("everyone.wait()", "everyone.wait()\n            import time; time.sleep(1)")
    outcomes = sandbox.run_all([program(waiting, "assert together(50)", "together")] * 2)
    assert [outcome.message for outcome in outcomes if not outcome.passed] == []


@needs_bubblewrap
def test_processes_would_end_with_their_box_even_if_they_could_be_started(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box, "filter_for", lambda machine: ALLOW_ALL)
    mark = f"mark{os.getpid()}"
    source = f"""
        import ctypes, os, signal, time
        ctypes.CDLL(None).prctl(15, b'{mark}')
        def add(a, b):
            made = 0
            for _ in range(20):
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    os.setsid()
                    time.sleep(3600)
                made += 1
            return made
    """
    assert sandbox.run(program(source, "assert add(1, 1) == 20")).passed
    names = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    assert mark not in names


@needs_bubblewrap
def test_an_interrupt_ends_every_box(tmp_path: Path) -> None:
    script = """
        import threading, signal
        from remask.sandbox import Program, Sandbox
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have it ignored
        sandbox = Sandbox(workers=2)
        sandbox.check()
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            sandbox.run_all([Program("while True: pass", "assert add()", ("add",))] * 6)
        except KeyboardInterrupt:
            print("interrupted", sorted(children()))
    """
    script = f"import os\nfrom pathlib import Path\n{inspect.getsource(children)}{textwrap.dedent(script)}"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=20)
    assert done.stdout == "interrupted []\n", done.stderr
    assert time.monotonic() - started < 5


@needs_bubblewrap
def test_many_programs_keep_their_order_and_report_progress(sandbox: Sandbox) -> None:
    sources = [f"def add(a, b): return a + b if {number % 3} else None" for number in range(9)]
    seen: list[int] = []
    outcomes = sandbox.run_all([program(source) for source in sources], on_done=seen.append)
    assert [outcome.passed for outcome in outcomes] == [number % 3 != 0 for number in range(9)]
    assert seen == list(range(1, 10))
    assert sandbox.run_all([]) == []


@needs_bubblewrap
def test_an_error_while_reporting_progress_stops_the_rest(sandbox: Sandbox) -> None:
    def fail(done: int) -> None:
        raise RuntimeError(f"after {done}")

    slow = program("import time\ndef add(a, b): time.sleep(60)")
    with pytest.raises(RuntimeError, match="after 1"):
        sandbox.run_all([program("def add(a, b): return a + b"), *[slow] * 4], on_done=fail)


# --- what tests may do -----------------------------------------------------------------------------------------------


@needs_bubblewrap
def test_calls_carry_plain_data_both_ways(sandbox: Sandbox) -> None:
    source = """
        import collections, enum, numpy
        from decimal import Decimal
        from fractions import Fraction
        def same(x, *, again=False): return [x, x] if again else x
        def made(what): return eval(what)
        def fails(kind): raise eval(kind)('because')
        def changes(items): items.append(1)
    """
    tests = """
        for x in (None, True, 10**400, -2**60, 1.5, 1e-320, 2 + 3j, "a\\ud800", b"\\xff", [1, [2.0, None]], (1, (2,)),
                  {1, "a"}, frozenset({(1, 2)}), {"a": {(1, 2): [3]}, None: 1}, range(2, 9, 3), bytearray(b"x"),
                  [10**30, 1], []):
            assert same(x) == x and type(same(x)) is type(x)
            assert same(x, again=True) == [x, x]
        assert same(float("nan")) != same(float("nan")) and same(float("-inf")) == float("-inf")
        assert made("collections.Counter('aab')") == {"a": 2, "b": 1}
        assert made("numpy.int64(3)") == 3 and made("numpy.bool_(True)") is True
        assert made("[numpy.float64(0.5)]") == [0.5]
        assert list(made("(x for x in 'ab')")) == ["a", "b"] and sorted(made("{2: 0, 1: 0}.keys()")) == [1, 2]
        assert made("map(str, [1])") != ["1"]
        assert made("Fraction(1, 2)") == 0.5 and made("Decimal('1.50')") == 1.5
        assert made("object()") and made("object()") is not None and made("object()") != made("object()")
        deep = []
        for _ in range(900): deep = [deep]
        assert same(deep) == deep
        for kind in (ValueError, KeyError, ZeroDivisionError):
            try:
                fails(kind.__name__)
                assert "raised" == "no"
            except kind:
                assert str(kind) != ""
        items = []
        assert changes(items) is None and items == []
    """
    names = ("same", "made", "fails", "changes")
    outcome = sandbox.run(program(source, textwrap.dedent(tests), *names), limits=replace(QUICK, memory_mb=1024))
    assert outcome.passed, outcome.message


@needs_bubblewrap
def test_tests_that_break_off_count_for_nothing(sandbox: Sandbox) -> None:
    broken = "assert add(1, 1) == 2\nadd(None, 1)\nassert add(1, 2) == 3"
    outcome = sandbox.run(program("def add(a, b): return a + b", broken))
    assert (outcome.status, outcome.groups) == ("failed", {})
    assert outcome.message.startswith("TypeError")
    assert sandbox.run(program("def add(a, b): return a + b", "assert True")).status == "failed"


@needs_bubblewrap
def test_tests_of_their_own_kind(sandbox: Sandbox) -> None:
    tests = """
        limit(0.3)
        for a, b, seconds in DATA:
            try:
                record(add(a, b, seconds) == a + b, "quick" if seconds == 0 else "slow", "wrong")
            except Exception:
                record(False, "slow", "late")
            record(alive(), "alive")
    """
    source = "import time\ndef add(a, b, seconds):\n    time.sleep(seconds)\n    return a + b"
    data = [[1, 2, 0], [3, 4, 0], [5, 6, 5], [7, 8, 0.1]]
    outcome = sandbox.run(program(source, textwrap.dedent(tests), "add", data=data))
    assert outcome.groups == {"quick": (2, 2), "slow": (0, 2), "alive": (2, 4)}
    assert (outcome.status, outcome.message) == ("timeout", "late")
    assert outcome.seconds < 3


# --- what is said when it cannot be done -----------------------------------------------------------------------------


def test_no_bubblewrap_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"bubblewrap, which is not installed.*apt-get install bubblewrap"):
        Sandbox().run_all([program("")])


def fake_bubblewrap(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "bwrap"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap ${{VERSION:-0.9.0}} && exit\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_an_old_or_powerless_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_bubblewrap(tmp_path, monkeypatch, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    with pytest.raises(UserError, match=r"No permissions to create new namespace.*max_user_namespaces"):
        Sandbox().check()
    monkeypatch.setenv("VERSION", "0.6.1")
    with pytest.raises(UserError, match=r"bubblewrap 0\.6\.1; 0\.8 or later is needed"):
        Sandbox().check()


@needs_bubblewrap
def test_a_box_that_is_not_shut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = box.command
    monkeypatch.setattr(box, "command", lambda *a: [part for part in real(*a) if part != "--unshare-net"])
    Sandbox(QUICK).check()  # the filter alone keeps sockets shut
    monkeypatch.setattr(box, "filter_for", lambda machine: ALLOW_ALL)
    with pytest.raises(UserError, match=r"not shut.*starting processes"):
        Sandbox(QUICK).check()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="Linux on riscv64"):
        Sandbox().check()


# --- parts -----------------------------------------------------------------------------------------------------------


class Size(IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Size.SMALL, 1),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (Fraction(1, 3), Fraction(1, 3)),
        (Decimal("0.10"), Decimal("0.10")),
        (1 << 53, 1 << 53),
        ([1 << 53, True, None, "x"], [1 << 53, True, None, "x"]),
        ((), ()),
        ({}, {}),
    ],
)
def test_values_arrive_as_plain_data(value: Any, arrives: Any) -> None:
    got = wire.decode(json.loads(json.dumps(wire.encode(value))))
    assert got == arrives
    assert type(got) is type(arrives)


@pytest.mark.parametrize(
    "sent",
    [
        [],
        ["l"],
        ["l", 1, 2],
        ["?", 1],
        [1, 2],
        {"a": 1},
        ["s", [["l", []]]],
        ["d", [["a"], [1, 2]]],
        ["i", "ten"],
        ["i", 10],
        ["c", ["x", 1]],
        ["l", [{"a": 1}]],
        ["r", [1, 2, 0]],
        ["q", [1, 0]],
        ["m", "x"],
        ["b", "\u1234"],
        ["t", None],
        [["l", []], []],
    ],
)
def test_what_is_not_plain_data_is_refused(sent: Any) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(sent)


@pytest.mark.parametrize("machine", NUMBERS)
def test_the_filter_refuses_what_it_should_and_nothing_else(machine: str) -> None:
    """The filter, interpreted: (call, first argument) → what the kernel would do."""
    code = [struct.unpack_from("=HBBI", filter_for(machine), at) for at in range(0, len(filter_for(machine)), 8)]
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

    def verdict(number: int, argument: int = 0, *, on: str = machine) -> int:
        memory = {0: number, 4: architecture[on], 16: argument}
        at = loaded = 0
        while True:
            operation, yes, no, value = code[at]
            if operation == 0x06:
                return value
            if operation == 0x20:
                loaded, at = memory[value], at + 1
                continue
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[operation]
            at += 1 + (yes if holds else no)

    allow, refuse = 0x7FFF0000, 0x00050001
    numbers = NUMBERS[machine]
    assert {name for name, number in numbers.items() if verdict(number) != refuse} == {"clone3"}
    assert verdict(numbers["clone3"]) == 0x00050000 | 38
    assert verdict(numbers["clone"], 0x003D0F00) == allow  # a thread, as the C library makes it
    assert verdict(numbers["clone"], 0x01200011) == refuse  # a process
    assert {verdict(number) for number in range(450) if number not in numbers.values()} == {allow}
    assert verdict(0x40000000) == refuse
    other = next(name for name in architecture if name != machine)
    assert verdict(0, on=other) == 0x80000000


def test_shares_of_an_outcome() -> None:
    outcome = Outcome("failed", {"base": (3, 3), "plus": (1, 5)})
    assert (outcome.share(), outcome.share("base"), outcome.share("plus"), outcome.share("none")) == (0.5, 1, 0.2, 0)
    assert Outcome("error").share() == 0


def test_an_interpreter_and_its_libraries_are_all_that_is_shown() -> None:
    _, mounts = box.interpreter()
    shown = {Path(mounts[at + 1]) for at, part in enumerate(mounts) if part == "--ro-bind"}
    home = Path.home().resolve()
    prefixes = {Path(sys.base_prefix).resolve(), Path(sys.executable).resolve(), box.INSIDE, *box.numpy_folders()}
    assert all(any(path.is_relative_to(prefix) for prefix in prefixes) for path in shown if path.is_relative_to(home))
    assert not any(home.is_relative_to(path) for path in shown)


def test_a_box_that_has_ended_is_sent_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box that has ended is not killed: its number may be another process's by now."""
    monkeypatch.setattr(os, "kill", lambda *a: pytest.fail("sent a signal"))
    ended = box.Box.__new__(box.Box)
    ended.process = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    ended.process.wait()
    assert ended.process.stdout is not None
    ended.output = ended.process.stdout
    ended.close()
