# SPDX-License-Identifier: Apache-2.0
"""Containers and pods out of Linux kernel primitives, in process.

Names are loaded when they are first used, so that ``import nsbox`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # importing typing would take most of the time that importing nsbox may
if TYPE_CHECKING:
    from typing import Any

    import nsbox.namespace  # for type checkers: an attribute of this package
    import nsbox.syscalls  # noqa: F401
    from nsbox.bridge import Bridge as Bridge
    from nsbox.bridge import Network as Network
    from nsbox.cgroup import Cgroup as Cgroup
    from nsbox.command import run as run
    from nsbox.container import Container as Container
    from nsbox.delegate import delegate as delegate
    from nsbox.diagnosis import Check as Check
    from nsbox.diagnosis import Report as Report
    from nsbox.diagnosis import doctor as doctor
    from nsbox.errors import CommandError as CommandError
    from nsbox.errors import CommandNotFound as CommandNotFound
    from nsbox.errors import CopyError as CopyError
    from nsbox.errors import NetworkError as NetworkError
    from nsbox.errors import NsboxError as NsboxError
    from nsbox.errors import RemoteError as RemoteError
    from nsbox.errors import SetupError as SetupError
    from nsbox.errors import SpecError as SpecError
    from nsbox.errors import StateError as StateError
    from nsbox.errors import TimeoutExpired as TimeoutExpired
    from nsbox.errors import Unavailable as Unavailable
    from nsbox.interface import Interface as Interface
    from nsbox.keywords import Allow as Allow
    from nsbox.lifecycle import Events as Events
    from nsbox.lifecycle import LifeEvent as LifeEvent
    from nsbox.lifecycle import events as events
    from nsbox.links import Link as Link
    from nsbox.links import Veth as Veth
    from nsbox.namespace import Namespace as Namespace
    from nsbox.namespace import NamespaceInfo as NamespaceInfo
    from nsbox.namespace import namespaces as namespaces
    from nsbox.pod import Pod as Pod
    from nsbox.podspec import Backoff as Backoff
    from nsbox.podspec import ContainerSpec as ContainerSpec
    from nsbox.podspec import Sidecar as Sidecar
    from nsbox.popen import Popen as Popen
    from nsbox.processes import ProcessInfo as ProcessInfo
    from nsbox.registry import gc as gc
    from nsbox.result import Completed as Completed
    from nsbox.result import Reason as Reason
    from nsbox.result import Usage as Usage
    from nsbox.sandbox import explain as explain
    from nsbox.shaping import TrafficClass as TrafficClass
    from nsbox.spec import Limits as Limits
    from nsbox.spec import Mount as Mount
    from nsbox.spec import Rootfs as Rootfs
    from nsbox.terminal import Terminal as Terminal
    from nsbox.terminal import attach as attach
    from nsbox.topology import Topology as Topology
    from nsbox.usage import CgroupStats as CgroupStats
    from nsbox.usage import DiskStats as DiskStats

__version__ = "0.1.0.dev0"

#: Public name -> the module that has it.
_WHERE = {
    "Allow": "keywords",
    "Backoff": "podspec",
    "Bridge": "bridge",
    "Cgroup": "cgroup",
    "CgroupStats": "usage",
    "Check": "diagnosis",
    "CommandError": "errors",
    "CommandNotFound": "errors",
    "Completed": "result",
    "Container": "container",
    "ContainerSpec": "podspec",
    "DiskStats": "usage",
    "Events": "lifecycle",
    "Interface": "interface",
    "LifeEvent": "lifecycle",
    "CopyError": "errors",
    "Limits": "spec",
    "Link": "links",
    "Mount": "spec",
    "Namespace": "namespace",
    "NamespaceInfo": "namespace",
    "Network": "bridge",
    "NetworkError": "errors",
    "NsboxError": "errors",
    "Pod": "pod",
    "Popen": "popen",
    "ProcessInfo": "processes",
    "Reason": "result",
    "RemoteError": "errors",
    "Report": "diagnosis",
    "Rootfs": "spec",
    "SetupError": "errors",
    "SpecError": "errors",
    "Sidecar": "podspec",
    "StateError": "errors",
    "Terminal": "terminal",
    "TimeoutExpired": "errors",
    "Topology": "topology",
    "TrafficClass": "shaping",
    "Unavailable": "errors",
    "Usage": "result",
    "Veth": "links",
    "delegate": "delegate",
    "attach": "terminal",
    "events": "lifecycle",
    "doctor": "diagnosis",
    "explain": "sandbox",
    "gc": "registry",
    "namespaces": "namespace",
    "run": "command",
}

#: Modules that are used by their name.
_MODULES = ("namespace", "syscalls")

DEVNULL, PIPE, STDOUT = -3, -1, -2  # subprocess's, without importing it

__all__ = ["DEVNULL", "PIPE", "STDOUT", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"nsbox.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'nsbox' has no attribute {name!r}")
    value = getattr(import_module(f"nsbox.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES})
