# SPDX-License-Identifier: Apache-2.0
"""What can be done to a container that runs: new limits, figures, pause and resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox import interrupts, probe
from nsbox.converse import watch_oom
from nsbox.errors import StateError, Unavailable
from nsbox.limits import enforced_by, settings
from nsbox.names import Clone

if TYPE_CHECKING:
    import threading

    from nsbox.cgroup import Cgroup
    from nsbox.process import Process
    from nsbox.spec import Limits, Spec
    from nsbox.usage import CgroupStats


#: Controller -> a limit of it that hardly any program feels.
_KEPT = {"pids": "pids=4096", "memory": 'memory="1TiB"', "cpu": "cpu_weight=100"}


class Control:
    """The half of ``Container`` that goes through its cgroup."""

    name: str
    spec: Spec
    _status: str
    _process: Process | None
    _lock: threading.RLock
    _paused = False
    _updated: dict[str, str]

    def _allow(self, verb: str) -> None:
        raise NotImplementedError

    def _tell(self, what: str, detail: str = "") -> None:
        raise NotImplementedError

    @property
    def cgroup(self) -> Cgroup | None:
        """The cgroup that it runs in; None unless running, and where it has no limit to be kept
        by one."""
        return self._process.cgroup if self._status == "running" and self._process else None

    def _own_cgroup(self, what: str) -> Cgroup:
        cgroup = self.cgroup
        if cgroup is None:
            raise self._no_cgroup(what)
        return cgroup

    def _no_cgroup(self, what: str) -> Unavailable:
        host = probe.host()
        kept = next((text for name, text in _KEPT.items() if name in host.controllers), "")
        if kept:
            return Unavailable(
                what, f"container {self.name!r} has no cgroup",
                hint=f"give it a limit that one keeps, such as limits=nsbox.Limits({kept})",
            )  # fmt: skip
        cause, fix, err = host.places.obstacle("pids", "freezer")
        return Unavailable(what, f"container {self.name!r} has no cgroup, and none can be made "
                           f"here: {cause}", err=err, hint=fix)  # fmt: skip

    def update(self, limits: Limits) -> None:
        """Change limits while it runs: those that are set in *limits*, see ``Cgroup.update``.

        Raises:
            StateError: it does not run.
            SpecError: a limit that is no cgroup's, such as ``wall``.
            Unavailable: it has no cgroup, or is not in one with this controller.
            SetupError: the kernel refused; all is as it was.
        """
        with self._lock:
            self._allow("update")
            cgroup, process = self._own_cgroup("update"), self._process
            assert process is not None
            init = int(self.spec.init and Clone.NEWPID in process.plan.clone.flags)
            armed = cgroup.oom_fd
            cgroup.update(limits, spare_pids=init)
            if armed < 0:
                watch_oom(process)
            for setting in settings(limits, net_prio="net_prio" in cgroup.directories):
                if setting.limit not in ("swap", "oom_group"):
                    self._updated[setting.limit] = enforced_by(setting, cgroup.version)

    def stats(self) -> CgroupStats:
        """What it uses now and has used, by the counters of its cgroup.

        Raises:
            StateError: it does not run; ``result().usage`` says what it has used.
            Unavailable: it has no cgroup.
        """
        with self._lock:
            if self._status != "running":
                raise StateError(f"container {self.name!r} is {self._status}: see result().usage",
                                 status=self._status)  # fmt: skip
            return self._own_cgroup("stats").stats()

    def pause(self) -> None:
        """Stop all of its processes where they are, until ``resume()``; see ``Cgroup.freeze``.

        It can be stopped, killed and closed while it is paused. ``limits.wall`` goes on.

        Raises:
            StateError: it does not run, or is paused.
            Unavailable: it has no cgroup, or none can be frozen here.
            TimeoutError: a process does not stop; it is as before.
        """
        with interrupts.Held(), self._lock:
            self._allow("pause")
            self._own_cgroup("pause").freeze()
            self._paused = True
            self._tell("paused")

    def resume(self) -> None:
        """Let it go on. Raises StateError unless it is paused."""
        with interrupts.Held(), self._lock:
            self._allow("resume")
            self._thaw()
            self._tell("resumed")

    def _thaw(self) -> None:
        cgroup = self.cgroup
        if self._paused and cgroup is not None:
            cgroup.thaw()
        self._paused = False
