# SPDX-License-Identifier: Apache-2.0
"""compile(): pure, and its plans keep the laws of order, on every host that was made up."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import scaled
from unit.plans import HOSTS, KINDS, corpus, decode, exec_plan, plan_of

from nsbox.build import CALLER_ID, SLOT_IDS
from nsbox.compile import PATH
from nsbox.creds import router_map
from nsbox.errors import SpecError, Unavailable
from nsbox.host import CONTROLLERS, Host
from nsbox.hoststeps import Clone3, IdMap, LauncherNet, MakeCgroup, MapTree, SetLimit
from nsbox.keywords import make_spec
from nsbox.names import CAPABILITIES, NAMESPACES, Clone, Opcode, OpFlag, PlanFlag, Propagation
from nsbox.profile import PROFILES
from nsbox.slots import JOIN, OWNER, TIME, Slot
from nsbox.spec import Limits, Mount, NetLabel, Rootfs
from nsbox.steps import (
    EnterCgroup,
    HandNetlink,
    HandOver,
    Open,
    OpenNetlink,
    OpenPty,
    OpenTree,
    Setns,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nsbox.plan import Plan

pytestmark = pytest.mark.leaks_ok("compile() is pure, as its first test proves")

EVERY_HOST = pytest.mark.parametrize("host", HOSTS)


def every_plan(law: Callable[[Plan], None]) -> Callable[[], None]:
    """A test that the law holds for every plan there is; a failure shows the one that breaks it."""

    def test() -> None:
        for name, plan in corpus().items():
            try:
                law(plan)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}\n{plan}") from error

    test.__name__, test.__doc__ = law.__name__, law.__doc__
    return test


CREDENTIALS = {
    Opcode.BOUNDING, Opcode.SECUREBITS, Opcode.SETGROUPS, Opcode.SETGID, Opcode.SETUID,
    Opcode.CAPS, Opcode.AMBIENT, Opcode.NO_NEW_PRIVS,
}  # fmt: skip
#: They act on the tree of mounts through the old root, or build the new one over it.
MOUNTS = {
    Opcode.ROOT_TMPFS, Opcode.ROOT_TREE, Opcode.ROOT_HERE, Opcode.ATTACH, Opcode.MOUNT,
    Opcode.MKDIR, Opcode.MKNOD, Opcode.FILE, Opcode.SYMLINK,
}  # fmt: skip


def _code(step: Step) -> Opcode | None:
    return getattr(step, "opcode", None)


def _codes(plan: Plan) -> list[Opcode]:
    return [step.opcode for _, step in plan.child_steps()]


def _where(plan: Plan, *codes: Opcode) -> list[int]:
    """Indexes in the timeline."""
    return [i for i, step in enumerate(plan.steps) if _code(step) in codes]


def _first(plan: Plan, *codes: Opcode) -> int:
    return min(_where(plan, *codes), default=len(plan.steps))


def _last(plan: Plan, *codes: Opcode) -> int:
    return max(_where(plan, *codes), default=-1)


def _rising(numbers: Iterable[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))


# -- purity -----------------------------------------------------------------------------------

_PURE = """
    import sys

    class Refuse:
        def find_spec(self, name, *rest):
            if name in ("nsbox._ffi", "nsbox._core"):
                raise ImportError(name)

    sys.meta_path.insert(0, Refuse())
    from unit.plans import HOSTS, KINDS, plan_of
    from nsbox.errors import Unavailable

    quiet = ("object.__getattr__", "sys._getframe", "compile", "exec", "marshal.")

    def hook(event, args):
        if watching and not event.startswith(quiet):
            raise RuntimeError(f"compile() is not pure: {event} {args}")

    watching = False
    sys.addaudithook(hook)
    watching, plans = True, 0
    for host in HOSTS:
        for keywords in KINDS.values():
            try:
                plan = plan_of(host, **keywords)
                plan.encode(id_slot=65536)
                plans += bool(str(plan))
            except Unavailable:
                pass
    watching = False
    print(plans)
"""


def test_compile_does_no_io_and_needs_no_extension() -> None:
    """Every kind on every host, under an audit hook that refuses files, sockets and processes."""
    tests = Path(__file__).resolve().parents[1]
    path = f"import sys; sys.path[:0] = {[str(tests), str(tests.parent)]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", path + textwrap.dedent(_PURE)],
        capture_output=True, text=True, timeout=scaled(60), check=False,
    )  # fmt: skip
    assert not done.stderr
    assert int(done.stdout) > 80


@EVERY_HOST
def test_the_same_spec_and_host_make_the_same_plan(host: str) -> None:
    first, second = (plan_of(host, **KINDS["everything"]) for _ in range(2))
    assert first == second
    assert first is not second
    assert first.encode() == second.encode()
    assert str(first) == str(second)


@pytest.mark.parametrize(
    ("change", "step"),
    [
        pytest.param({"system": (("/opt", "dir", ""),)}, "/opt (rdonly,nosuid,nodev)", id="system"),
        pytest.param({"devices": (("full", 1),)}, "/dev/full (nosuid,noexec)", id="devices"),
        pytest.param({"controllers": ("pids",)}, "mkdir, for pids", id="controllers"),
        pytest.param({"cgroup_version": 1}, "tasks <- 0 (pids)", id="cgroup version"),
    ],
)
def test_facts_come_from_the_host_that_is_given(change: dict[str, Any], step: str) -> None:
    changed = dataclasses.replace(HOSTS["root, v2"], **change)
    assert step in {s.describe() for s in plan_of(changed).steps}
    assert step not in {s.describe() for s in plan_of("root, v2").steps}


# -- laws of order ----------------------------------------------------------------------------


def _is_of_template(step: Step) -> bool:
    """To enter it takes a right that the joined user namespace does not give."""
    to_template = isinstance(step, Setns) and step.slot.kind == "mntns"
    return to_template or step.source == "pod"  # whose shared memory is taken along


@every_plan
def test_joins_come_before_everything_of_the_child(plan: Plan) -> None:
    children = [step for _, step in plan.child_steps()]
    joins = children[: plan.joins]
    late = [step for step in children[plan.joins :] if isinstance(step, Setns)]
    late = [s for s in late if s.source != "pod"]  # there and back, for the pod's shared memory
    assert all(s.flags in (Clone.NEWCGROUP, Clone.NEWTIME) for s in late if s.slot in (JOIN, TIME))
    while joins and isinstance(joins[-1], OpenNetlink):
        assert plan.flags & PlanFlag.LAUNCHER_NET, "else it is the child's, who has rights to it"
        joins.pop()
    if joins:  # what is before it is done out of sight of what is joined
        assert isinstance(joins[-1], Setns)
        if getattr(joins[0], "slot", None) == OWNER:  # which gives the right to the others
            joins = joins[1:] or joins
        before = [s for s in joins[:-1] if not _is_of_template(s)]
        assert {_code(step) for step in before} <= {
            Opcode.DUMPABLE, Opcode.PROCFS, Opcode.SYSCTL
        }  # fmt: skip
    other = [i for i, _ in plan.child_steps()][plan.joins :]
    assert all(i > plan.steps.index(plan.clone) for i in other)


@every_plan
def test_among_strangers_a_process_is_hidden_again_after_each_change_of_ids(plan: Plan) -> None:
    if "pid" not in plan.joined:
        return
    changes = _where(plan, Opcode.SETUID, Opcode.SETGID)
    hidden = [i for i in _where(plan, Opcode.DUMPABLE) if plan.steps[i].n == 0]  # type: ignore[union-attr]
    for i in changes:
        following = next(h for h in hidden if h > i)
        between = {_code(step) for step in plan.steps[i + 1 : following]}
        assert not between - {Opcode.SETUID, Opcode.SETGID, Opcode.CAPS, Opcode.AMBIENT,
                              Opcode.SECUREBITS, Opcode.NO_NEW_PRIVS}  # fmt: skip
    shown = [i for i in _where(plan, Opcode.DUMPABLE) if i not in hidden]
    assert all(i < plan.steps.index(plan.clone) for i in shown)


@every_plan
def test_there_is_one_clone_and_its_cgroup_is_made_and_limited_before(plan: Plan) -> None:
    clones = [i for i, step in enumerate(plan.steps) if isinstance(step, Clone3)]
    made = [i for i, step in enumerate(plan.steps) if isinstance(step, MakeCgroup)]
    limits = [i for i, step in enumerate(plan.steps) if isinstance(step, SetLimit)]
    assert len(clones) == 1
    assert len(made) <= 1
    assert bool(made) == bool(limits)
    assert _rising([*made, *limits, *clones])


@every_plan
def test_the_child_is_in_its_cgroup_before_it_does_anything_that_costs(plan: Plan) -> None:
    made = next((step for step in plan.steps if isinstance(step, MakeCgroup)), None)
    entered = _where(plan, Opcode.CGROUP)
    if made is None and JOIN not in plan.passed:
        assert not entered
        assert not plan.clone.into_cgroup
    if made is None:
        return
    if plan.clone.into_cgroup:
        assert not entered
        assert Slot("cgroup", "v2") in plan.passed
        return
    assert len(entered) == len(made.controllers)
    others = {Opcode.CGROUP, Opcode.SETNS, Opcode.DUMPABLE, Opcode.BARRIER}
    before = [_code(step) for step in plan.steps[plan.steps.index(plan.clone) : max(entered)]]
    assert not {code for code in before if code is not None} - others


@every_plan
def test_a_cgroup_namespace_is_unshared_after_entering(plan: Plan) -> None:
    """Made before, it would show the payload /../.. as its own cgroup."""
    if not any(isinstance(step, MakeCgroup) for step in plan.steps):
        assert not [i for i in _where(plan, Opcode.UNSHARE)
                    if plan.steps[i].flags == Clone.NEWCGROUP]  # type: ignore[union-attr]  # fmt: skip
        return
    assert not plan.clone.flags & Clone.NEWCGROUP
    for i in _where(plan, Opcode.UNSHARE):
        assert i > _last(plan, Opcode.CGROUP)


@every_plan
def test_the_id_map_follows_clone_at_once(plan: Plan) -> None:
    maps = [i for i, step in enumerate(plan.steps) if isinstance(step, IdMap)]
    assert len(maps) == bool(plan.clone.flags & Clone.NEWUSER)
    for i in maps:
        assert isinstance(plan.steps[i - 1], Clone3)


@every_plan
def test_newuidmap_is_served_at_a_barrier_right_after_the_map(plan: Plan) -> None:
    barriers = [i for i in _where(plan, Opcode.BARRIER)
                if not isinstance(plan.steps[i], (HandOver, HandNetlink))]  # fmt: skip
    needed = plan.id_map is not None and plan.id_map.by == "newuidmap"
    assert len(barriers) == needed
    if needed:
        assert plan.id_map is not None
        at = plan.steps.index(plan.id_map)
        codes = [_code(step) for step in plan.steps[at + 1 : at + 4]]
        assert codes == [Opcode.DUMPABLE, Opcode.BARRIER, Opcode.DUMPABLE]
        assert plan.flags & PlanFlag.FORK, "the launcher itself must never become dumpable"


@every_plan
def test_a_process_made_dumpable_is_a_fork_and_is_made_undumpable_again(plan: Plan) -> None:
    values = [plan.steps[i].n for i in _where(plan, Opcode.DUMPABLE)]  # type: ignore[union-attr]
    assert "1" not in "".join(map(str, values)).replace("10", "")
    assert not values or plan.flags & PlanFlag.FORK


@every_plan
def test_groups_then_gid_then_uid(plan: Plan) -> None:
    """After setuid there is no privilege left for the other two."""
    for i in _where(plan, Opcode.SETUID):
        assert _code(plan.steps[i - 1]) is Opcode.SETGID
        assert _code(plan.steps[i - 2]) is Opcode.SETGROUPS
    assert len(_where(plan, Opcode.SETGID)) == len(_where(plan, Opcode.SETUID))


#: A letter for each step of identity.
LETTERS = {
    Opcode.BOUNDING: "B", Opcode.SECUREBITS: "S", Opcode.SETGROUPS: "G", Opcode.SETGID: "g",
    Opcode.SETUID: "u", Opcode.CAPS: "C", Opcode.AMBIENT: "A", Opcode.NO_NEW_PRIVS: "N",
}  # fmt: skip
#: Set-up's own ids; then the bounding set and securebits while they can be changed, ids, and
#: capabilities. Those that are kept are raised in the ambient set before that is locked.
LADDERS = re.compile(r"(Ggu)?B?(S?(G(gu)?)?C?|S(G(gu)?)?CASC)N?")


@every_plan
def test_credentials_are_lowered_in_the_order_that_needs_them(plan: Plan) -> None:
    letters = "".join(LETTERS.get(code, "") for code in _codes(plan))
    assert LADDERS.fullmatch(letters), letters


def test_what_needs_setpcap_is_left_out_where_it_is_not_had() -> None:
    """A caller with some capability, but neither root nor in a user namespace of the sandbox's."""
    some = 1 << CAPABILITIES.index("NET_RAW")
    caller = dataclasses.replace(HOSTS["user, one id"], capabilities=some)
    plan = plan_of(caller, namespaces=[], profile="none")
    assert not {Opcode.SECUREBITS, Opcode.BOUNDING, Opcode.SETGROUPS} & set(_codes(plan))
    assert dict(plan.applied)["capabilities"] == "NET_RAW"


@every_plan
def test_the_parent_s_death_signal_is_set_after_every_credential(plan: Plan) -> None:
    """setuid, setgid and capset clear it."""
    signals = _where(plan, Opcode.PDEATHSIG)
    if not any(_code(step) is Opcode.EXEC for step in plan.steps) and not signals:
        return  # a template's holder, which the launcher ends itself
    if plan == corpus()["helper"]:
        return
    assert len(signals) == 1
    assert signals[0] > _last(plan, *CREDENTIALS)


@every_plan
def test_nothing_that_takes_privilege_follows_the_uid(plan: Plan) -> None:
    """Unless set-up goes on as 0 of a user namespace that is the sandbox's own."""
    privileged = {*MOUNTS, Opcode.PIVOT, Opcode.CHROOT, Opcode.OPEN_TREE, Opcode.SYSCTL,
                  Opcode.PROCFS, Opcode.LO_UP, Opcode.HOSTNAME, Opcode.UNSHARE, Opcode.BOUNDING,
                  Opcode.SECUREBITS}  # fmt: skip
    lowered = _last(plan, Opcode.SETUID, Opcode.CAPS)
    if lowered < 0 or lowered < _last(plan, *MOUNTS):
        return  # set-up's own ids
    assert _last(plan, *privileged) < lowered


@every_plan
def test_host_trees_are_opened_with_the_caller_s_ids(plan: Plan) -> None:
    opened = [i for i in _where(plan, Opcode.OPEN_TREE)
              if plan.steps[i].src.startswith("/")]  # type: ignore[union-attr]  # fmt: skip
    assert max(opened, default=-1) < _first(plan, Opcode.SETUID, Opcode.SETGID, *MOUNTS)


@every_plan
def test_what_is_opened_later_is_of_the_staging_directory_of_an_overlay(plan: Plan) -> None:
    """Its path is relative: the child is in that directory since it mounted the overlay."""
    made = _first(plan, Opcode.ROOT_OVERLAY)
    for i in _where(plan, Opcode.OPEN_TREE):
        assert plan.steps[i].src.startswith("/") != (i > made)  # type: ignore[union-attr]
    assert _where(plan, Opcode.ROOT_OVERLAY) == [] or plan.flags & PlanFlag.FORK


@pytest.mark.parametrize("new", [True, False], ids=["Linux 6.6", "before"])
def test_an_overlay_reads_what_was_kept_or_says_that_it_cannot(new: bool) -> None:
    """Real root's overlay in a tmpfs: user.* where that has them, as in all that is kept."""
    host = dataclasses.replace(HOSTS["root, v2"], tmpfs_user_xattrs=new)
    kept = dataclasses.replace(Rootfs.dir("/k/upper"), kept=True)
    keywords: dict[str, Any] = {"root": Rootfs.overlay([kept, "/b"]), "profile": "none"}
    if not new:
        with pytest.raises(Unavailable, match=r"/k/upper.*Linux 6\.6.*upper="):
            plan_of(host, **keywords)
        plan = plan_of(host, **keywords, best_effort=True)
        assert dict(plan.enforcement)["root"].startswith("missing")
        keywords["root"] = Rootfs.overlay(["/a", "/b"])
    overlay = next(s for s in plan_of(host, **keywords).steps if s.name == "overlay")
    assert ("userxattr" in overlay.describe()) is new


@every_plan
def test_the_staging_directory_of_an_overlay_goes_with_the_old_root(plan: Plan) -> None:
    between = [plan.steps[i].n for i in _where(plan, Opcode.PIVOT)  # type: ignore[union-attr]
               if hasattr(plan.steps[i], "n")]  # fmt: skip
    assert sum(between) == len(_where(plan, Opcode.ROOT_OVERLAY))


@every_plan
def test_mounts_are_private_before_any_is_made(plan: Plan) -> None:
    template = any(slot.kind == "mntns" for slot in plan.passed)
    there = "mnt" in plan.joined and not plan.clone.flags & Clone.NEWNS  # they are so there
    if _where(plan, *MOUNTS) and not template and not there:
        *slave, private = _where(plan, Opcode.PROPAGATION)
        assert plan.steps[private].n == Propagation.REC | Propagation.PRIVATE  # type: ignore[union-attr]
        assert private < _first(plan, *MOUNTS)
        opened = _where(plan, Opcode.OPEN_TREE)
        early = [i for i in opened if i < private]
        assert all(plan.steps[i].source.startswith("mounts[") for i in early)
        assert len(slave) == bool(early)
        assert all(i > slave[0] for i in early)


@every_plan
def test_the_root_is_left_once_and_after_everything_was_put_in_it(plan: Plan) -> None:
    left = _where(plan, Opcode.PIVOT, Opcode.CHROOT)
    built = _where(plan, Opcode.ROOT_TREE, Opcode.ROOT_TMPFS)
    assert len(left) == len(built) <= 1
    for i in left:
        assert i > _last(plan, *MOUNTS, Opcode.PROCFS, Opcode.SYSCTL)
        assert i < _first(plan, Opcode.CHDIR)


@every_plan
def test_every_tree_is_opened_once_and_attached_once(plan: Plan) -> None:
    opened = [step.slot for step in plan.steps if isinstance(step, (OpenTree, MapTree))]
    used = [step.slot for _, step in plan.child_steps()
            if (_code(step) in (Opcode.ATTACH, Opcode.ROOT_TREE) or isinstance(step, HandOver))
            and not getattr(step, "as_is", False)]  # type: ignore[union-attr]  # fmt: skip
    assert sorted(map(str, opened)) == sorted(map(str, used))
    assert len(set(opened)) == len(opened)


@every_plan
def test_every_slot_is_passed_or_opened_and_every_passed_one_is_used(plan: Plan) -> None:
    named = {step.slot for _, step in plan.child_steps() if hasattr(step, "slot")}
    opened = {step.slot for step in plan.steps if isinstance(step, (Open, OpenTree, OpenNetlink))}
    opened |= {step.slave for step in plan.steps if isinstance(step, OpenPty)}
    named |= {step.slave for step in plan.steps if isinstance(step, OpenPty)}
    if plan.clone.into_cgroup:
        named.add(Slot("cgroup", "v2"))
    assert named - opened == set(plan.passed)


@every_plan
def test_the_end_is_signals_execing_a_filter_and_nothing_but_exec(plan: Plan) -> None:
    codes = _codes(plan)
    at = codes.index(Opcode.EXECING)
    if codes[-1] is Opcode.SELF:
        assert codes[at + 1 :] == [Opcode.SELF]
        assert plan.args[0] == "nsbox-init"
        return
    if codes[-1] in (Opcode.PAUSE, Opcode.EXECING):  # the last opens a socket, and ends
        assert codes[at + 1 :] in ([], [Opcode.PAUSE])
        assert not plan.args
        return
    assert codes[at - 1] is Opcode.SIGNALS
    hardened = any(_code(step) is Opcode.NO_NEW_PRIVS for step in plan.steps)
    assert codes[at + 1 : at + 1 + hardened] == [Opcode.SECCOMP] * hardened
    assert set(codes[at + 1 + hardened :]) == {Opcode.EXEC}
    assert codes.count(Opcode.SECCOMP) == hardened
    assert codes.count(Opcode.EXECING) == codes.count(Opcode.SIGNALS) == 1


@every_plan
def test_no_new_privs_comes_before_exec(plan: Plan) -> None:
    for i in _where(plan, Opcode.NO_NEW_PRIVS):
        assert _last(plan, Opcode.CAPS) < i
        assert i < _first(plan, Opcode.EXEC, Opcode.PAUSE, Opcode.SELF)


@every_plan
def test_scopes_come_after_no_new_privs_and_while_a_descriptor_can_be_had(plan: Plan) -> None:
    """landlock_create_ruleset makes one, and limits.nofile may leave none."""
    for i in _where(plan, Opcode.LANDLOCK):
        assert _last(plan, Opcode.NO_NEW_PRIVS) < i < _first(plan, Opcode.RLIMIT, Opcode.INIT)


@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
@pytest.mark.parametrize(
    ("keywords", "join", "scopes"),
    [
        pytest.param({}, (), {}, id="namespaces of its own"),
        pytest.param({"net": "host"}, (), {"abstract sockets": 1}, id="the host's network"),
        pytest.param(
            {"namespaces": ["user", "net"]}, (), {"signals": 2}, id="the host's processes"
        ),
        pytest.param(
            {"namespaces": ["user"]}, (), {"abstract sockets": 1, "signals": 2}, id="both"
        ),
        pytest.param({"namespaces": ["mnt"]}, ("user", "net", "pid"), {}, id="those of a pod"),
    ],
)
def test_what_is_shared_with_the_host_is_scoped(
    profile: str, keywords: dict[str, Any], join: tuple[str, ...], scopes: dict[str, int]
) -> None:
    how = {"join": join, "join_map": "slot" if join else "", "profile": profile, **keywords}
    if profile == "none":
        scopes = {}
    for abi in (0, 5, 6, 7):
        plan = plan_of(dataclasses.replace(HOSTS["root, v2"], landlock=abi), **how)
        found = [plan.steps[i].n for i in _where(plan, Opcode.LANDLOCK)]  # type: ignore[union-attr]
        assert found == ([sum(scopes.values())] if scopes and abi >= 6 else [])
        said = {what: plan_said for what, plan_said in plan.applied
                if what in ("abstract sockets", "signals")}  # fmt: skip
        assert set(said) == set(scopes)
        for text in said.values():
            assert text.startswith("missing: the host's are in reach") is (abi < 6)


@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_without_a_filter_nothing_runs_unless_best_effort_is_asked_for(profile: str) -> None:
    host = dataclasses.replace(HOSTS["root, v2"], seccomp=False)
    with pytest.raises(Unavailable) as caught:
        plan_of(host, profile=profile)
    assert caught.value.feature == "seccomp"
    assert "best_effort=True" in caught.value.alternatives
    plan = plan_of(host, profile=profile, best_effort=True)
    assert dict(plan.applied)["seccomp"].startswith("missing: ")
    assert not _where(plan, Opcode.SECCOMP)
    assert not _where(plan_of(host, profile="none"), Opcode.SECCOMP)


@pytest.mark.parametrize(
    ("capabilities", "sockets"),
    [
        pytest.param(None, (), id="of the profile"),
        pytest.param(["KILL", "SYS_ADMIN"], (), id="others"),
        pytest.param(["NET_RAW"], ("PACKET",), id="NET_RAW"),
        pytest.param(["NET_RAW", "NET_ADMIN"], ("PACKET", "NETLINK"), id="both"),
    ],
)
def test_a_capability_that_was_asked_for_brings_its_sockets(
    capabilities: list[str] | None, sockets: tuple[str, ...]
) -> None:
    for profile in ("strict", "standard"):
        plan = plan_of(profile=profile, capabilities=capabilities)
        said = dict(plan.applied)["seccomp"]
        assert said.startswith("sockets: UNIX, INET, INET6, NETLINK_ROUTE")
        named = said.partition("NETLINK_ROUTE")[2].partition(";")[0].strip(", ").split(", ")
        assert tuple(filter(None, named)) == sockets


@every_plan
def test_only_granted_descriptors_survive_exec(plan: Plan) -> None:
    """Numbers are handed out in rising order, and all others close: 3 to the last there is."""
    if not {Opcode.EXEC, Opcode.PAUSE, Opcode.SELF} & set(_codes(plan)):
        return
    numbers = [plan.steps[i].number for i in _where(plan, Opcode.FD)]  # type: ignore[union-attr]
    assert numbers[:3] == [0, 1, 2]
    assert _rising(numbers)
    closed = [(plan.steps[i].n, plan.steps[i].m) for i in _where(plan, Opcode.CLOEXEC)]  # type: ignore[union-attr]
    everything = [(n, n) for n in numbers] + closed
    covered = sorted(everything)
    assert covered[0][0] == 0
    assert covered[-1][1] == (1 << 32) - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(covered))
    assert _last(plan, Opcode.FD) < _first(plan, Opcode.CLOEXEC)


FIELD = re.compile(
    r"args(\[0\])?|root|cwd|env|user|groups|capabilities|hostname|mounts(\[\d+\])?|files\['.*'\]|net|egress|"
    r"limits(\.\w+)?|namespaces|init|profile|proc|time_offsets|uid_map|rlimits\['\w+'\]|pass_fds|stdio|pod|"
    r"umask|pty|devices(\['\w+'\])?|idmap",
    re.DOTALL,
)


@every_plan
def test_every_step_says_which_field_asked_for_it(plan: Plan) -> None:
    assert {step.source for step in plan.steps if not FIELD.fullmatch(step.source)} == set()
    for step in plan.steps:
        index = re.fullmatch(r"mounts\[(\d+)\]", step.source)
        assert index is None or int(index[1]) < 6


@every_plan
def test_an_index_of_the_timeline_is_an_op_and_back(plan: Plan) -> None:
    for op, (index, _) in enumerate(plan.child_steps()):
        assert plan.timeline_index(op) == index
        assert plan.op_index(index) == op


# -- what a spec asks for ---------------------------------------------------------------------


def _exec_paths(plan: Plan) -> list[tuple[str, bool]]:
    return [(step.value, bool(step.flags & OpFlag.IGNORE_ENOENT))  # type: ignore[union-attr]
            for _, step in plan.child_steps() if _code(step) is Opcode.EXEC]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "path", "tried"),
    [
        pytest.param("/bin/x", "/a:/b", ["/bin/x"], id="an absolute program is not searched"),
        pytest.param("./x", "/a:/b", ["./x"], id="nor is a relative one with a slash"),
        pytest.param("x", "/a:/b", ["/a/x", "/b/x"], id="each directory in its order"),
        pytest.param("x", "/a", ["/a/x"], id="one directory"),
        pytest.param("x", "/a::/b", ["/a/x", "./x", "/b/x"], id="an empty entry is here"),
        pytest.param("x", None, [f"{d}/x" for d in PATH.split(":")], id="the default PATH"),
    ],
)
def test_path_search_is_one_exec_for_each_directory(
    program: str, path: str | None, tried: list[str]
) -> None:
    env = {} if path is None else {"PATH": path}
    found = _exec_paths(plan_of(args=[program], env=env))
    assert [path for path, _ in found] == tried
    passed_over = [ignored for _, ignored in found]
    assert passed_over == [True] * (len(tried) - 1) + [False], "only the last failure is told"


def test_the_environment_is_four_variables_and_the_user_s() -> None:
    assert dict(e.split("=", 1) for e in plan_of(env={"A": "b=c", "HOME": "/h"}).env) == {
        "PATH": PATH, "HOME": "/h", "LANG": "C.UTF-8", "USER": "user", "A": "b=c",
    }  # fmt: skip
    assert "USER=root" in plan_of(user=0).env
    assert "USER=nobody" in plan_of(user=65534).env


@pytest.mark.parametrize("init", [True, False], ids=["init", "no init"])
def test_pid_1_is_nsbox_init_only_when_asked_and_possible(init: bool) -> None:
    plan = plan_of(init=init)
    assert (Opcode.INIT in _codes(plan)) == bool(plan.flags & PlanFlag.INIT) == init
    alone = plan_of(init=init, namespaces=["user", "mnt"])
    assert Opcode.INIT not in _codes(alone)
    limits = {step.file: step.value for step in plan.steps if isinstance(step, SetLimit)}
    assert int(limits["pids.max"]) == 128 + init, "init's own place is not the payload's"


@pytest.mark.parametrize("kinds", [("mnt",), ("user", "pid"), ("mnt", "pid", "net")], ids=str)
def test_namespaces_are_exactly_those_asked_for(kinds: tuple[str, ...]) -> None:
    flags = plan_of("root, no cgroup", namespaces=kinds).clone.flags
    names = {"mnt": "NEWNS", "user": "NEWUSER", "pid": "NEWPID", "net": "NEWNET"}
    assert {flag.name for flag in Clone if flag in flags} == {names[kind] for kind in kinds}


@EVERY_HOST
@pytest.mark.parametrize("template", [False, True], ids=["no template", "template"])
def test_no_namespace_is_lost_on_the_way_from_clone_to_unshare(host: str, template: bool) -> None:
    """The cgroup's is made after entering, a template's after joining; all others by clone3."""
    kinds = [kind for kind in NAMESPACES if kind not in ("time", "user")]
    if not HOSTS[host].privileged:
        kinds.insert(0, "user")
    plan = plan_of(host, namespaces=kinds, template=template)
    unshared = [plan.steps[i].flags for i in _where(plan, Opcode.UNSHARE)]  # type: ignore[union-attr]
    made = [plan.clone.flags, *unshared]
    assert sum(made) == sum({NAMESPACES[kind] for kind in kinds}), "each exactly once"


def test_the_host_s_network_is_no_new_one() -> None:
    plan = plan_of(net="host")
    assert not plan.clone.flags & Clone.NEWNET
    assert Opcode.LO_UP not in _codes(plan)
    assert plan_of().clone.flags & Clone.NEWNET


def test_a_spare_network_only_where_its_owner_would_be_the_launcher_s() -> None:
    kinds = ["net", "mnt", "pid"]
    host = HOSTS["root, v2"]
    assert plan_of(host, namespaces=kinds).flags & PlanFlag.SPARE_NET
    assert not plan_of(host, namespaces=["user", *kinds]).flags & PlanFlag.SPARE_NET
    assert not plan_of(host, namespaces=["mnt"]).flags & PlanFlag.SPARE_NET
    without = dataclasses.replace(host, spare_net=False)
    assert not plan_of(without, namespaces=kinds).flags & PlanFlag.SPARE_NET


def test_the_launcher_s_network_only_for_those_who_could_not_change_their_own() -> None:
    host = HOSTS["root, v2"]

    def by_launcher(host: Host = host, **keywords: Any) -> bool:
        plan = plan_of(host, **{"template": True, **keywords})
        found = bool(plan.flags & PlanFlag.LAUNCHER_NET)
        assert found == any(isinstance(step, LauncherNet) for step in plan.steps)
        if "net" in NAMESPACES and plan.clone.flags & Clone.NEWNET:
            assert found == (Opcode.LO_UP not in _codes(plan)), "up, by one of the two"
        return found

    assert by_launcher()
    assert not by_launcher(capabilities=["NET_ADMIN"])
    assert not by_launcher(profile="standard")
    assert not by_launcher(net="host")
    assert not by_launcher(template=False)
    assert not by_launcher(namespaces=["net", "mnt", "pid"])
    for field in ("spare_net", "net_sysctls"):
        assert not by_launcher(dataclasses.replace(host, **{field: False}))


USERS_HOSTS = [name for name, host in HOSTS.items() if not host.privileged]


def _plugged(host: str, **keywords: Any) -> Plan:
    return plan_of(host, net=NetLabel("eth0 in nsb0"), **keywords)


@pytest.mark.parametrize("host", USERS_HOSTS)
def test_an_ordinary_user_s_networked_sandbox_is_within_the_router(host: str) -> None:
    """It has a user namespace of its own: only that is made where the router's is."""
    plan = _plugged(host)
    assert plan.flags & PlanFlag.INNER_MAP
    assert OWNER in plan.passed
    enters = plan.steps[plan.steps.index(plan.clone) - 1]
    assert isinstance(enters, Setns)
    assert (enters.slot, enters.flags) == (OWNER, Clone.NEWUSER)
    assert plan.clone.flags & Clone.NEWUSER
    assert plan.clone.flags & Clone.NEWNET
    assert "pid" not in plan.joined


@pytest.mark.parametrize("host", [name for name in HOSTS if name not in USERS_HOSTS])
def test_root_s_networked_sandbox_is_within_nothing(host: str) -> None:
    plan = _plugged(host)
    assert not plan.flags & PlanFlag.INNER_MAP
    assert OWNER not in plan.passed


@pytest.mark.parametrize("host", USERS_HOSTS)
def test_what_shares_a_network_is_in_the_user_namespace_of_that(host: str) -> None:
    plan = _plugged(host, join=("user", "net"), join_map="single")
    assert OWNER not in plan.passed
    assert not plan.clone.flags & Clone.NEWUSER


@pytest.mark.parametrize("host", USERS_HOSTS)
def test_a_user_without_a_network_goes_nowhere(host: str) -> None:
    assert OWNER not in plan_of(host).passed
    assert not plan_of(host).flags & PlanFlag.INNER_MAP


def test_inside_of_the_router_ids_are_what_they_are_without_a_network() -> None:
    """The caller has its own number there, beside the range that newuidmap has mapped."""
    for host in ("user, one id", "user, subids"):
        outer, one = router_map(HOSTS[host]), _plugged(host, user=7).id_map
        assert one is not None
        assert one.uids == one.gids == ((7, CALLER_ID, 1),)
        assert (one.by, one.kind) == ("joiner", "single")
        assert outer.uids[-1] == (CALLER_ID, HOSTS[host].euid, 1)
        assert outer.gids[-1] == (CALLER_ID, HOSTS[host].egid, 1)
    many = _plugged("user, subids", profile="standard").id_map
    assert many is not None
    assert many.uids == many.gids == ((0, 0, SLOT_IDS),)
    assert (many.by, many.kind) == ("joiner", "range")
    whole = router_map(HOSTS["user, subids"])
    assert whole.uids[0] == whole.gids[0] == (0, None, SLOT_IDS)
    assert (whole.by, whole.kind) == ("newuidmap", "range")
    assert router_map(HOSTS["user, one id"]).kind == "single"


def test_a_range_inside_of_the_router_needs_no_newuidmap() -> None:
    plan = _plugged("user, subids", profile="standard")
    assert not [s for s in plan.steps if getattr(s, "detail", "") == "id-map"]
    header = decode(plan.encode()).header
    assert header.uid_map
    assert decode(plan.encode()).text(header.uid_map) == f"0 0 {SLOT_IDS}\n"


def test_a_proxy_has_no_capability_and_the_ports_it_is_given() -> None:
    plan = corpus()["proxy"]
    assert dict(plan.applied)["capabilities"] == "none"
    assert [plan.steps[i].number for i in _where(plan, Opcode.FD)] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert plan.args == ("nsbox-init", "proxy", "0200", "0a00")
    assert _codes(plan)[-1] is Opcode.SELF
    alone = corpus()["proxy of the host"]
    assert not {Opcode.SETNS, Opcode.BOUNDING, Opcode.CAPS} & set(_codes(alone))


def test_setgroups_is_denied_where_one_id_is_mapped_by_its_owner() -> None:
    assert plan_of("user, one id").flags & PlanFlag.DENY_SETGROUPS
    assert Opcode.SETGROUPS not in _codes(plan_of("user, one id"))
    assert not plan_of("root, v2").flags & PlanFlag.DENY_SETGROUPS


@EVERY_HOST
@pytest.mark.parametrize(
    ("user", "ids"), [(None, 1000), (0, 0), (7, 7), (65534, 65534)], ids=["default", 0, 7, 65534]
)
def test_the_payload_ends_as_the_user_asked_for(host: str, user: int | None, ids: int) -> None:
    plan = plan_of(host, user=user)
    for code in (Opcode.SETUID, Opcode.SETGID):
        numbers = [plan.steps[i].n for i in _where(plan, code)]  # type: ignore[union-attr]
        if plan.id_map is not None and plan.id_map.uids[0][2] == 1:
            assert numbers == []
            assert plan.id_map.uids[0][:2] == (ids, 1001)
            assert plan.id_map.gids[0][:2] == (ids, 1002)
        else:
            assert numbers == ([0, ids] if ids else [0]), "0 for set-up, then the user"
    assert dict(plan.applied)["user"].startswith(f"{ids}:{ids} ")


def test_root_has_a_slot_of_ids_and_nobody_else_s() -> None:
    id_map = plan_of("root, v2").id_map
    assert id_map is not None
    assert id_map.needs_slot()
    assert id_map.uids == id_map.gids == ((0, None, 65536),)
    assert id_map.text(id_map.uids, 1 << 20) == "0 1048576 65536\n"


@pytest.mark.parametrize("profile", ["strict", "standard"])
@EVERY_HOST
def test_hardening_profiles_forbid_new_privileges(profile: str, host: str) -> None:
    codes = _codes(plan_of(host, profile=profile))
    assert {Opcode.NO_NEW_PRIVS, Opcode.BOUNDING, Opcode.CAPS, Opcode.KEYRING} <= set(codes)


def test_strict_keeps_no_capability_and_locks_the_securebits() -> None:
    plan = plan_of()
    (caps,) = (plan.steps[i] for i in _where(plan, Opcode.CAPS))
    (bounding,) = (plan.steps[i] for i in _where(plan, Opcode.BOUNDING))
    (bits,) = (plan.steps[i] for i in _where(plan, Opcode.SECUREBITS))
    # all but KEEP_CAPS: ping(8) sets that, and without a capability there is nothing to keep
    assert (caps.n, caps.m, bounding.n, bits.n) == (0, 0, 0, 0xCF)  # type: ignore[union-attr]
    assert not _where(plan, Opcode.AMBIENT)


@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_capabilities_of_a_user_are_ambient_and_inheritable(profile: str) -> None:
    plan = plan_of(profile=profile, user=7, capabilities=["KILL", "NET_RAW"])
    mask = 1 << 5 | 1 << 13
    for code in (Opcode.BOUNDING, Opcode.AMBIENT):
        assert [plan.steps[i].n for i in _where(plan, code)] == [mask]  # type: ignore[union-attr]
    last = plan.steps[_last(plan, Opcode.CAPS)]
    assert (last.n, last.m) == (mask, mask)  # type: ignore[union-attr]
    bits = plan.steps[_last(plan, Opcode.SECUREBITS)]
    assert bits.n == PROFILES[profile].securebits  # type: ignore[union-attr]


# -- limits -----------------------------------------------------------------------------------

LIMITS: dict[str, Any] = {
    "memory": "64MiB", "memory_high": "32MiB", "cpu": 0.5, "cpu_weight": 50, "cpuset": "0",
    "pids": 7, "io": {"8:0": {"rbps": "1MiB"}}, "wall": 5, "cpu_time": 5, "output": "1K",
    "disk": "8MiB", "inodes": 99, "nofile": 33, "net_priority": 3,
}  # fmt: skip
WATCHED = {"wall", "output"}  # by whoever waits: no step enforces them


def test_every_limit_is_tried_here() -> None:
    fields = {field.name for field in dataclasses.fields(Limits)}
    assert fields - LIMITS.keys() == {"swap", "oom_group"}


@EVERY_HOST
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_enforced_by_a_step_or_refused(host: str, name: str) -> None:
    """Never a decoration: what nothing here would enforce is an error that names it."""
    if name in WATCHED:
        return
    limits = Limits(**{name: LIMITS[name]})
    lenient = plan_of(host, limits=limits, best_effort=True)
    if dict(lenient.enforcement).get(name, "").startswith("missing: "):
        with pytest.raises(Unavailable) as caught:
            plan_of(host, limits=limits)
        assert caught.value.feature == f"limits.{name}"
        assert "best_effort=True" in caught.value.alternatives
        return
    sources = {step.source for step in plan_of(host, limits=limits).steps}
    assert f"limits.{name}" in sources or (name == "inodes" and "limits.disk" in sources)


def test_limits_are_cgroup_v2_files_and_values() -> None:
    limits = Limits(memory="64MiB", swap="1MiB", cpu="250m", pids=7)
    plan = plan_of("root, v1", limits=limits)
    assert [(s.file, s.value) for s in plan.steps if isinstance(s, SetLimit)] == [
        ("memory.max", "67108864"), ("memory.swap.max", "1048576"), ("memory.oom.group", "1"),
        ("pids.max", "8"), ("cpu.max", "25000 100000"),
    ]  # fmt: skip
    assert dict(plan.enforcement)["memory"] == "cgroup v1 memory.limit_in_bytes"


def test_the_newer_limits_are_files_and_values_too() -> None:
    limits = Limits(memory_high="32MiB", cpu_weight=50, cpuset="2,0-1",
                    io={"8:0": {"wbps": "1MiB", "riops": 9}}, net_priority=6)  # fmt: skip
    plan = plan_of("root, v2", limits=limits, profile="none")
    assert [(s.file, s.value) for s in plan.steps if isinstance(s, SetLimit)] == [
        ("memory.high", "33554432"), ("cpu.weight", "50"), ("cpuset.cpus", "0-2"),
        ("io.max", "8:0 wbps=1048576 riops=9"), ("bpf.priority", "6"),
    ]  # fmt: skip
    assert dict(plan.enforcement)["io"] == "cgroup v2 io.max"


def test_a_priority_puts_the_child_into_cgroup_v2_on_v1_as_well() -> None:
    plan = plan_of("root, v1", limits=Limits(net_priority=6, pids=5))
    assert plan.clone.into_cgroup
    assert Slot("cgroup", "v2") in plan.passed
    assert {s.slot.key for s in plan.steps if isinstance(s, EnterCgroup)} == {
        "memory", "pids", "cpu",
    }  # fmt: skip
    assert not plan_of("root, v1", limits=Limits(pids=5)).clone.into_cgroup


def test_a_priority_by_net_prio_is_of_who_has_the_host_s_devices() -> None:
    alone = dataclasses.replace(HOSTS["root, v1"], cgroup2=False, net_prio=True)
    plan = plan_of(alone, limits=Limits(net_priority=6), net="host", profile="none")
    assert [s for s in plan.steps if isinstance(s, SetLimit)] == [
        SetLimit("net_prio.ifpriomap", "6", "limits.net_priority"),
    ]  # fmt: skip
    assert [s.slot.key for s in plan.steps if isinstance(s, EnterCgroup)] == ["net_prio"]
    assert not plan.clone.into_cgroup
    assert dict(plan.enforcement) == {"net_priority": "cgroup v1 net_prio.ifpriomap"}
    for keywords in ({}, {"join": ("user", "net"), "join_map": "slot"}):
        with pytest.raises(Unavailable, match=r"net_priority: .*initial network namespace"):
            plan_of(alone, limits=Limits(net_priority=6), **keywords)
    with pytest.raises(Unavailable, match=r"net_priority: no cgroup v2 directory"):
        plan_of(
            dataclasses.replace(alone, net_prio=False), limits=Limits(net_priority=6), net="host"
        )


def test_what_v1_does_not_have_is_refused_there_only() -> None:
    limits = Limits(memory_high="32MiB")
    with pytest.raises(Unavailable, match=r"limits\.memory_high: memory\.high is of cgroup v2"):
        plan_of("root, v1", limits=limits)
    assert dict(plan_of("root, v2", limits=limits).enforcement)["memory_high"]


def test_a_limit_of_v1_is_enforced_by_the_file_of_v1() -> None:
    limits = Limits(cpu=1, cpu_weight=7, io={"8:0": {"rbps": "1MiB", "wiops": 3}}, swap=0,
                    memory="8MiB")  # fmt: skip
    assert dict(plan_of("root, v1", profile="none", limits=limits).enforcement) == {
        "memory": "cgroup v1 memory.limit_in_bytes",
        "swap": "cgroup v1 memory.memsw.limit_in_bytes",
        "cpu": "cgroup v1 cpu.cfs_quota_us",
        "cpu_weight": "cgroup v1 cpu.shares",
        "io": "cgroup v1 blkio.throttle.read_bps_device, blkio.throttle.write_iops_device",
    }


def test_every_limit_that_is_set_says_what_it_is_enforced_by() -> None:
    everything = {"memory": "1GiB", "memory_high": "1GiB", "swap": 0, "oom_group": True, "pids": 9,
                  "cpu": 1, "cpu_weight": 7, "cpuset": "0", "io": {"8:0": {"rbps": "1MiB"}},
                  "wall": 9, "cpu_time": 9, "output": 9, "disk": "1MiB", "inodes": 99, "nofile": 64,
                  "net_priority": 1}  # fmt: skip
    assert {field.name for field in dataclasses.fields(Limits)} == set(everything)
    host = dataclasses.replace(HOSTS["root, v2"], attaches_bpf=True, cgroup2=True,
                               controllers=CONTROLLERS)  # fmt: skip
    found = dict(plan_of(host, limits=Limits(**everything)).enforcement)
    assert set(found) == set(everything) - {"oom_group"}, "which is how memory is limited"
    assert found["nofile"] == "RLIMIT_NOFILE"
    assert found["wall"] == "a timer of nsbox's"
    assert found["output"] == "nsbox, as it reads each stream"
    assert not {"wall", "output", "nofile"} & {name for name, _ in plan_of(host).enforcement}


def test_what_only_a_profile_wants_degrades_and_says_so() -> None:
    plan = plan_of("root, no cgroup")
    assert not any(isinstance(step, MakeCgroup) for step in plan.steps)
    assert dict(plan.applied)["memory"].startswith("missing: ")
    assert any(step.describe().startswith("nproc 128:128") for step in plan.steps)


def test_a_default_rlimit_stays_below_the_caller_s_own() -> None:
    host = dataclasses.replace(HOSTS["root, v2"], hard_rlimits=(("nofile", 100),))
    (step,) = (s for s in plan_of(host).steps if s.describe().startswith("nofile "))
    assert step.describe() == "nofile 100:100"
    with pytest.raises(Unavailable) as caught:
        plan_of(host, limits=Limits(nofile=101))
    assert caught.value.feature == "limits.nofile"
    with pytest.raises(Unavailable) as caught:
        plan_of(host, rlimits={"nofile": (1, 101)})
    assert caught.value.feature == "rlimits['nofile']"


@EVERY_HOST
@pytest.mark.parametrize("root", [Rootfs.host(), Rootfs.inherit()], ids=["host", "inherit"])
def test_a_late_terminal_is_of_a_devpts_that_is_mounted_with_capabilities_and_once(
    host: str, root: Rootfs
) -> None:
    """The pty itself is made without them, by who is to own it."""
    spec = make_spec(["true"], root=root, limits=Limits(), best_effort=True)
    plan = exec_plan(host, spec, pty=(24, 80))
    (mount,), (pty,) = _where(plan, Opcode.MOUNT), _where(plan, Opcode.PTY)
    assert "devpts on /dev/pts (newinstance," in plan.steps[mount].describe()
    ids = _where(plan, *CREDENTIALS - {Opcode.SETGROUPS, Opcode.SETGID, Opcode.SETUID})
    assert _last(plan, Opcode.SETNS) < mount < min(ids)
    assert max(ids) < pty < _first(plan, Opcode.SETSID)
    assert [step.describe() for step in plan.steps if step.name == "setsid"] == [
        "with its terminal"
    ]
    assert "TERM=xterm" in plan.env
    again = exec_plan(host, spec, pty=(24, 80), terminals=True)
    assert [step for step in plan.steps if step.name != "mount"] == list(again.steps)


@EVERY_HOST
def test_a_process_of_a_sandbox_with_a_terminal_has_none_by_that(host: str) -> None:
    plan = exec_plan(host, make_spec(["true"], pty=True, limits=Limits(), best_effort=True))
    assert _where(plan, Opcode.PTY, Opcode.MOUNT) == []
    assert not any(one.startswith("TERM=") for one in plan.env)


@pytest.mark.parametrize("memory", [None, "8MiB", "1GiB"])
def test_little_memory_is_never_shared_with_the_launcher(memory: str | None) -> None:
    plan = plan_of(namespaces=["mnt", "pid"], limits=Limits(memory=memory))
    assert bool(plan.flags & PlanFlag.FORK) == (memory == "8MiB")


# -- what contradicts itself, or the host -----------------------------------------------------

CONTRADICTIONS = [
    ("root", {"root": "/srv", "namespaces": ["user"]}, "a root without a mount namespace"),
    ("mounts", {"mounts": [Mount.proc()], "namespaces": ["pid"]}, "mounts without one"),
    ("files", {"files": {"a": b""}, "namespaces": []}, "files without one"),
    ("limits.disk", {"limits": Limits(disk="1M"), "namespaces": []}, "a disk limit without one"),
    ("hostname", {"hostname": "a", "namespaces": ["mnt"]}, "a host name without uts"),
    ("user", {"user": 65536}, "a uid beyond the map"),
    ("user", {"user": "0:65536"}, "a gid beyond the map"),
    ("groups", {"groups": [70000]}, "a group beyond the map"),
]


@pytest.mark.parametrize(
    ("field", "keywords"), [pytest.param(f, k, id=why) for f, k, why in CONTRADICTIONS]
)
def test_a_contradiction_is_a_spec_error(field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of("root, v2", **keywords)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("feature", "keywords"),
    [
        pytest.param("namespaces", {"namespaces": ["mnt"]}, id="namespaces without user"),
        pytest.param("groups", {"groups": [1]}, id="groups with one id"),
        pytest.param("user", {"namespaces": [], "user": 0}, id="another user without a map"),
        pytest.param(
            "capabilities", {"namespaces": [], "capabilities": ["KILL"]}, id="capabilities it lacks"
        ),
    ],
)
def test_what_the_host_cannot_do_is_unavailable(feature: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(Unavailable) as caught:
        plan_of("user, one id", **keywords)
    assert caught.value.feature == feature


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        pytest.param("pass_fds", {"pass_fds": range(3, 60)}, id="descriptors in one request"),
        pytest.param(
            "mounts", {"mounts": [Mount.bind("/a", f"/b{i}") for i in range(200)]}, id="trees"
        ),
        pytest.param("files", {"files": {str(i): b"" for i in range(5000)}}, id="ops"),
    ],
)
def test_more_than_a_plan_can_hold_is_refused_by_field(
    field: str, keywords: dict[str, Any]
) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of("root, v2", **keywords)
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("keywords", "fits"),
    [
        pytest.param({"namespaces": ["mnt"]}, True, id="a plain root"),
        pytest.param({"namespaces": ["mnt"], "root": "/srv"}, True, id="a read-only directory"),
        pytest.param({}, True, id="a user namespace of its own"),
        pytest.param({"proc": "none"}, False, id="a user namespace without a procfs"),
        pytest.param({"namespaces": ["user", "mnt"]}, False, id="a user namespace, not pid"),
        pytest.param({"root": Rootfs.dir("/srv", ro=False)}, False, id="what would be made in it"),
        pytest.param({"time_offsets": {"boottime": 1}}, False, id="offsets in a user namespace"),
        pytest.param({"namespaces": ["mnt"], "mounts": [Mount.proc("/p")]}, False, id="mounts"),
        pytest.param({"namespaces": ["mnt"], "root": Rootfs.inherit()}, False, id="inherited"),
        pytest.param(
            {"namespaces": ["mnt"], "root": Rootfs.dir("/srv", method="chroot")}, False, id="chroot"
        ),
    ],
)
def test_a_template_holds_only_what_is_nobody_s_own(keywords: dict[str, Any], fits: bool) -> None:
    plan = plan_of("root, v2", template=True, **keywords)
    assert (Slot("mntns", "template") in plan.passed) == fits
    assert (Opcode.PIVOT in _codes(plan) or Opcode.CHROOT in _codes(plan)) != fits or (
        keywords.get("root") == Rootfs.inherit()
    )


# -- explain() --------------------------------------------------------------------------------


def test_explain_prints_the_timeline() -> None:
    """The whole text, for a host that no kernel changes."""
    host = Host(system=(), devices=(("null", 0x103),), cgroup_version=1, hard_rlimits=())
    plan = plan_of(
        host, args=["sh", "-c", "id"], env={"PATH": "/usr/bin:/bin"}, root="/srv/root",
        hostname="box", mounts=[Mount.bind("/srv/data", "/data")], user="7:8",
        namespaces=["user", "mnt", "pid", "uts"], limits=Limits(memory="64MiB"), profile="none",
    )  # fmt: skip
    golden = Path(__file__).with_name("explain.txt").read_text()
    assert str(plan) + "\n" == golden


def test_explain_of_any_plan_is_a_table() -> None:
    for name, plan in corpus().items():
        lines = str(plan).splitlines()
        assert len(lines) == len(plan.steps) + 1, name
        for i, line in enumerate(lines[1:]):
            assert line.split()[:2] == [str(i), plan.steps[i].who]
            assert line.endswith(plan.steps[i].source)
