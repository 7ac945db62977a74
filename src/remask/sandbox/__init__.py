"""Runs programs that a model wrote against tests, without trusting either.

`Sandbox().run(Program(source, tests, names))` makes two boxes with bubblewrap. One runs the program, the other its
tests, which call stand-ins for the program's functions. A call is sent to the program's box as plain data, and what
comes back is built anew from plain data (`inside/wire.py`): no object, class or code of the program ever reaches the
process that asserts. Only that process says what passed, over a pipe that the program's box does not have.

What a program cannot do, then, is
- **pass by other means than right answers**: exiting, printing, tracing, patching built-ins, objects that are equal to
  everything, looking for the expected answers in memory, files or descriptors: tests and verdict are elsewhere;
- **reach the machine**: it has its own user, process, network, IPC and host namespaces, no capabilities, no sockets, no
  new processes (`syscalls.py`), no /proc and no /sys; it sees Python, the system's libraries and numpy, all read-only,
  and two small folders in memory that vanish with it; no environment variable, file or process of its user;
- **use up the machine**: memory, time, files, threads and output are limited, and whatever happens both boxes are
  killed and waited for. Nothing is written to disk.

What it does not protect from: a program that answers the tests by guessing (weak tests); a flaw in the kernel or in
bubblewrap (a filter keeps the parts of the kernel most often at fault out of reach); what can be told from running
times; on a machine under heavy load, a right program that is late. The test scripts are in a box too, but what they
report is believed: a dishonest benchmark can lie about its own results.

There is no way to run a program without bubblewrap: `Sandbox.check` says what is missing.
"""

from remask.sandbox.box import Limits
from remask.sandbox.run import Outcome, Program, Status
from remask.sandbox.sandbox import Sandbox

__all__ = ["Limits", "Outcome", "Program", "Sandbox", "Status"]
