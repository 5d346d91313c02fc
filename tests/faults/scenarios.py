# SPDX-License-Identifier: Apache-2.0
"""What helper processes of the fault tests do: ``python scenarios.py NAME ARGUMENT...``.

A scenario is a promise that a process of its own has to keep, or a state in which the test
kills it. It says what it has to say in lines of JSON and ends with 0 when all went well.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kit
from support import poll_until, probe_cgroup, scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PR_SET_PDEATHSIG = 1
STUBBORN = f"import ctypes, time; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, 0); print(1, flush=True); time.sleep(300)"  # noqa: E501
PID_ONLY = ("pid",) if os.geteuid() == 0 else ("user", "pid")
QUICK: dict[str, Any] = {"profile": "none", "init": False, "namespaces": PID_ONLY}
STRICT: dict[str, Any] = {}


def say(value: Any) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def hear() -> Any:
    """A line of the test's; None when there will be no more."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def sleeper(word: str, **keywords: Any) -> nsbox.Popen:
    """A sandbox that goes on, and is known by *word*."""
    return nsbox.Popen(["/bin/sh", "-c", "sleep 300; :", word], **keywords)


def launcher_of(box: nsbox.Popen) -> int:
    return kit.parent_of(box.pid)


# -- states in which the owner is killed ------------------------------------------------------


def _spawn_forever(word: str, keywords: dict[str, Any]) -> None:
    while True:
        nsbox.run(["/bin/sh", "-c", ":", word], **keywords)


def busy(word: str) -> None:
    """Several sandboxes run, and two threads spawn more; until it is killed."""
    say({"pid": os.getpid()})
    for keywords in (STRICT, QUICK):
        threading.Thread(target=_spawn_forever, args=(word, keywords), daemon=True).start()
    several = [STRICT, QUICK, {"profile": "none"}, {"init": False}]
    boxes = [sleeper(word, **keywords) for keywords in several]
    stubborn = ["/usr/bin/python3", "-c", STUBBORN, word]
    boxes.append(nsbox.Popen(stubborn, init=False, stdout=nsbox.DEVNULL))
    say({"pids": [box.pid for box in boxes], "launcher": launcher_of(boxes[0])})
    signal.pause()


def nursery(scenario: str) -> None:
    """A child for each line it hears, which runs *scenario*: an interpreter costs more."""
    say("ready")
    while (args := hear()) is not None:
        child = os.fork()
        if child == 0:
            SCENARIOS[scenario](*args)
            os._exit(0)
        say({"child": child})
        os.waitpid(child, 0)
        say({"ended": child})


def running(word: str) -> None:
    """Some sandboxes run; ends with a running one when it is told to."""
    boxes = [sleeper(word), sleeper(word, **QUICK)]
    if not probe_cgroup():
        boxes.append(sleeper(word, limits=nsbox.Limits(memory="64MiB", pids=16)))
    say({"pids": [box.pid for box in boxes], "launcher": launcher_of(boxes[0])})
    while hear() is not None:
        say({"running": [box.poll() is None for box in boxes]})
    for box in boxes:
        box.close()


def stubborn(word: str) -> None:
    """A payload that its launcher's death does not end, in a cgroup."""
    box = nsbox.Popen(["/usr/bin/python3", "-c", STUBBORN, word], init=False, stdout=nsbox.PIPE,
                      limits=nsbox.Limits(memory="64MiB", pids=16))  # fmt: skip
    assert box.stdout.readline() == b"1\n"
    say({"pids": [box.pid], "launcher": launcher_of(box)})
    signal.pause()


def exits(word: str, how: str) -> None:
    """The interpreter ends while sandboxes run."""
    warnings.simplefilter("ignore", ResourceWarning)  # it is told so; a test sees to that
    boxes = [sleeper(word), sleeper(word, **QUICK)]
    say({"pids": [box.pid for box in boxes], "launcher": launcher_of(boxes[0])})
    if how == "at the end":
        return
    if how == "by os._exit":
        os._exit(0)
    if how == "by an exception":
        sys.exit("on purpose")
    if how == "held by a module":
        sys.modules["holder_of_boxes"] = boxes  # type: ignore[assignment]


def outlived(word: str) -> None:
    """A forked child lives on when its parent, which owns a sandbox, is killed."""
    box = sleeper(word, init=False)
    quick = sleeper(word, **QUICK)
    child = os.fork()
    if child == 0:
        box.__dict__["kept"] = quick
        os.close(0)
        signal.alarm(60)
        signal.pause()
    say({"pids": [box.pid, quick.pid], "launcher": launcher_of(box), "child": child})
    signal.pause()


def terminal(word: str) -> None:
    """In the foreground of a terminal: each ^C raises here, and ends nothing else."""
    box = sleeper(word)
    other = sleeper(word, **QUICK)
    launcher = launcher_of(box)
    say({"pids": [box.pid, other.pid], "launcher": launcher})
    for n in range(3):
        try:
            say({"waiting": n})
            for _ in range(400):  # in slices: one long sleep could begin just after the signal
                time.sleep(scaled(0.05))
            say({"error": "no KeyboardInterrupt"})
        except KeyboardInterrupt:
            # A round trip: what the signal did to the launcher and the boxes was done before.
            code = nsbox.run(["/bin/sh", "-c", "exit 3"], **QUICK).returncode
            say({
                "running": [box.poll() is None, other.poll() is None],
                "launcher": launcher_of(box) == launcher and kit.alive(launcher),
                "code": code,
            })  # fmt: skip
    signal.pause()


# -- promises ---------------------------------------------------------------------------------


def _raises(call: Callable[[], object]) -> str:
    """What the StateError says that *call* raises."""
    try:
        value = call()
    except nsbox.StateError as e:
        return str(e)
    raise AssertionError(f"no StateError but {value!r}")


def launcher_killed(word: str) -> None:
    """All sandboxes go with it, every handle says so, and the next spawn works."""
    boxes = [sleeper(word), sleeper(word, **QUICK), sleeper(word, init=False)]
    stubborn = nsbox.Popen(["/usr/bin/python3", "-c", STUBBORN, word], init=False, stdout=-1)
    assert stubborn.stdout.readline() == b"1\n"
    boxes.append(stubborn)
    pids, launcher = [box.pid for box in boxes], launcher_of(boxes[0])
    kit.kill(launcher)
    poll_until(
        lambda: not [*filter(kit.alive, pids), *kit.named(word)], 1.0, every_s=0.005,
        what="sandboxes without a launcher",
    )  # fmt: skip
    for box in boxes:
        for verb in (box.poll, box.wait, lambda box=box: box.wait(0.01), box.communicate):
            text = _raises(verb)
            assert "launcher of this process was killed" in text, text
        box.kill()  # nothing to do, and no error
        box.send_signal(signal.SIGTERM)
        assert box.returncode is None
    assert nsbox.run(["/bin/sh", "-c", "exit 5"]).returncode == 5
    fresh = sleeper(word)
    assert launcher_of(fresh) != launcher
    for box in (*boxes, fresh):
        box.close()
        box.close()
    assert not kit.cgroups_of(os.getpid())
    assert len(kit.locks_of(os.getpid())) == 1, "the lock of the one that was killed"


def launcher_killed_while_running(word: str) -> None:
    """run() in a thread raises StateError, and does not hang."""
    caught: list[BaseException] = []

    def body() -> None:
        try:
            nsbox.run(["/bin/sh", "-c", "sleep 300; :", word])
        except BaseException as e:
            caught.append(e)

    nsbox.run(["/bin/true"], **QUICK)
    thread = threading.Thread(target=body)
    thread.start()
    box = poll_until(lambda: kit.named(word), 10.0)[0]
    launcher = kit.parent_of(box)
    while kit.named_line(launcher).startswith("nsbox-init init") or "nsbox-init" not in (
        kit.named_line(launcher)
    ):
        launcher = kit.parent_of(launcher)
    assert "launcher" in kit.named_line(launcher)
    kit.kill(launcher)
    thread.join(scaled(5))
    assert not thread.is_alive()
    assert isinstance(caught[0], nsbox.StateError), caught


def _kill_launcher_of_a_box(word: str, after_s: float) -> None:
    """Other threads spawn, and one of their launchers may be the one that dies just now."""
    try:
        with sleeper(word, **QUICK) as box:
            launcher = launcher_of(box)
            time.sleep(after_s)
            if launcher > 1 and "launcher" in kit.named_line(launcher):
                kit.kill(launcher)
    except nsbox.NsboxError:
        pass


def launcher_killed_while_spawning(word: str) -> None:
    """Spawns that were under way raise an error of nsbox's, later ones work; nothing hangs."""
    stop, wrong = threading.Event(), []
    done = [0, 0]

    def body() -> None:
        while not stop.is_set():
            try:
                code = nsbox.run(["/bin/sh", "-c", "exit 4", word]).returncode
                done[0] += 1
                if code != 4:
                    wrong.append(code)
            except nsbox.NsboxError:
                done[1] += 1
            except BaseException as e:
                wrong.append(repr(e))

    threads = [threading.Thread(target=body) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(10):
            _kill_launcher_of_a_box(word, 0.003 * i)
    finally:
        stop.set()
        for thread in threads:
            thread.join(scaled(20))
    assert not any(thread.is_alive() for thread in threads), "run() hangs"
    assert not wrong, wrong
    assert done[0], done
    assert nsbox.run(["/bin/sh", "-c", "exit 5"]).returncode == 5
    poll_until(lambda: not kit.named(word), 2.0, what="payloads")
    poll_until(lambda: not kit.cgroups_of(os.getpid()), 2.0, what="cgroups")
    assert len(kit.locks_of(os.getpid())) == 1


def _interrupt_timer() -> Callable[[float], None]:
    """Arms a timer that sends SIGINT itself, which a program may treat like no other signal."""
    libc = ctypes.CDLL(None, use_errno=True)
    monotonic, by_signal = 1, 0
    event = (ctypes.c_int * 16)()  # struct sigevent: a value of 8 bytes, signo, notify
    event[2], event[3] = signal.SIGINT, by_signal
    timer = ctypes.c_void_p()
    assert libc.timer_create(monotonic, event, ctypes.byref(timer)) == 0

    def arm(seconds: float) -> None:
        # Again: what comes just before a system call that waits does not interrupt that call.
        again = int(seconds > 0) * 500_000_000
        when = (ctypes.c_long * 4)(0, again, int(seconds), int(seconds % 1 * 1e9))
        assert libc.timer_settime(timer, 0, when, None) == 0

    return arm


def _descriptors() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}").partition("[")[0])
    return sorted(links)


def interrupted(word: str, times: str, seed: str) -> None:
    """KeyboardInterrupt at random times in run() leaves nothing behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt_in = _interrupt_timer()
    choice = random.Random(int(seed))
    variants = (STRICT, QUICK, {"profile": "none"})
    took = {}
    for i, keywords in enumerate(variants):
        for _ in range(2):
            begin = time.monotonic()
            nsbox.run(["/bin/sh", "-c", ":", word], capture_output=True, **keywords)
            took[i] = time.monotonic() - begin
    with sleeper(word, **QUICK) as box:
        launcher = launcher_of(box)
    before, lost, hits = _descriptors(), [], 0
    for n in range(int(times)):
        i = choice.randrange(len(variants))
        args = ["/bin/sh", "-c", choice.choice((":", "sleep 300; :")), word]
        try:
            interrupt_in(choice.uniform(0.0001, took[i] * 1.2))
            nsbox.run(args, capture_output=True, **variants[i])
            interrupt_in(0)
        except KeyboardInterrupt:
            interrupt_in(0)
            hits += 1
        now = _descriptors()
        if now != before:
            new = list(now)
            for link in before:
                if link in new:
                    new.remove(link)
            lost.append((n, new))
            before = now
    assert hits > int(times) // 4, hits
    gc.collect()
    problems = [f"descriptors after interruption {n}: {new}" for n, new in lost]
    for look in (lambda: kit.named(word), lambda: kit.children_of(launcher),
                 lambda: kit.cgroups_of(os.getpid())):  # fmt: skip
        try:
            poll_until(lambda look=look: not look(), 2.0)
        except AssertionError:
            problems.append(f"left: {[*map(str, look())]}")
    assert not problems, "\n".join([f"{len(problems)} problems:", *problems[:10]])
    assert nsbox.run(["/bin/sh", "-c", "exit 5"]).returncode == 5


def body_raises(word: str) -> None:
    """An exception inside ``with Popen`` ends the sandbox before it is seen outside."""
    box = None
    try:
        with sleeper(word) as box:
            pid = box.pid
            raise LookupError(word)
    except LookupError:
        assert not kit.alive(pid)
    assert not kit.named(word)
    assert not kit.cgroups_of(os.getpid())


def dropped(word: str) -> None:
    """A Popen that nobody holds warns and is gone."""
    for keywords in (STRICT, QUICK, {"stdout": nsbox.PIPE, "stdin": nsbox.PIPE}):
        box = sleeper(word, **keywords)
        pid = box.pid
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del box
            gc.collect()
        about = [w for w in seen if "Popen" in str(w.message)]
        assert [w.category for w in about] == [ResourceWarning], [str(w.message) for w in seen]
        assert "was not closed" in str(about[0].message)
        poll_until(lambda pid=pid: not kit.alive(pid), 1.0, what="a dropped sandbox")
    assert not kit.named(word)
    assert not kit.cgroups_of(os.getpid())


def _in_child(body: Callable[[], None]) -> int:
    """The exit code of a forked child: 0 when *body* raised nothing."""
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(scaled(30), exit=True)
        try:
            body()
        except BaseException as e:
            os.write(2, f"in the forked child: {type(e).__name__}: {e}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def forked(word: str) -> None:
    """A forked child may neither use nor end what is its parent's, and can have its own."""
    with sleeper(word) as box, sleeper(word, stdout=nsbox.PIPE, **QUICK) as other:
        launcher = launcher_of(box)

        def child() -> None:
            for verb in (box.poll, box.wait, box.kill, box.terminate, other.communicate,
                         lambda: box.send_signal(9)):  # fmt: skip
                text = _raises(verb)
                assert "forked" in text, text
                assert str(os.getppid()) in text, text
            assert nsbox.run(["/bin/sh", "-c", "exit 6"]).returncode == 6
            with sleeper(word, **QUICK) as own:
                assert launcher_of(own) != launcher

        assert _in_child(child) == 0
        assert _in_child(lambda: None) == 0
        assert (box.poll(), other.poll()) == (None, None)
        assert kit.alive(box.pid)
        assert kit.alive(other.pid)
        assert launcher_of(box) == launcher
        assert nsbox.run(["/bin/sh", "-c", "exit 5"]).returncode == 5


def forked_and_finalized(word: str) -> None:
    """A child that ends as an interpreter does drops its copies of its parent's handles."""
    warnings.simplefilter("ignore", ResourceWarning)
    box = sleeper(word)
    child = os.fork()
    if child == 0:
        del box
        gc.collect()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert box.poll() is None
    assert nsbox.run(["/bin/sh", "-c", "exit 5"]).returncode == 5
    assert kit.alive(box.pid)
    box.close()


def forked_while_spawning(word: str) -> None:
    """Forks at any moment of other threads' spawns: no child hangs, no lock is left taken."""
    stop, wrong = threading.Event(), []

    def body() -> None:
        while not stop.is_set():
            code = nsbox.run(["/bin/sh", "-c", "exit 4", word]).returncode
            if code != 4:
                wrong.append(code)

    def child() -> None:
        assert nsbox.run(["/bin/sh", "-c", "exit 6"], **QUICK).returncode == 6

    nsbox.run(["/bin/true"])  # a fork beside an import would hang, with or without nsbox
    threads = [threading.Thread(target=body) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = [_in_child(child) for _ in range(15)]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    assert not any(codes), codes


# -- threads ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _thief() -> Iterator[list[Any]]:
    """Another part of the program: ignores SIGCHLD, and takes every status it can get."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    stop, taken = threading.Event(), [0]

    def body() -> None:
        while not stop.is_set():
            try:
                taken.append(os.waitpid(-1, os.WNOHANG))
            except ChildProcessError:
                taken[0] += 1
            time.sleep(0.0002)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()


def exit_codes(word: str, runs: str, threads: str) -> None:
    """Every exit code is right, whatever the program does about its children."""
    wrong: list[tuple[int, object]] = []

    def body(first: int) -> None:
        for i in range(first, int(runs), int(threads)):
            keywords = QUICK if i % 8 else STRICT
            args = ["/bin/sh", "-c", f"exit {i % 256}", word]
            try:
                code: object = nsbox.run(args, **keywords).returncode
            except BaseException as e:
                code = f"{type(e).__name__}: {e}"
            if code != i % 256:
                wrong.append((i, code))

    with _thief() as taken:
        workers = [threading.Thread(target=body, args=(n,)) for n in range(int(threads))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong, wrong[:10]
    assert taken[0] > 10, "waitpid() was never called"
    assert len(taken) == 1, f"waitpid(-1) saw a child of nsbox: {taken[1:5]}"


def signals_told(word: str) -> None:
    """A signal is told as -n under the same conditions, a stolen status never is."""
    with _thief() as taken:
        for keywords in (QUICK, STRICT):
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
                if keywords is QUICK and number != signal.SIGKILL:
                    continue  # PID 1 itself: it ignores what it does not handle
                with sleeper(word, **keywords) as box:
                    box.send_signal(number)
                    assert box.wait(scaled(10)) == -number
    assert len(taken) == 1, taken[1:]


def threads_end(word: str) -> None:
    """The end of the thread that spawned it does not end a sandbox."""
    boxes: list[nsbox.Popen] = []
    for keywords in (STRICT, QUICK, {"init": False}):
        thread = threading.Thread(target=lambda k=keywords: boxes.append(sleeper(word, **k)))
        thread.start()
        thread.join()
        poll_until(lambda t=thread: not os.path.exists(f"/proc/self/task/{t.native_id}"), 2.0)
    # A parent-death signal would have come with the thread's end; ask the launcher, too.
    assert nsbox.run(["/bin/sh", "-c", "exit 5"], **QUICK).returncode == 5
    assert [box.poll() for box in boxes] == [None] * 3
    assert all(kit.alive(box.pid) for box in boxes)
    for box in boxes:
        box.close()


# -- secrets ----------------------------------------------------------------------------------

_SIX = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
SECRET_VARIANTS: dict[str, dict[str, Any]] = {
    "strict": {},
    "strict, full proc": {"proc": "full"},
    "strict without init": {"init": False},
    "standard": {"profile": "standard"},
    "none": {"profile": "none"},
    "none without init": {"profile": "none", "init": False},
    "user namespace alone": {"profile": "none", "namespaces": ("user", "pid", "mnt")},
}
if os.geteuid() == 0:
    SECRET_VARIANTS["strict, root without user namespace"] = {"namespaces": _SIX}
    SECRET_VARIANTS["none, all namespaces"] = {"profile": "none", "namespaces": (*_SIX, "user")}


def _new_secret() -> str:
    return f"NSBOX{'SECRET'}-{os.urandom(16).hex()}"


def _scan(*pids: int) -> list[str]:
    return ["/usr/bin/python3", "-c", Path(kit.HERE, "scanner.py").read_text(), *map(str, pids)]


def _keep_in_keyring(secret: str) -> bool:
    """In an anonymous session keyring; False where the kernel has none."""
    numbers = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(os.uname().machine)
    if numbers is None:
        return False
    add_key, keyctl = numbers
    libc = ctypes.CDLL(None, use_errno=True)
    join_session_keyring, session = 1, -3
    if libc.syscall(keyctl, join_session_keyring, None) <= 0:
        return False
    raw = secret.encode()
    return libc.syscall(add_key, b"user", b"nsbox-fault", raw, len(raw), session) > 0


def _open_inheritable(secret: str, where: str) -> list[int]:
    """A file with the secret and fifty directories, one with the secret in a name."""
    Path(where, secret).write_text(secret)
    fds = [os.open(Path(where, secret), os.O_RDONLY)]
    fds += [os.open(where, os.O_RDONLY | os.O_DIRECTORY) for _ in range(50)]
    for fd in fds:
        os.set_inheritable(fd, True)
    return fds


def _others(secret: str, stop: threading.Event, done: list[int]) -> None:
    """Sandboxes with another secret of their own: the launcher holds their plans."""
    while not stop.is_set():
        for keywords in (QUICK, STRICT):
            nsbox.run(["/bin/true", secret], env={"TOKEN": secret}, **keywords)
            done[0] += 1


@contextlib.contextmanager
def _busy_with(secret: str) -> Iterator[list[int]]:
    stop, done = threading.Event(), [0]
    threads = [threading.Thread(target=_others, args=(secret, stop, done)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def secrets(where: str) -> None:
    """No payload finds a secret of its owner's or of another sandbox's, wherever it looks."""
    secret, other = _new_secret(), _new_secret()
    held = secret.encode() * 3
    os.environ["NSBOX_TEST_TOKEN"] = secret
    has_key = _keep_in_keyring(secret)
    fds = _open_inheritable(secret, where)
    problems = _control(secret, has_key)
    with _busy_with(other) as done:
        for name, keywords in SECRET_VARIANTS.items():
            problems += [f"{name}: {what}" for what in _scan_inside(keywords)]
        poll_until(lambda: done[0] >= 200, 60.0, what="other sandboxes")
    assert held.startswith(secret.encode())
    assert len(fds) == 51
    assert not problems, "\n".join(problems)


def secrets_joined(where: str) -> None:
    """The same for what is in a container that is joined 300 times meanwhile."""
    secret, other = _new_secret(), _new_secret()
    os.environ["NSBOX_TEST_TOKEN"] = secret
    has_key = _keep_in_keyring(secret)
    fds = _open_inheritable(secret, where)
    problems = _control(secret, has_key)
    with _busy_with(other):
        for name in ("strict, full proc", "standard", "strict without init"):
            keywords = {
                "limits": nsbox.Limits(pids=64),
                "best_effort": True,
                **SECRET_VARIANTS[name],
            }
            with nsbox.Container(["sleep", "1000"], **keywords) as box:
                joins = threading.Thread(target=_join, args=(box, 300))
                joins.start()
                scans = 0
                while joins.is_alive():
                    scans += 1
                    done = box.exec(_scan(), capture_output=True, timeout=scaled(30))
                    problems += [f"{name}: {what}" for what in _problems(done)]
                assert scans > 1
    assert len(fds) == 51
    assert not problems, "\n".join(problems)


def _join(box: nsbox.Container, times: int) -> None:
    for _ in range(times):
        box.exec(["/bin/true"], check=True)


def _scan_inside(keywords: dict[str, Any]) -> list[str]:
    return _problems(nsbox.run(_scan(), capture_output=True, timeout=scaled(30), **keywords))


def _problems(done: nsbox.Completed) -> list[str]:
    if done.returncode:
        return [f"the scanner fails: {done.stderr!r}"]
    report = json.loads(done.stdout)
    problems = [f"{where}: {found}" for where, found in report["hits"]]
    if report["fds"] != [0, 1, 2]:
        problems.append(f"descriptors {report['fds']}")
    if not {"own", "environ"} <= set(report["tried"]):
        problems.append(f"looked nowhere: {report['tried']}")
    return problems


def _control(secret: str, has_key: bool) -> list[str]:
    """The same scanner finds it here by each way, and in a sandbox what that was given."""
    raw = subprocess.run(
        _scan(os.getpid()), stdout=subprocess.PIPE, check=True, close_fds=False
    ).stdout
    found = {where.split()[0] for where, what in json.loads(raw)["hits"] if what == secret}
    expected = {"own", "environ", "fd", "mem", "vm"} | ({"key"} if has_key else set())
    problems = [f"control: not found by {way}" for way in sorted(expected - found)]
    given = nsbox.run(_scan(), env={"GIVEN": secret}, capture_output=True, **STRICT)
    if secret not in given.stdout.decode():
        problems.append("control: not found where it was given")
    return problems


# -- memory -----------------------------------------------------------------------------------

HOG = ("b = []\nwhile True:\n b.append(bytearray(1 << 20))\n"
       " for i in range(0, 1 << 20, 4096): b[-1][i] = 1\n")  # fmt: skip


def fat(word: str, rounds: str) -> None:
    """An OOM in a sandbox never touches a caller with far more memory than the limit."""
    ballast = bytearray(1 << 30)
    for i in range(0, len(ballast), 4096):
        ballast[i] = 1
    tight = nsbox.Limits(memory="32MiB")
    with sleeper(word, **QUICK) as box:
        launcher = launcher_of(box)
        reasons: dict[str, int] = {}
        for _ in range(int(rounds)):
            for keywords in (STRICT, {"init": False}, {"profile": "none"},
                             {"profile": "none", "init": False}):  # fmt: skip
                done = nsbox.run(["/usr/bin/python3", "-c", HOG, word], limits=tight,
                                 timeout=scaled(20), **keywords)  # fmt: skip
                name = f"{done.reason.name} {done.returncode} {done.limits_hit}"
                reasons[name] = reasons.get(name, 0) + 1
        assert reasons == {"OOM -9 ('memory',)": int(rounds) * 4}, reasons
        assert box.poll() is None
        assert launcher_of(box) == launcher
        assert kit.alive(launcher)
    assert ballast[4096] == 1
    assert len(ballast) == 1 << 30


def least_memory(word: str) -> None:
    """At 1 MiB nothing may fit, but nothing hangs: a result, an error or an OOM."""
    least = nsbox.Limits(memory="1MiB")
    with sleeper(word, **QUICK) as box:
        launcher = launcher_of(box)
        for keywords in (STRICT, {"init": False}, {"profile": "none"},
                         {"profile": "none", "init": False}):  # fmt: skip
            for args in (["/bin/true"], ["/usr/bin/python3", "-c", HOG, word]):
                begin = time.monotonic()
                try:
                    done = nsbox.run(args, limits=least, timeout=scaled(10), **keywords)
                    outcome = done.reason.name
                    assert outcome in ("EXITED", "OOM"), (keywords, args, done)
                    assert outcome == "OOM" or args == ["/bin/true"], (keywords, done)
                except nsbox.SetupError as e:
                    outcome = "memory" if "memory" in str(e) else str(e)
                say([sorted(keywords), args[0], outcome, round(time.monotonic() - begin, 2)])
                assert time.monotonic() - begin < scaled(8)
        assert box.poll() is None
        assert launcher_of(box) == launcher
        assert kit.alive(launcher)
    assert not kit.cgroups_of(os.getpid())


def not_a_guess(word: str) -> None:
    """SIGKILL under a memory limit is no OOM when the kernel counted none."""
    limit = nsbox.Limits(memory="64MiB")
    done = nsbox.run(["/bin/sh", "-c", "kill -9 $$", word], limits=limit)
    assert (done.reason, done.returncode, done.limits_hit) == (nsbox.Reason.SIGNALED, -9, ())


def hogs_and_others(word: str) -> None:
    """Many hogs at once, from threads: each its own verdict, none another's."""
    wrong: list[object] = []

    def body(hog: bool) -> None:
        for _ in range(3):
            args = ["/usr/bin/python3", "-c", HOG] if hog else ["/bin/sh", "-c", "exit 3"]
            done = nsbox.run([*args, word], limits=nsbox.Limits(memory="32MiB"))
            expected = (nsbox.Reason.OOM, -9) if hog else (nsbox.Reason.EXITED, 3)
            if (done.reason, done.returncode) != expected:
                wrong.append(done)

    threads = [threading.Thread(target=body, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def too_few_descriptors(most: str) -> None:
    """No sandbox at all can be had: the error says for want of what, and how to mend it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(most), int(most)))
    found: OSError | None = None
    try:
        nsbox.run(["true"])
    except (nsbox.SetupError, nsbox.Unavailable) as e:
        found = e
    assert found is not None, "it ran"
    assert found.errno == errno.EMFILE, found
    assert "EINVAL" not in str(found), found
    assert "above the first 256: raise the hard limit of open files" in str(found), found


def descriptors_run_out(word: str) -> None:
    """The launcher's, by a limit that it inherits: it says so, and everything goes on."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
    args = ["/bin/sh", "-c", f"sleep 60 # {word}"]
    boxes: list[nsbox.Popen] = []
    full: nsbox.SetupError | None = None
    while full is None and len(boxes) < 100:
        try:
            boxes.append(nsbox.Popen(args, init=False, stdout=-3, stderr=-3, namespaces=NESTED))
        except nsbox.SetupError as e:
            full = e
    assert full is not None, "300 descriptors are enough for 100 sandboxes?"
    assert full.errno == errno.EMFILE, full
    assert "RLIMIT_NOFILE" in str(full), full
    assert len(boxes) > 5
    assert [box.poll() for box in boxes] == [None] * len(boxes)
    boxes.pop().close()
    nsbox.Popen(args, init=False, stdout=-3, stderr=-3, namespaces=NESTED).close()
    for box in boxes:
        assert box.poll() is None
        box.close()


NESTED = ["user", "pid"]
SCENARIOS: dict[str, Callable[..., None]] = {
    name: value for name, value in list(globals().items())
    if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == __name__
}  # fmt: skip


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](*sys.argv[2:])
