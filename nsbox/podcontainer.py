# SPDX-License-Identifier: Apache-2.0
"""A container as its pod has it: attempts that follow one another, and how each ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsbox.errors import StateError
from nsbox.podspec import State
from nsbox.result import Reason

if TYPE_CHECKING:
    from nsbox.container import Container
    from nsbox.pod import Pod
    from nsbox.podspec import ContainerSpec
    from nsbox.popen import Popen
    from nsbox.result import Completed


class PodContainer:
    """A container of a running pod: the present attempt, and what became of earlier ones."""

    def __init__(self, pod: Pod, spec: ContainerSpec, policy: str, init: bool) -> None:
        self.name = spec.name
        self.spec = spec
        self.policy = policy
        self.init = init
        self.restart_count = 0
        self.state = State("Waiting", "PodInitializing")
        self.last_state: State | None = None
        self._pod = pod
        self.started_at = 0.0  # by the pod's clock
        self._backoff_step = 0
        self._current: Container | None = None
        self._log = ""
        self._timer: Any = None

    @property
    def current(self) -> Container:
        """The present attempt. Raises StateError before the first."""
        if self._current is None:
            raise StateError(f"container {self.name!r} has not been started", status="Waiting")
        return self._current

    @property
    def pid(self) -> int | None:
        return self._current.pid if self._current is not None else None

    @property
    def nspid(self) -> int | None:
        return self._current.nspid if self._current is not None else None

    @property
    def namespaces(self) -> dict[str, int]:
        return self._current.namespaces if self._current is not None else {}

    def logs(self) -> str:
        """Output of this attempt and the one before. Raises StateError in a forked child, which
        does not hear of the next."""
        self._pod._check_mine()
        return self._log + (self._current.logs() if self._current is not None else "")

    def exec(self, args: Any, **keywords: Any) -> Completed:
        """``Container.exec`` in the present attempt: StateError when none runs."""
        return self.current.exec(args, **keywords)

    def popen(self, args: Any, **keywords: Any) -> Popen:
        """``Container.popen`` in the present attempt."""
        return self.current.popen(args, **keywords)

    def kill(self) -> None:
        """SIGKILL to every process in it; the restart policy decides what follows."""
        self.current.kill()

    def wait_restarted(self, count: int, timeout: float = 30.0) -> None:
        """Waits until it runs after its *count*-th restart. Raises TimeoutError."""
        self._pod._wait_for(
            lambda: self.restart_count >= count and self.state.name == "Running",
            timeout,
            f"container {self.name!r} to be restarted {count} times",
        )

    def done(self) -> bool:
        """It has ended and will not be restarted."""
        return self.state.name == "Terminated" and self._timer is None

    def __repr__(self) -> str:
        return f"<nsbox.PodContainer {self.name!r} {self.state.name} restarts={self.restart_count}>"


def terminated(container: Container) -> State:
    """Kubernetes' view of an end: 128+n for signals, OOMKilled by the kernel's counter."""
    try:
        result = container.result()
    except StateError:
        return State("Terminated", "ContainerStatusUnknown", 137)
    code = result.returncode
    if result.reason is Reason.OOM:
        return State("Terminated", "OOMKilled", 137, 9)
    if result.reason is Reason.TIMEOUT:
        return State("Terminated", "DeadlineExceeded", 137, 9)
    if code < 0:
        return State("Terminated", "Error", 128 - code, -code)
    return State("Terminated", "Completed" if code == 0 else "Error", code)
