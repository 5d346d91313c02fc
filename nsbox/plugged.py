# SPDX-License-Identifier: Apache-2.0
"""What a container or pod says of its network: addresses, ports, its end of the cable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox import probe
from nsbox.errors import StateError
from nsbox.identity import alone
from nsbox.interface import Interface
from nsbox.lease import ETH0, Lease
from nsbox.namespace import Namespace
from nsbox.netlink import rtnl
from nsbox.slots import Joined

if TYPE_CHECKING:
    from nsbox.identity import Identity
    from nsbox.netspec import Address
    from nsbox.process import Process
    from nsbox.spec import Spec


def shared(process: Process) -> Joined:
    """How another sandbox enters the network of *process*, see ``Namespace.joins``: an ordinary
    user has to be in the user namespace that owns it."""
    if probe.host().privileged:
        return Joined(("net",), process.pidfd)
    return Joined(("user", "net"), process.pidfd, process.id_map)


class Plugged:
    """The half of ``Container`` and ``Pod`` that is about the network of ``net=``."""

    name: str

    def _network_process(self) -> Process | None:
        """The process that the network was made for."""
        raise NotImplementedError

    def _place(self) -> Lease | None:
        """Its own, or that of whom it shares a network with."""
        process = self._network_process()
        who = None if process is None else process.identity
        return None if who is None else who.place

    def identify(self, spec: Spec, name: str = "") -> Identity:
        """For nsbox's own use: who a sandbox will be that shares its network."""
        place = self._place()
        return alone(spec.hostname) if place is None else place.identify(spec)

    @property
    def ip(self) -> Address | None:
        """Its IPv4 address in the network that it is, or was, plugged in, or shares with who is;
        None without one."""
        lease = self._place()
        return None if lease is None else lease.address

    @property
    def ip6(self) -> Address | None:
        """Its IPv6 address, the same way."""
        lease = self._place()
        return None if lease is None else lease.address6

    @property
    def ports(self) -> tuple[tuple[Address | None, int, int, str], ...]:
        """What is published: (address of the host, its port, the port inside, ``"tcp"`` or
        ``"udp"``). The address is None for all of IPv4, ``::`` for all of IPv6."""
        process = self._network_process()
        lease = None if process is None else process.lease
        return lease.ports if isinstance(lease, Lease) else ()

    @property
    def eth0(self) -> Interface:
        """Its end of the cable, while it runs.

        Raises:
            StateError: it does not run.
        """
        process = self._network_process()
        try:
            namespace = Namespace.open(-1 if process is None else process.pidfd, "net")
        except OSError as e:
            raise StateError(f"{self.name!r} does not run", status="stopped") from e
        try:
            return Interface(rtnl(namespace), ETH0)
        finally:
            namespace.close()
