# SPDX-License-Identifier: Apache-2.0
"""Pod: containers that share a network and IPC, held by a pause process.

Kubernetes' words and defaults. The user namespace, net and ipc are the pod's, owned by
pause; mnt, uts, pid and cgroup are each container's own. A container that crashes is
restarted by policy, and what is shared does not notice.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nsbox import lifecycle, nslist, probe, units, watch
from nsbox.checks import elements, flag
from nsbox.container import Container
from nsbox.creds import decide_pod_map
from nsbox.errors import NsboxError, SpecError, StateError, Unavailable
from nsbox.forgotten import forgotten
from nsbox.keywords import make_spec
from nsbox.plugged import Plugged, shared
from nsbox.podcontainer import PodContainer, terminated
from nsbox.podspec import (
    POLICIES,
    Backoff,
    ContainerSpec,
    Event,
    MonotonicClock,
    PodStatus,
    State,
    is_dns_label,
)
from nsbox.ports import explain_conflict
from nsbox.profile import PROFILES
from nsbox.sandbox import check_spec, launch_pause
from nsbox.slots import Joined
from nsbox.spec import NetLabel, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsbox.podspec import Clock
    from nsbox.process import Process


class Pod(Plugged):
    """Containers with one network and one IPC namespace, one lifetime: all or nothing at start.

    Args:
        name: a DNS label; also the host name, the same in every container.
        containers: ``ContainerSpec`` objects, started together.
        init_containers: run one after another to their end before, or ``Sidecar``.
        primary: the container whose end ends the pod.
        restart_policy: ``"Always"``, ``"OnFailure"`` or ``"Never"``.
        share_process_namespace: one pid namespace for all, in which pause is PID 1 and reaps:
            containers see each other's processes, and can signal them as users can.
        net: ``"none"``: a loopback that all containers share; ``"host"``; a ``Bridge`` or
            ``Network``, which gives the pod an address; or another pod, a ``Container`` or a
            network ``Namespace``, whose network it shares.
        publish, egress, address, dns: as for ``run()``, of the pod.
        dns_policy: ``"Default"``: the name servers of *dns* and then the host's; ``"ClusterFirst"``
            is the same, as names are found in /etc/hosts; ``"None"``: those of *dns* alone.
        host_aliases: more names in /etc/hosts, as ``{"192.0.2.1": ["one", "one.example"]}`` or
            Kubernetes' list of mappings with ``ip`` and ``hostnames``.
        backoff: delays between restarts.
        clock: where time comes from.

    The supervisor lives in this process, in the library's thread: the pod ends with it.
    """

    def __init__(
        self,
        name: str,
        containers: Sequence[ContainerSpec],
        *,
        init_containers: Sequence[ContainerSpec] = (),
        primary: str | None = None,
        restart_policy: str = "Always",
        share_process_namespace: bool = False,
        volumes: Any = None,
        net: Any = "none",
        publish: Any = (),
        egress: Any = None,
        address: Any = None,
        dns: Any = None,
        dns_policy: str = "Default",
        host_aliases: Any = (),
        hostname: str | None = None,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        containers = _container_specs(containers, "containers")
        init_containers = _container_specs(init_containers, "init_containers")
        self._check(name, containers, init_containers, primary, restart_policy)
        self.share_process_namespace = flag(share_process_namespace, "share_process_namespace")
        if volumes:
            raise Unavailable("volumes", "not in this version of nsbox",
                              alternatives=("mounts= of a container",))  # fmt: skip
        self.hostname = hostname or name
        self.net = net
        self._pause_keywords = {"net": net, "publish": publish, "egress": egress,
                                "address": address, "dns": dns}  # fmt: skip
        own = make_spec(["pause"], hostname=hostname, **self._pause_keywords)
        self._names = _names(own, dns_policy, host_aliases)
        self._held: Process | None = None
        self._owns_net = own.net == "none" or own.attached
        self.primary = primary
        if backoff is not None and not isinstance(backoff, Backoff):
            raise SpecError("backoff", f"{backoff!r}: use Backoff(initial=10, max=300)")
        self.backoff = backoff or Backoff()
        self.clock = clock or MonotonicClock()
        self.events: list[Event] = []
        self._condition = threading.Condition(threading.RLock())
        self._phase, self._reason = "Pending", ""
        self._pause: Process | None = None
        self._started = False
        self._stopping = False
        self._stop_lock = threading.RLock()  # taken before the condition's
        self._starts = 0  # under way: stop() lets them come to their end first
        self._closed = False
        self._id_map = ""
        init_policy = "Never" if restart_policy == "Never" else "OnFailure"
        self._init = [PodContainer(self, c, c.restart_policy or init_policy, True)
                      for c in init_containers]  # fmt: skip
        self._apps = [PodContainer(self, c, c.restart_policy or restart_policy, False)
                      for c in containers]  # fmt: skip
        self._all = {c.name: c for c in (*self._init, *self._apps)}
        self._specs = {c.name: self._check_container(c) for c in self._all.values()}

    @staticmethod
    def _check(
        name: str,
        containers: Sequence[ContainerSpec],
        init_containers: Sequence[ContainerSpec],
        primary: str | None,
        restart_policy: str,
    ) -> None:
        if not is_dns_label(name):
            raise SpecError("name", f"{name!r} is not a DNS label")
        if not containers:
            raise SpecError("containers", "a pod has at least one")
        names = [c.name for c in (*init_containers, *containers)]
        for double in {n for n in names if names.count(n) > 1}:
            raise SpecError("containers", f"two are named {double!r}")
        if any(c.sidecar for c in containers):
            raise SpecError("containers", "a Sidecar belongs into init_containers")
        if primary is not None and primary not in [c.name for c in containers]:
            raise SpecError("primary", f"no container is named {primary!r}")
        if restart_policy not in POLICIES:
            raise SpecError("restart_policy", f"use one of {', '.join(POLICIES)}")

    def _keywords(self, container: PodContainer) -> dict[str, Any]:
        """Of the container, with what the pod says."""
        pods = {"hostname": self.hostname, "net": self.net}
        return {"init": False, **container.spec.keywords, **pods}

    def _check_container(self, container: PodContainer) -> Spec:
        try:
            spec = check_spec(container.spec.args, self._keywords(container), "ContainerSpec")
            if self._guarded() and _may_change_network(spec):
                raise SpecError("capabilities", "with egress= of the pod, none may have NET_ADMIN "
                                "or NET_RAW")  # fmt: skip
            if spec.init and self.share_process_namespace:
                raise SpecError("init", "pause is PID 1 of a pod that shares its pid namespace")
            return spec
        except SpecError as e:
            raise SpecError(f"containers[{container.name!r}].{e.field}",
                            str(e).partition(": ")[2]) from e  # fmt: skip

    # -------------------------------------------------------------- start

    def start(self) -> Pod:
        """Pause first, then init containers in order, then all containers.

        Raises:
            StateError: it was started before.
            SetupError and others of ``run``: nothing is left, no container runs.
        """
        with self._condition:
            if self._phase != "Pending" or self._started or self._closed:
                raise StateError(f"pod {self.name!r} is {self._phase}", status=self._phase)
            self._started = True
        try:
            self._start_pause()
            for container in self._init:
                self._start_init(container)
            for container in self._apps:
                self._start_container(container)
        except BaseException:
            with self._condition:
                if self._phase == "Pending":  # not when pause was lost meanwhile
                    self._phase, self._reason = "Failed", "StartError"
            self.close()
            raise
        with self._condition:
            if self._phase == "Pending":
                self._phase = "Running"
            self._condition.notify_all()
            self._tell("started")
            self._maybe_complete()
        return self

    def _start_pause(self) -> None:
        host = probe.host()
        self._id_map, uid = decide_pod_map(list(self._specs.values()), host)
        kinds = ["user", "ipc", "pid", "mnt"] + ["net"] * self._owns_net
        spec = make_spec(["pause"], namespaces=kinds, user=uid, **self._pause_keywords,
                         profile="standard" if self._id_map == "range" else "strict")  # fmt: skip
        self._pause = self._held = launch_pause(spec, self.hostname, self.name, **self._names)
        self._id_map = self._pause.id_map  # that of whom it shares the network with, if it must
        nslist.boxes[self._pause.pid] = f"{self.name}/pause"
        watch.get().add(self._pause.fileno(), self._pause_news)
        self._note("SandboxCreated", message=f"pause runs as {self._pause.pid}")
        self._tell("created")

    def _start_init(self, container: PodContainer) -> None:
        """A sidecar goes on; another must end well before the next one starts."""
        self._start_container(container)
        if container.spec.sidecar:
            return
        with self._condition:
            self._condition.wait_for(lambda: container.done() or self._stopping)
            if container.state.exit_code != 0:
                raise StateError(f"init container {container.name!r} failed: "
                                 f"{container.state.reason}", status="Init:Error")  # fmt: skip

    def _start_container(self, container: PodContainer) -> None:
        """Not under the pod's lock: a container that ends at once is told of by the watch."""
        keywords = {**self._keywords(container), "_pod": self.name}
        current = Container(container.spec.args, name=container.name, **keywords)
        kinds = ("user", "ipc") + (("net",) if self.net != "host" else ())
        kinds += ("pid",) if self.share_process_namespace else ()
        with self._condition:
            if self._stopping or self._pause is None:
                current.close()
                raise StateError(f"pod {self.name!r} is being stopped", status=self._phase)
            current._who = self._pause.identity
            current._joined = Joined(kinds, self._pause.pidfd, self._id_map)
            current._box = f"{self.name}/{container.name}"
            current._on_end = lambda: self._ended(container, current)
            if container._current is not None:
                container._log = container._current.logs()
            container._current = current
            container.state = State("Waiting", "ContainerCreating")
            container.started_at = self.clock.now()
            self._starts += 1
        try:
            current.start()
        finally:
            with self._condition:
                self._starts -= 1
                self._condition.notify_all()
        with self._condition:
            if container.state.reason == "ContainerCreating":
                container.state = State("Running")
                self._note("Started", container)

    # -------------------------------------------------------- supervision

    def _note(self, reason: str, container: PodContainer | None = None, message: str = "") -> None:
        name = container.name if container is not None else ""
        with self._condition:
            self.events.append(Event(self.clock.now(), reason, name, message))
            self._condition.notify_all()

    def _tell(self, what: str, detail: str = "") -> None:
        pid = self._pause.pid if self._pause is not None else None
        lifecycle.emit(what, "pod", self.name, pid=pid, detail=detail)

    def _ended(self, container: PodContainer, current: Container) -> None:
        """By the watch: an attempt is over. The policy says what follows."""
        with self._condition:
            if container._current is not current:
                return
            if container.state.reason == "ContainerCreating":
                self._note("Started", container)
            state = terminated(current)
            if state.reason == "Error":
                state = replace(state, message=self._port_conflict(current))
            container.last_state = container.state = state
            self._note("Died", container, ": ".join(filter(None, (state.reason, state.message))))
            self._pause_news()  # what ended both is not a crash of this one
            if self._stopping or not self._restarts(container):
                self._maybe_complete()
                return
            if self.clock.now() - container.started_at >= self.backoff.reset_after:
                container._backoff_step = 0
            delay = self.backoff.delay(container._backoff_step)
            container._backoff_step += 1
            if delay:
                container.state = State("Waiting", "CrashLoopBackOff")
                self._note("BackOff", container, f"restart in {delay:g} s")
            container._timer = self.clock.call_later(delay, lambda: self._due(container))

    def _port_conflict(self, current: Container) -> str:
        """Who holds the port that it could not bind, if that is what it died of."""
        if self._pause is None:
            return ""
        members = {c.name: c.pid for c in self._all.values() if c.pid}
        return explain_conflict(current.logs(), self._pause.pid, members)

    @staticmethod
    def _restarts(container: PodContainer) -> bool:
        policy = container.policy
        if container.init and not container.spec.sidecar and policy == "Always":
            policy = "OnFailure"
        failed = container.state.exit_code != 0
        return policy == "Always" or (policy == "OnFailure" and failed)

    def _due(self, container: PodContainer) -> None:
        """By the watch, which must not wait for what other members can hold up (SIGSTOP)."""
        if self.share_process_namespace:
            threading.Thread(target=self._restart, args=(container,), name="nsbox-restart",
                             daemon=True).start()  # fmt: skip
        else:
            self._restart(container)

    def _restart(self, container: PodContainer) -> None:
        with self._condition:
            container._timer = None
            if self._stopping or self._pause is None:
                return
            container.restart_count += 1
            container.state = State("Waiting", "ContainerCreating")
        try:
            self._start_container(container)
        except (NsboxError, OSError) as e:
            with self._condition:
                container.state = State("Terminated", "StartError", 128)
                self._note("Failed", container, str(e))
                self._pause_news()
                self._maybe_complete()

    def _maybe_complete(self) -> None:
        """The phase, once no app container runs or will be restarted."""
        done = [c for c in self._apps if c.done() and c._timer is None]
        ends = [c for c in self._apps if c.name == self.primary] if self.primary else self._apps
        if self._stopping or self._phase != "Running":
            self._condition.notify_all()
            return
        if all(c in done for c in ends):
            bad = [c.name for c in ends if c.state.exit_code]
            self._phase = "Failed" if bad else "Succeeded"
            self._note("Completed", message=", ".join(bad))
            self._finish(grace=5.0)

    def _finish(self, grace: float) -> None:
        """What is left goes too; in a thread of its own, for the watch must go on watching."""
        threading.Thread(target=self.stop, args=(grace,), name="nsbox-stop", daemon=True).start()

    def _pause_news(self) -> None:
        """By the watch: without pause, what is shared is lost."""
        with self._condition:
            if self._pause is None:
                return
            try:
                # In its own pid namespace the others end before it: then they tell of its end.
                dying = self.share_process_namespace and self._pause.exiting()
                if (self._pause.wait(5) if dying else self._pause.poll()) is None:
                    return
            except StateError:
                pass
            watch.get().remove(self._pause.fileno())
            if self._stopping:
                return
            self._phase, self._reason = "Failed", "SandboxLost"
            self._note("SandboxLost", message="pause has ended")
            self._stopping = True
            self._finish(grace=0)

    @staticmethod
    def _cancel(container: PodContainer) -> None:
        if container._timer is not None:
            container._timer.cancel()
            container._timer = None
            container.state = container.last_state or State("Terminated")

    # --------------------------------------------------------------- stop

    def stop(self, grace: float = 30.0) -> None:
        """Containers first (SIGTERM, and SIGKILL after *grace* seconds), then sidecars in
        reverse order, pause last. Wins over restarts. Idempotent."""
        units.seconds(grace, "grace", zero=True)
        with self._stop_lock:  # who comes second waits for the first to be done
            self._stop(grace)

    def _stop(self, grace: float) -> None:
        with self._condition:
            first = not self._stopping
            self._stopping = True
            for container in self._all.values():
                self._cancel(container)
            if first and self._phase == "Running":
                self._note("Killing", message=f"grace {grace:g} s")
            self._condition.wait_for(lambda: self._starts == 0)
        deadline = time.monotonic() + grace
        apps = [c._current for c in self._apps if c._current is not None]
        threads = [
            threading.Thread(target=app.stop, args=(grace,), name="nsbox-stop", daemon=True)
            for app in apps
            if app.status() == "running"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for container in reversed(self._init):
            if container._current is not None and container._current.status() == "running":
                container._current.stop(max(0.0, deadline - time.monotonic()))
        self._stop_pause()
        with self._condition:
            # The watch may have seen an end that it has not told us of yet.
            self._condition.wait_for(
                lambda: all(c.state.name != "Running" for c in self._all.values()), 5
            )
            if self._phase in ("Running", "Pending"):
                good = all(c.state.exit_code == 0 for c in self._apps)
                self._phase = "Succeeded" if good else "Failed"
            if not self._closed and self._started:
                self._tell("died", self._phase)
            self._closed = True
            self._condition.notify_all()

    def _stop_pause(self) -> None:
        with self._condition:
            pause, self._pause = self._pause, None
        if pause is None:
            return
        nslist.boxes.pop(pause.pid, None)
        watch.get().remove(pause.fileno())
        try:
            pause.send_signal(15)
            pause.wait(1.0)
        except StateError:  # lost with its launcher
            pass
        pause.close()
        with self._condition:
            self._condition.notify_all()

    def close(self) -> None:
        """Kill what is left and give everything back; idempotent."""
        if self._held is not None and not self._held.mine():
            return  # a forked child leaves the block that its parent is in
        with self._stop_lock:
            if not self._closed or self._pause is not None:
                self.stop(grace=0)

    def __enter__(self) -> Pod:
        return self if self._started else self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        pause = getattr(self, "_pause", None)
        if pause is not None and pause.mine():
            forgotten(self)

    # --------------------------------------------------------------- state

    def __getitem__(self, name: str) -> PodContainer:
        return self._all[name]

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded or Failed."""
        return self._phase

    def _network_process(self) -> Process | None:
        return self._held

    @property
    def label(self) -> NetLabel:
        """What makes it one of the values of ``net=`` of others, who share its network."""
        return NetLabel(f"that of pod {self.name}", self, joined=True, guarded=self._guarded())

    def _guarded(self) -> bool:
        """Whether rules of egress are in its network, which may be that of another."""
        label = getattr(self.net, "label", None)
        return self._pause_keywords["egress"] is not None or getattr(label, "guarded", False)

    def joins(self) -> Joined:
        """For nsbox's own use: see ``Namespace.joins``."""
        if self._pause is None:
            raise StateError(f"net: pod {self.name!r} is {self._phase}", status=self._phase)
        return shared(self._pause)

    @property
    def pause_pid(self) -> int | None:
        """The process that holds what the pod shares."""
        return self._pause.pid if self._pause is not None else None

    def _check_mine(self) -> None:
        """Raises StateError in a forked child of the process that started it: the supervisor is
        not there, and nothing that it is told of ever comes."""
        if self._held is not None:
            self._held.check_mine()

    def status(self) -> PodStatus:
        self._check_mine()
        with self._condition:
            return PodStatus(
                self._phase,
                self._reason,
                {c.name: c.state for c in self._all.values()},
                {c.name: c.restart_count for c in self._all.values()},
            )

    def wait(self, timeout: float | None = None) -> str:
        """Waits until no container runs or will run again; returns the phase.

        Raises:
            StateError: it was never started.
            TimeoutError: it goes on after *timeout* seconds.
        """
        if not self._started and not self._closed:
            raise StateError(f"pod {self.name!r} is {self._phase}: it has not been started",
                             status=self._phase)  # fmt: skip
        self._wait_for(
            lambda: self._closed,
            timeout,
            f"pod {self.name!r} to end",
        )
        return self._phase

    def _wait_for(self, predicate: Callable[[], bool], timeout: float | None, what: str) -> None:
        timeout = units.patience(timeout, "timeout")
        self._check_mine()
        with self._condition:
            if not self._condition.wait_for(predicate, timeout):
                raise TimeoutError(f"waited {timeout:g} s for {what}")

    def __str__(self) -> str:
        lines = [f"Pod {self.name}  {self._phase} {self._reason}".rstrip()]
        for container in self._all.values():
            pid = container.pid or "-"
            state = " ".join(filter(None, (container.state.name, container.state.reason)))
            lines.append(f"  {container.name:<16} {state:<24} restarts {container.restart_count}"
                         f"  pid {pid}")  # fmt: skip
            last = container.last_state
            if last is not None and last.message and container.state.name != "Running":
                lines.append(f"  {'':<16} {last.message}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<nsbox.Pod {self.name!r} {self._phase}>"


def _container_specs(several: Any, where: str) -> tuple[ContainerSpec, ...]:
    if isinstance(several, ContainerSpec):
        raise SpecError(where, "must be a list of ContainerSpec, not one alone")
    found = elements(several, where)
    for i, one in enumerate(found):
        if not isinstance(one, ContainerSpec):
            raise SpecError(f"{where}[{i}]", f"{one!r} is not a ContainerSpec")
    return found


def _names(spec: Spec, policy: str, aliases: Any) -> dict[str, Any]:
    """What is said of the pod's /etc/hosts and /etc/resolv.conf, checked."""
    from nsbox.hostsfile import check_policy
    from nsbox.netspec import parse_host_aliases

    if not isinstance(policy, str):
        raise SpecError("dns_policy", f"{policy!r} is no policy")
    check_policy(policy, spec.dns)
    parsed = parse_host_aliases(aliases)
    if parsed and isinstance(spec.net, NetLabel) and spec.net.joined:
        raise SpecError("host_aliases", "are those of whom it shares the network with")
    return {"policy": policy, "aliases": parsed}


def _may_change_network(spec: Spec) -> bool:
    kept = spec.capabilities
    if kept is None:
        kept = PROFILES[spec.profile].capabilities
    return kept is None or not {"NET_ADMIN", "NET_RAW"}.isdisjoint(kept)
