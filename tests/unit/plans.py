# SPDX-License-Identifier: Apache-2.0
"""What tests of plans share: hosts that were made up, plans of every kind, and a decoder.

The decoder is written from csrc/nsb.h, not from nsbox/plan.py: it is the second opinion.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from nsbox import compile as compiler
from nsbox.creds import router_map
from nsbox.host import Host
from nsbox.hoststeps import IdMap
from nsbox.keywords import Allow, another_process, make_spec
from nsbox.names import CAPABILITIES, NAMESPACES, RLIMITS
from nsbox.spec import Limits, Mount, NetLabel, Rootfs, Spec
from nsbox.steps import Netlink

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from nsbox.plan import Plan

# -- hosts ------------------------------------------------------------------------------------

SYSTEM = (("/usr", "dir", ""), ("/bin", "link", "usr/bin"), ("/etc/localtime", "file", ""))
DEVICES = (("null", 0x103), ("zero", 0x105), ("tty", 0x500))
USER: dict[str, Any] = {
    "euid": 1001,
    "egid": 1002,
    "capabilities": 0,
    "privileged": False,
    "maps_ids": False,
    "attaches_bpf": False,
    "system": SYSTEM,
    "devices": DEVICES,
}

#: Not one of them is the host of the test: compile() must not look.
HOSTS: dict[str, Host] = {
    "root, v1": Host(system=SYSTEM, devices=DEVICES, cgroup_version=1),
    "root, v2": Host(system=SYSTEM, devices=DEVICES),
    "root, no cgroup": Host(system=SYSTEM, devices=DEVICES, controllers=(), cgroup_version=0),
    "user, one id": Host(**USER, controllers=(), cgroup_version=0),
    "user, subids": Host(**USER, controllers=(), cgroup_version=0, subids=True),
    "user, delegated v2": Host(**USER),
}

# -- plans ------------------------------------------------------------------------------------


def plan_of(host: str | Host = "root, v2", **keywords: Any) -> Plan:
    """The plan of ``run()``'s keywords on a host of HOSTS."""
    how = {
        name: keywords.pop(name) for name in ("join", "join_map", "template") if name in keywords
    }
    args = keywords.pop("args", ["/bin/true"])
    where = host if isinstance(host, Host) else HOSTS[host]
    return compiler.compile_spec(make_spec(args, **keywords), where, **how)


FULL: dict[str, Any] = {
    "args": ["sh", "-c", "true"],
    "env": {"PATH": "/usr/bin:/bin", "A": "b=c"},
    "hostname": "box",
    "cwd": "/tmp/x",
    "files": {"a/b": b"x", "empty": b""},
    "mounts": (
        Mount.bind("/srv", "/data", ro=False),
        Mount.tmpfs("/var/tmp", "1MiB", noexec=True),
        Mount.file("/etc/motd", "hello", 0o600),
        Mount.symlink("/etc/also", "motd"),
        Mount.proc("/proc2"),
        Mount.mqueue("/mq"),
    ),
    "pass_fds": (5, 9),
    "rlimits": {"core": 0, "nofile": (10, 20)},
    "limits": Limits(disk="1MiB", inodes=100),
}

#: Keywords for each kind of sandbox that takes another way through compile().
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": FULL,
    "standard": {"profile": "standard"},
    "standard user": {"profile": "standard", "user": 7, "groups": (3, 4)},
    "none": {"profile": "none"},
    "no namespaces": {"profile": "none", "namespaces": (), "init": False},
    "no user namespace": {"namespaces": ("mnt", "pid", "net", "ipc", "uts", "cgroup")},
    "directory": {"root": Rootfs.dir("/srv/root"), "mounts": FULL["mounts"]},
    "chroot": {"root": Rootfs.dir("/srv/root", ro=False, method="chroot")},
    "overlay": {"root": Rootfs.overlay(["/srv/a", "/srv/b"]), "mounts": FULL["mounts"]},
    "overlay of the caller's": {"root": Rootfs.overlay("/srv/a", "/srv/upper")},
    "other mounts": {
        "mounts": (
            Mount.bind("/srv", "/mapped", idmap=True),
            Mount.bind("/mnt", "/slave", ro=False, propagation="slave"),
            Mount.devpts(),
            Mount.sysfs(),
        ),
    },
    "inherited root": {"root": Rootfs.inherit()},
    "host network": {"net": "host"},
    "no init": {"init": False},
    "user without pid": {"namespaces": ("user", "mnt")},
    "capabilities": {"user": 7, "profile": "standard", "capabilities": ["NET_RAW", "kill"]},
    "time": {"time_offsets": {"monotonic": 1.5, "boottime": -2}, "init": False},
    "shared pid": {"join": ("user", "net", "ipc", "pid"), "join_map": "slot", "init": False},
    "joined time and cgroup": {
        "join": ("user", "cgroup", "time"),
        "join_map": "single",
        "namespaces": (),
        "profile": "none",
        "init": False,
    },
    "joined": {"join": ("user", "net", "ipc"), "join_map": "slot"},
    "joined, template": {
        "join": ("user", "net", "ipc"),
        "join_map": "slot",
        "root": "/srv/root",
        "template": True,
    },
    "joined, one id": {"join": ("user", "net", "ipc"), "join_map": "single", "init": False},
    "terminal": {"pty": (40, 100), "umask": 0o077},
    "terminal, no init": {"pty": True, "init": False, "root": Rootfs.inherit()},
    "network": {"net": NetLabel("eth0 in nsb0, 10.77.0.0/24"), "egress": Allow("10.0.0.0/8")},
    "network, template": {"net": NetLabel("eth0 in nsb0, 10.77.0.0/24"), "template": True},
    "network, capabilities": {"net": NetLabel("eth0 in nsb0"), "profile": "standard"},
    "template": {"namespaces": ("mnt", "pid"), "template": True, "files": {"a": b"1"}},
}


def exec_plan(host: str, spec: Spec, *, terminals: bool = False, **keywords: Any) -> Plan:
    """One more process of a sandbox; *terminals*: that has a devpts of its own."""
    inside = compiler.compile_spec(spec, HOSTS[host])
    id_map = inside.id_map.kind if inside.id_map else ""
    other = another_process(spec, ["sh", "-c", "true"], env={"A": "b"}, **keywords)
    return compiler.compile_exec(spec, other, HOSTS[host], inside, id_map, terminals=terminals)


def _other_plans() -> dict[str, Callable[[], Plan]]:
    spec = make_spec(["true"])
    one = make_spec(["pause"], namespaces=("user", "net", "ipc", "pid", "mnt"), hostname=None)
    directory = make_spec(["true"], root="/srv/root", namespaces=("mnt",))
    plain = make_spec(["true"], namespaces=("mnt",))
    root, user = HOSTS["root, v1"], HOSTS["user, one id"]
    return {
        "template of the host": lambda: compiler.compile_template(plain, root),
        "template with nodes": lambda: compiler.compile_template(plain, root, makes_nodes=True),
        "template of a directory": lambda: compiler.compile_template(directory, root),
        "pause, root": lambda: compiler.compile_pause(one, root),
        "pause, user": lambda: compiler.compile_pause(one, user),
        "pause, joined": lambda: compiler.compile_pause(
            make_spec(["pause"], namespaces=("net", "pid", "mnt")),
            user,
            ("user",),
            join_map="single",
            sysctls=(("net/ipv4/ip_forward", "1"),),
        ),
        "pause, everything": lambda: compiler.compile_pause(spec, root),
        "exec, root": lambda: exec_plan("root, v1", spec),
        "exec, user": lambda: exec_plan("user, delegated v2", spec),
        "exec, inherited root": lambda: exec_plan(
            "root, v2", make_spec(["true"], root=Rootfs.inherit(), time_offsets={"boottime": 1})
        ),
        "exec, terminal": lambda: exec_plan("user, one id", spec, pty=(24, 80)),
        "exec, one more terminal": lambda: exec_plan("root, v2", spec, pty=True, terminals=True),
        "exec, terminal, inherited root": lambda: exec_plan(
            "root, v1", make_spec(["true"], root=Rootfs.inherit()), pty=True
        ),
        "holder, maps": lambda: compiler.compile_holder(
            make_spec(["x"], namespaces=("user",), profile="none"),
            root,
            IdMap(((0, 5, 2), (9, 1, 1)), ((0, 5, 2),), "launcher", "uid_map"),
        ),
        "id holder": lambda: compiler.compile_id_holder(((0, 7, 1),), ((0, 8, 1), (9, 9, 2))),
        "socket": lambda: compiler.compile_netlink(("user", "net"), Netlink.NETFILTER),
        "socket for echo requests": lambda: compiler.compile_netlink(("net",), Netlink.ICMP),
        "owned socket": lambda: compiler.compile_netlink(("net",), Netlink.TCP6, owned=True),
        "router": lambda: compiler.compile_holder(
            make_spec(["x"], namespaces=("user", "net"), profile="none", root=Rootfs.inherit()),
            HOSTS["user, subids"],
            router_map(HOSTS["user, subids"]),
            sysctls=(("net/ipv4/ip_forward", "1"),),
        ),
        "holder within": lambda: compiler.compile_holder(
            make_spec(["x"], namespaces=("user", "net"), profile="none", root=Rootfs.inherit()),
            user,
            join=("user",),
            join_map="single",
        ),
        "pause in a router": lambda: compiler.compile_pause(
            make_spec(
                ["pause"],
                namespaces=("user", "net", "ipc", "pid", "mnt"),
                net=NetLabel("eth0 in nsb0"),
            ),
            user,
        ),
        "proxy": lambda: compiler.compile_proxy(user, ("0200", "0a00"), ("user", "net")),
        "proxy of the host": lambda: compiler.compile_proxy(user, ("0200",)),
        "helper": lambda: compiler.compile_helper(("/usr/bin/newuidmap", "1", "0", "1", "1")),
    }


#: Where a kind cannot be had: compile() says so, and other tests hold it to that.
_ROOT_ONLY = {"no user namespace", "template"}
_NEEDS_IDS = {"standard user"}


def _possible(host: str, kind: str) -> bool:
    if not HOSTS[host].privileged and kind in _ROOT_ONLY:
        return False
    if kind == "none" and not HOSTS[host].privileged:
        return True
    return not (kind in _NEEDS_IDS and host in ("user, one id", "user, delegated v2"))


@functools.cache
def corpus() -> dict[str, Plan]:
    """Plans of every kind on every host that can have them, and those that no spec has."""
    plans = {
        f"{kind} ({host})": plan_of(host, **keywords)
        for host in HOSTS
        for kind, keywords in KINDS.items()
        if _possible(host, kind)
    }
    plans.update({name: make() for name, make in _other_plans().items()})
    return plans


# -- what the spec allows ---------------------------------------------------------------------

_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
_WORD = st.text("abcdefghij_-. ü", min_size=1, max_size=12)
_PART = _WORD.filter(lambda word: word not in (".", ".."))
_PATH = st.lists(_PART, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
_ID = st.integers(0, 65535)


@st.composite
def _mounts(draw: st.DrawFn) -> Mount:
    dst = draw(_PATH)
    make: list[Callable[[], Mount]] = [
        lambda: Mount.bind(draw(_PATH), dst, draw(st.booleans())),
        lambda: Mount.tmpfs(dst, draw(st.integers(4096, 1 << 40)), noexec=draw(st.booleans())),
        lambda: Mount.proc(dst),
        lambda: Mount.mqueue(dst),
        lambda: Mount.devpts(dst),
        lambda: Mount.sysfs(dst),
        lambda: Mount.bind(draw(_PATH), dst, idmap=True),
        lambda: Mount.bind(draw(_PATH), dst, False, propagation="slave"),
        lambda: Mount.file(dst, draw(st.binary(max_size=64)), draw(st.integers(0, 0o7777))),
        lambda: Mount.symlink(dst, draw(_WORD)),
    ]
    return draw(st.sampled_from(make))()


def _limits() -> st.SearchStrategy[Limits]:
    def opt(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.none() | values

    return st.builds(
        Limits,
        memory=opt(st.integers(1 << 20, 1 << 62)),
        cpu=opt(st.floats(0.01, 1e6)),
        pids=opt(st.integers(1, 1 << 22)),
        wall=opt(st.floats(0.001, 1e9)),
        cpu_time=opt(st.floats(0.001, 1e9)),
        output=opt(st.integers(1, 1 << 40)),
        disk=opt(st.integers(4096, 1 << 40)),
        inodes=opt(st.integers(16, 1 << 40)),
        nofile=opt(st.integers(3, 1 << 30)),
        oom_group=st.booleans(),
    )


_LIMIT = st.integers(0, (1 << 64) - 1)


def specs() -> st.SearchStrategy[Spec]:
    """Any spec that was checked; some contradict themselves or their host."""
    return st.builds(
        make_spec,
        st.lists(_TEXT, max_size=4).flatmap(lambda rest: _WORD.map(lambda first: [first, *rest])),
        root=st.sampled_from(
            (
                None,
                "/srv/r",
                Rootfs.inherit(),
                Rootfs.dir("/r", False, "chroot"),
                Rootfs.overlay(["/a,:", "/b"]),
                Rootfs.overlay("/a", "/u"),
            )
        ),
        cwd=st.none() | _PATH,
        env=st.none() | st.dictionaries(_WORD | st.just("PATH"), _TEXT, max_size=4),
        user=st.none() | _ID | st.tuples(_ID, _ID).map(lambda ids: f"{ids[0]}:{ids[1]}"),
        groups=st.lists(_ID, max_size=5),
        capabilities=st.none() | st.lists(st.sampled_from(CAPABILITIES), max_size=8),
        hostname=st.none() | st.from_regex(r"[a-z]([a-z0-9-]{0,9}[a-z])?", fullmatch=True),
        mounts=st.lists(_mounts(), max_size=4),
        files=st.none() | st.dictionaries(_PATH.map(lambda p: p[1:]), st.binary(max_size=50)),
        net=st.sampled_from(("none", "host")),
        limits=_limits(),
        namespaces=st.none() | st.sets(st.sampled_from(list(NAMESPACES))).map(sorted),
        init=st.booleans(),
        profile=st.sampled_from(("strict", "standard", "none")),
        proc=st.sampled_from((None, "pids", "full", "none")),
        rlimits=st.dictionaries(
            st.sampled_from(sorted(RLIMITS)),
            _LIMIT | st.tuples(_LIMIT, _LIMIT).map(lambda pair: tuple(sorted(pair))),
            max_size=4,
        ),
        pass_fds=st.lists(st.integers(0, 1023), max_size=6),
        umask=st.integers(0, 0o777),
        pty=st.booleans() | st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
        best_effort=st.booleans(),
        time_offsets=st.none()
        | st.dictionaries(st.sampled_from(("monotonic", "boottime")), st.floats(-1e9, 1e9)),
    )


# -- the decoder ------------------------------------------------------------------------------


class Header(ctypes.LittleEndianStructure):
    """``struct nsb_plan``."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("magic", "size", "nops", "njoin", "nfds")),
        *((name, ctypes.c_uint32) for name in ("flags", "uid_map", "gid_map")),
        ("cgroup_slot", ctypes.c_int32),
        ("fail_at", ctypes.c_uint32),
        ("fail_errno", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("argv", "envp", "reserved")),
        ("clone_flags", ctypes.c_uint64),
    )


class RawOp(ctypes.LittleEndianStructure):
    """``struct nsb_op``."""

    _fields_ = (
        *((name, ctypes.c_uint16) for name in ("code", "flags")),
        *((name, ctypes.c_uint32) for name in "abc"),
        *((name, ctypes.c_uint64) for name in "nm"),
    )


class Decoded(NamedTuple):
    """An encoded plan, taken apart."""

    raw: bytes
    header: Header
    ops: list[RawOp]

    def bytes_at(self, offset: int) -> bytes:
        return self.raw[offset : self.raw.index(b"\0", offset)]

    def text(self, offset: int) -> str:
        return self.bytes_at(offset).decode("utf-8", "surrogateescape")

    def options(self, offset: int) -> tuple[tuple[str, str], ...]:
        """A LIST: "key", then "=value" or "!" for a flag."""
        found = []
        while offset and (key := self.text(offset)):
            offset += len(key.encode()) + 1
            value = self.text(offset)
            offset += len(value.encode()) + 1
            assert value == "!" or value.startswith("=")
            found.append((key, value.removeprefix("=")))
        return tuple(found)

    def vector(self, offset: int) -> tuple[str, ...]:
        assert offset % 8 == 0, "execve takes aligned pointers"
        found = []
        while entry := int.from_bytes(self.raw[offset : offset + 8], "little"):
            found.append(self.text(entry))
            offset += 8
        return tuple(found)


def decode(raw: bytes) -> Decoded:
    header = Header.from_buffer_copy(raw)
    start, size = ctypes.sizeof(Header), ctypes.sizeof(RawOp)
    ops = [RawOp.from_buffer_copy(raw, start + i * size) for i in range(header.nops)]
    return Decoded(raw, header, ops)


# -- mutations --------------------------------------------------------------------------------


def _interesting(chance: random.Random, raw: bytes) -> int:
    """A word that a bounds check may get wrong."""
    pool = ctypes.sizeof(Header) + ctypes.sizeof(RawOp) * Header.from_buffer_copy(raw).nops
    edges = (0, 1, 7, 8, 63, 64, pool - 1, pool, pool + 8, len(raw) - 8, len(raw) - 1, len(raw),
             159, 160, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF)  # fmt: skip
    return chance.choice((*edges, chance.randrange(1 << 32), chance.randrange(len(raw))))


def mutant(chance: random.Random, raw: bytes) -> bytes:
    """A plan with one thing changed: a word of the header or of an op, a byte, or its size."""
    how = chance.randrange(8)
    if how == 0:
        return raw[: chance.randrange(len(raw))]
    data = bytearray(raw)
    if how == 1:
        del data[-chance.randrange(1, 64) :]
        data[4:8] = len(data).to_bytes(4, "little")
    elif how == 2:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == 3:
        data[chance.randrange(len(data))] = chance.randrange(256)
    else:
        head = ctypes.sizeof(Header)
        end = head if how == 4 else head + ctypes.sizeof(RawOp) * Header.from_buffer_copy(raw).nops
        at = chance.randrange(0 if how == 4 else head, end, 4)
        data[at : at + 4] = _interesting(chance, raw).to_bytes(4, "little")
    return bytes(data)


def mutants(chance: random.Random, count: int) -> Iterator[bytes]:
    """*count* plans, each valid but for one change; the same for the same *chance*."""
    whole = sorted({plan.encode(id_slot=65536) for plan in corpus().values()})
    for _ in range(count):
        yield mutant(chance, chance.choice(whole))
