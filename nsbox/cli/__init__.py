# SPDX-License-Identifier: Apache-2.0
"""The command line, ``nsbox`` or ``python -m nsbox``.

Exit codes: the command's own, 128+n for a signal; 125 when nsbox failed, 126 when the command
cannot be executed, 127 when it was not found.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED, CANNOT_EXECUTE, NOT_FOUND = 125, 126, 127


class Parser(argparse.ArgumentParser):
    """argparse's own code for wrong usage, 2, is a code that commands use."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: {message}\n")


def _listing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _sandbox_options(parser: argparse.ArgumentParser) -> None:
    """What run() takes, as docker has it."""
    add = parser.add_argument
    add("--memory", metavar="SIZE", help="RAM, such as 256M")
    add("--cpu", metavar="CORES", help="cores, such as 0.5 or 500m")
    add("--pids", type=int, metavar="N", help="processes and threads")
    add("-t", "--time", type=float, metavar="SECONDS", help="end it after this time")
    add("--net", choices=("none", "host", "nat"), default="none",
        help="none: a loopback of its own; nat: a network of its own that leads out")  # fmt: skip
    add("-p", "--publish", action="append", default=[], metavar="[ADDRESS:]PORT:PORT[/udp]",
        help="with --net nat: a port of the host, and which of the sandbox's it is")  # fmt: skip
    add("--allow", action="append", metavar="NETWORK[:PORT]",
        help="with --net nat: reach this, and nothing else")  # fmt: skip
    add("--root", metavar="DIR", help="root directory; default: the host's system directories")
    add("-v", "--volume", action="append", default=[], metavar="SRC:DST[:ro|rw]",
        help="bind a directory or file, read-only unless :rw")  # fmt: skip
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="a variable; without a value, the caller's")  # fmt: skip
    add("--env-file", action="append", default=[], metavar="FILE", help="lines of NAME=VALUE")
    add("-w", "--workdir", metavar="DIR", help="working directory inside")
    add("-u", "--user", metavar="UID[:GID]", help="user inside")
    add("--hostname", metavar="NAME")
    add("--profile", choices=("strict", "standard", "none"), default="strict")
    add("--best-effort", action="store_true", help="do without what cannot be enforced here")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND")


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    run = commands.add_parser("run", help="run a command in a sandbox, and wait for its end")
    run.add_argument("--name", default="", help="for ps, stop and kill")
    run.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    run.add_argument("-it", "-ti", "--tty", dest="tty", action="store_true",
                     help="a terminal of its own, with input")  # fmt: skip
    run.add_argument("--rm", action="store_true", help="for habit: nothing is ever left")
    _sandbox_options(run)
    run.set_defaults(call="run:run")
    enter = commands.add_parser("exec", help="run one more command in a sandbox that runs")
    enter.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    enter.add_argument("-t", "--tty", action="store_true",
                       help="a terminal of its own; with -i, yours is lent to it")  # fmt: skip
    enter.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]")
    enter.add_argument("-w", "--workdir", metavar="DIR")
    enter.add_argument("-u", "--user", metavar="UID[:GID]")
    enter.add_argument("sandbox", metavar="ID|NAME")
    enter.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    enter.set_defaults(call="run:exec_")
    explain = commands.add_parser("explain", help="what run would do, step by step")
    explain.add_argument("--json", action="store_true", help="machine-readable")
    _sandbox_options(explain)
    explain.set_defaults(call="run:explain")


def _add_listings(commands: argparse._SubParsersAction[Parser]) -> None:
    ls = commands.add_parser("ls", help="namespaces, as lsns shows them, and whose they are")
    ls.add_argument("pid", nargs="?", type=int, help="of one process only")
    ls.add_argument("-t", "--type", metavar="KIND", help="mnt, pid, ipc, net, uts, user, …")
    ls.set_defaults(call="listing:ls")
    tree = commands.add_parser("tree", help="processes that entered namespaces, as a tree")
    tree.add_argument("pid", nargs="?", type=int, help="from this process down, all of it")
    tree.add_argument("-a", "--all", action="store_true", help="every process")
    tree.set_defaults(call="listing:tree")
    ps = commands.add_parser("ps", help="sandboxes that run, of all processes of this user")
    ps.set_defaults(call="listing:ps")
    for name, help_ in (("stats", "what each sandbox uses"), ("top", "their processes")):
        live = commands.add_parser(name, help=help_)
        live.add_argument("--once", action="store_true", help="print one table and end")
        live.add_argument("--every", type=float, default=2.0, metavar="SECONDS")
        live.add_argument("sandbox", nargs="*", metavar="ID|NAME")
        live.set_defaults(call=f"live:{name}")
        _listing(live)
    logs = commands.add_parser("logs", help="what a container wrote")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until its end")
    logs.add_argument("--tail", type=int, metavar="N", help="the last N lines only")
    logs.add_argument("--stream", choices=("both", "stdout", "stderr"), default="both")
    logs.add_argument("sandbox", metavar="ID|NAME")
    logs.set_defaults(call="logs:logs")
    for parser in (ls, tree, ps, logs):
        _listing(parser)


def _add_verbs(commands: argparse._SubParsersAction[Parser]) -> None:
    stop = commands.add_parser("stop", help="SIGTERM, then SIGKILL, and wait for the end")
    stop.add_argument("-t", "--time", type=float, default=10.0, metavar="SECONDS", help="grace")
    stop.add_argument("sandbox", nargs="+", metavar="ID|NAME")
    stop.set_defaults(call="control:stop")
    kill = commands.add_parser("kill", help="a signal to its first process; default SIGKILL")
    kill.add_argument("-s", "--signal", default="KILL")
    kill.add_argument("sandbox", nargs="+", metavar="ID|NAME")
    kill.set_defaults(call="control:kill")
    gc = commands.add_parser("gc", help="sweep what owners left that were killed")
    gc.set_defaults(call="control:gc")
    _listing(gc)
    doctor = commands.add_parser("doctor", help="what this host can do, and the fix for the rest")
    doctor.add_argument("--print-apparmor-profile", action="store_true",
                        help="for kernel.apparmor_restrict_unprivileged_userns=1")  # fmt: skip
    doctor.set_defaults(call="control:doctor")
    _listing(doctor)
    bench = commands.add_parser("bench", help="the benchmarks of a source tree")
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    bench.set_defaults(call="control:bench")


def parser() -> Parser:
    """Every command; what it calls is imported when it is called."""
    made = Parser(prog="nsbox", description="Sandboxes out of Linux kernel primitives.")
    made.add_argument("--version", action="store_true")
    commands = made.add_subparsers(metavar="COMMAND", parser_class=Parser)
    _add_run(commands)
    _add_listings(commands)
    _add_verbs(commands)
    return made


def _open_standard_streams() -> None:
    """Who closed one of ours must not get the payload's bytes into what takes its number; and
    what cannot be encoded is spelt out."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stdout is None:  # as it is when Python was started so
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and commands are in any language
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    _open_standard_streams()
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.version:
        import nsbox

        print(f"nsbox {nsbox.__version__}")
        return 0
    if not hasattr(arguments, "call"):
        made.print_help(sys.stderr)
        return FAILED
    module, function = arguments.call.split(":")
    try:
        code = int(getattr(import_module(f"nsbox.cli.{module}"), function)(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of our own output: its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return 141
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        return complain(error)


def complain(error: Exception) -> int:
    """Say what went wrong, in one line, and return its exit code."""
    from nsbox.cli.output import clean, say
    from nsbox.errors import CommandNotFound, SetupError

    say(f"nsbox: {clean(str(error))}")
    if isinstance(error, CommandNotFound):
        return NOT_FOUND
    if isinstance(error, SetupError) and error.name == "exec":
        return CANNOT_EXECUTE
    return FAILED
