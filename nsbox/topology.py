# SPDX-License-Identifier: Apache-2.0
"""Topology: hosts, routers and switches with links between them, a whole network in one program.

    holder of each host's network          hosts
       pause: net, its links and routes <-- Container: mnt, pid, uts, ipc, cgroup; joins net
    holder of the switches' network
       pause: net, with one bridge for each switch

Nothing of it is in the caller's network namespace. The networks are there before the hosts, whose
commands find all of it as it will be.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nsbox import drawing, interrupts, launcher, netspec, probe, rtnl, shaping, units, wiring
from nsbox.checks import flag
from nsbox.creds import decide_pod_map
from nsbox.errors import NetworkError, NsboxError, SpecError, StateError
from nsbox.forgotten import forgotten
from nsbox.interface import check_name
from nsbox.keywords import make_spec
from nsbox.nodes import FOREVER, FORWARD, SYSCTLS, Host, Link, Network, Router, Switch
from nsbox.pings import PingMatrix, ping_all
from nsbox.podspec import is_dns_label

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv4Network

    from nsbox.interface import Interface
    from nsbox.nodes import Node
    from nsbox.rtnl import Rtnl
    from nsbox.wiring import End, Wiring

_SWITCH_NAME = 8  # characters: "-eth123" follows, and a link's name has 15
_MTU = (68, 65535)
_CARRIER_S = 2.0
#: Of the first end of a link. Where both ends have the same number, the kernel takes a link for
#: one that stands alone, and is in no hurry to see that it works.
_INDEX = 1000


class Topology:
    """Hosts, routers and switches, and links between them; ``with`` starts it and removes it.

    Add nodes and links, then start it. All that it is made of belongs to it: ``close()``, and the
    end of the program, however it ends, leave nothing. As root each host has a user namespace of
    its own; as an ordinary user all of them share one.

    Args:
        name: for listings.
        network: IPv4, where addresses come from that no link says.
        static_arp: everybody knows the hardware addresses of its subnet, and nobody asks for them.
            The kernel remembers 1024 that were asked for, in all network namespaces together
            (gc_thresh3, arp(7)), which is what some 30 hosts have of each other.

    Raises:
        SpecError: an argument is wrong.
    """

    def __init__(self, name: str = "topology", *, network: Any = "10.0.0.0/16",
                 static_arp: bool = False) -> None:  # fmt: skip
        if not is_dns_label(name):
            raise SpecError("name", f"{name!r} is not a DNS label")
        try:
            self.network: IPv4Network = ipaddress.IPv4Network(network)
        except ValueError as e:
            raise SpecError("network", f'{network!r}: {e}; use as "10.0.0.0/16"') from e
        netspec.check_hosts(self.network, "network", "10.0.0.0/16")
        self.name = name
        self._static_arp = flag(static_arp, "static_arp")
        self._nodes: dict[str, Node] = {}
        self._links: list[Link] = []
        self._cables: list[wiring.Cable] = []
        self._wiring: Wiring | None = None
        self._networks: dict[str, Network] = {}
        self.switching: Network | None = None
        self._undo = ExitStack()
        self._status = "created"
        self._owner = os.getpid()

    # ------------------------------------------------------------ what it is made of

    def host(self, name: str, args: Any = None, **keywords: Any) -> Host:
        """Add a host: a ``Container`` with these keywords, that has no network but its links.

        Raises:
            SpecError: the name is taken, or a keyword's value is wrong.
            StateError: it was started already.
        """
        made = Host(self, self._new_name(name), args, **keywords)
        self._add(made)
        return made

    def router(self, name: str, args: Any = None, **keywords: Any) -> Router:
        """Add a router: a host that forwards, with static routes to every subnet."""
        made = Router(self, self._new_name(name), args, **keywords)
        self._add(made)
        return made

    def switch(self, name: str) -> Switch:
        """Add a switch: a Linux bridge. Its name has at most 8 characters."""
        if len(check_name(self._new_name(name), "name")) > _SWITCH_NAME:
            raise SpecError("name", f"{name!r}: that of a switch has at most {_SWITCH_NAME} "
                            "characters")  # fmt: skip
        made = Switch(self, name)
        self._add(made)
        return made

    def _add(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._wiring = None

    def _new_name(self, name: Any) -> str:
        self._check_created()
        if not isinstance(name, str) or not is_dns_label(name):
            raise SpecError("name", f"{name!r} is not a DNS label")
        if name in self._nodes:
            raise SpecError("name", f"there is a {self._nodes[name].kind} {name!r} already")
        return name

    def _check_created(self, why: str = "add before it is started") -> None:
        if self._status != "created":
            raise StateError(f"topology {self.name!r} is {self._status}: {why}",
                             status=self._status)  # fmt: skip

    def link(
        self,
        a: Node | str,
        b: Node | str,
        *,
        rate: Any = None,
        delay: Any = None,
        loss: Any = None,
        mtu: int | None = None,
        address: Any = None,
        peer_address: Any = None,
        **more: Any,
    ) -> Link:
        """Add a link between two nodes, or their names.

        Args:
            rate, delay, loss: of each direction, see ``Interface.shape``; *more* are its other
                keywords.
            mtu: bytes.
            address, peer_address: of the end at *a* and of that at *b*, as ``"10.1.0.1/24"``; what
                is not said is chosen. A switch has none.

        Raises:
            SpecError: no such node, or a value is wrong.
            StateError: it was started already.
        """
        self._check_created()
        one, other = self._node(a, "a"), self._node(b, "b")
        if one is other:
            raise SpecError("b", f"{other.name!r} is both ends")
        if mtu is not None:
            units.count(mtu, "mtu", least=_MTU[0], most=_MTU[1])
        wanted = {"rate": rate, "delay": delay, "loss": loss, **more}
        shape = None
        if any(value is not None for value in wanted.values()):
            shape = shaping.make_shape(**wanted)
        cable = wiring.Cable(one.name, other.name, _address(address, one, "address"),
                             _address(peer_address, other, "peer_address"))  # fmt: skip
        made = Link(self, len(self._links), one, other, shape, mtu or 0)
        self._links.append(made)
        self._cables.append(cable)
        self._wiring = None
        return made

    def _node(self, node: Any, field: str) -> Node:
        found = self._nodes.get(node) if isinstance(node, str) else node
        if not isinstance(found, (Host, Switch)) or self._nodes.get(found.name) is not found:
            raise SpecError(field, f"{node!r} is no node of this topology")
        return found

    def _kinds(self) -> dict[str, str]:
        return {name: node.kind for name, node in self._nodes.items()}

    def wiring(self) -> Wiring:
        """Addresses and routes, as they are, or will be when it is started."""
        if self._wiring is None:
            self._wiring = wiring.wire(self._kinds(), self._cables, self.network)
        return self._wiring

    def __getitem__(self, name: str) -> Any:
        return self._nodes[name]

    @property
    def hosts(self) -> list[Host]:
        """In the order in which they were added, without routers."""
        return [node for node in self._nodes.values() if node.kind == wiring.HOST]  # type: ignore[misc]

    @property
    def switches(self) -> list[Switch]:
        return [node for node in self._nodes.values() if isinstance(node, Switch)]

    @property
    def routers(self) -> list[Router]:
        return [node for node in self._nodes.values() if isinstance(node, Router)]

    @property
    def links(self) -> list[Link]:
        return list(self._links)

    # ------------------------------------------------------------ start and end

    def start(self) -> Topology:
        """Make the networks, then start the hosts.

        Raises:
            StateError: it was started before.
            SetupError, Unavailable, NetworkError: something could not be made; nothing is left.
        """
        self._check_created("it is started once")
        self._status = "stopped"
        try:
            with interrupts.Held():
                self._start()
        except BaseException:
            self.close()
            raise
        self._status = "running"
        return self

    def _start(self) -> None:
        boxes = [node for node in self._nodes.values() if isinstance(node, Host)]
        host = probe.host()
        specs = [box.spec for box in boxes] or [make_spec(FOREVER)]
        id_map, uid = decide_pod_map(specs, host)
        plan = self.wiring()
        if self.switches or not host.privileged:
            self.switching = self._hold("switches", id_map, uid)
        # As root each has a user namespace of its own. Others can only lead links from one network
        # to another when both belong to the same one.
        shared = None if host.privileged or self.switching is None else self.switching.holder
        for box in boxes:
            sysctls = FORWARD if box.kind == wiring.ROUTER else SYSCTLS
            self._networks[box.name] = self._hold(box.name, id_map, uid, shared, sysctls)
        self._make_links(plan)
        for box in boxes:
            box.place(self._networks[box.name], plan.hosts_file(box.name), id_map)
        self._undo.callback(self._close_hosts)
        for box in boxes:
            box.start()

    def _hold(self, name: str, *more: Any) -> Network:
        made = Network.hold(f"{self.name}/{name}", *more)
        self._undo.callback(made.close)
        return made

    def _at(self, node: str) -> Network:
        network = self._networks.get(node, self.switching)
        if network is None or self._status == "created":
            raise StateError(f"topology {self.name!r} is {self._status}", status=self._status)
        return network

    def interface(self, end: End) -> Interface:
        """For nsbox's own use: what is at that end."""
        return self._at(end.node).interface(end.name)

    def _make_links(self, plan: Wiring) -> None:
        if self.switching is not None:
            bridges = [rtnl.link_add("bridge", switch.name, up=True) for switch in self.switches]
            self.switching.route.do(*bridges)
        for i, (link, (one, other)) in enumerate(zip(self._links, plan.ends, strict=True)):
            there = self._at(other.node).namespace.fileno()
            self._at(one.node).route.do(
                rtnl.veth_add(one.name, other.name, index=_INDEX + i, peer_netns=there,
                              mtu=link.mtu, mac=one.mac, peer_mac=other.mac)
            )  # fmt: skip
        for end in itertools.chain.from_iterable(plan.ends):
            self.configure(end)
        for link, ends in zip(self._links, plan.ends, strict=True):
            for end in ends if link.shaping is not None else ():
                assert link.shaping is not None
                shaping.apply(self._at(end.node).route, end.name, link.shaping)
        self.await_carriers(itertools.chain.from_iterable(plan.ends))

    def configure(self, end: End) -> None:
        """Set it up, with what belongs to it; what is there stays as it is."""
        route = self._at(end.node).route
        node = self._nodes[end.node]
        if isinstance(node, Switch):
            bridge = route.link(end.node).ifindex
            route.do(rtnl.link_set(end.name, up=True, master=bridge))
            return
        index = route.link(end.name).ifindex
        assert end.address is not None
        replace = rtnl.RT.NSB_RT_REPLACE
        plan = self.wiring()
        ways = [way for way in plan.routes[end.node] if way.interface == end.name]
        known = plan.neighbours(end) if self._static_arp else ()
        route.do(
            rtnl.link_set(index, up=True),
            rtnl.address_add(index, end.address, verb=replace),
            *(rtnl.route_add(way.network, gateway=way.gateway, index=index, verb=replace)
              for way in ways),
            *(rtnl.neighbour_add(index, other.address.ip, other.mac)
              for other in known if other.address is not None),
        )  # fmt: skip

    def await_carriers(self, ends: Iterable[End]) -> None:
        """Until the kernel has taken note that both ends are up, which it does when it finds time:
        before, a bridge drops what comes."""
        deadline = time.monotonic() + _CARRIER_S
        waiting: dict[Rtnl, set[str]] = {}
        for end in ends:
            waiting.setdefault(self._at(end.node).route, set()).add(end.name)
        while waiting and time.monotonic() < deadline:
            for route, names in list(waiting.items()):
                names -= {link.name for link in route.links() if link.running}
                if not names:
                    del waiting[route]
            if waiting:
                time.sleep(0.001)

    def _close_hosts(self) -> None:
        boxes = [node for node in self._nodes.values() if isinstance(node, Host)]
        for box in boxes:
            with contextlib.suppress(NsboxError):  # all at once; close() waits for each
                box.kill()
        for box in boxes:
            box.close()

    def close(self) -> None:
        """End the hosts and remove the networks; idempotent."""
        if os.getpid() == self._owner:
            with interrupts.Held():
                self._status = "stopped"
                self._undo.close()

    def __enter__(self) -> Topology:
        return self if self._status == "running" else self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_status", "") == "running" and os.getpid() == self._owner:
            forgotten(self)

    def status(self) -> str:
        """``"created"``, ``"running"`` or ``"stopped"``."""
        return self._status

    # ------------------------------------------------------------ what is seen of it

    def ping_all(self, timeout: float = 1.0) -> PingMatrix:
        """One echo request from each host to each other; not from nor to routers.

        The requests are the caller's, sent from within the hosts' networks: nothing has to be
        installed in them.

        Args:
            timeout: seconds that an answer may take.

        Raises:
            SpecError: *timeout* is no duration.
            StateError: it is not running.
        """
        patience = units.seconds(timeout, "timeout", zero=True)
        launcher.check_owner(self._owner)
        if self._status != "running":
            raise StateError(f"topology {self.name!r} is {self._status}", status=self._status)
        plan = self.wiring()
        hosts = [host.name for host in self.hosts]
        known = {
            a: {b: address for b in hosts if (address := plan.address_of(b, seen_from=a))}
            for a in hosts
        }
        sources = {name: self._networks[name].namespace for name in hosts}
        return ping_all(sources, known, patience)

    def _picture(self) -> tuple[list[drawing.Box], list[drawing.Line]]:
        live = self._status == "running"
        boxes = [drawing.Box(name, node.kind, tuple(self._lines(node, live)))
                 for name, node in self._nodes.items()]  # fmt: skip
        lines = [drawing.Line(link.a.name, link.b.name, str(link.shaping or ""),
                              link.is_up if live else True)
                 for link in self._links]  # fmt: skip
        return boxes, lines

    def _lines(self, node: Node, live: bool) -> list[str]:
        """What is said of a node beside its name."""
        if isinstance(node, Switch):
            return []
        addresses: list[Any] = list(self.wiring().addresses(node.name))
        if live:
            addresses = [one for end in node.interfaces.values() for one in _addresses_at(end)]
            if node.status() != "running":
                addresses.append(f"({node.status()})")
        return list(map(str, addresses))

    def draw(self) -> str:
        """As text: nodes, their addresses, links with what was said of them; of a running one as
        it is now. Links that are down are dotted."""
        return drawing.text(*self._picture())

    def svg(self) -> str:
        """The same as an SVG document, for a file or a web page."""
        return drawing.svg(*self._picture(), title=self.name)

    __str__ = draw

    def __repr__(self) -> str:
        return f"<nsbox.Topology {self.name!r} {self._status}, {len(self._nodes)} nodes>"


def _addresses_at(end: Interface) -> list[Any]:
    try:
        return [address for address in end.addresses if not address.is_link_local]
    except NetworkError:  # a host that may can take it away
        return []


def _address(value: Any, node: Node, field: str) -> IPv4Interface | None:
    if value is None:
        return None
    if isinstance(node, Switch):
        raise SpecError(field, f"switch {node.name!r} has none")
    try:
        if isinstance(value, str) and "/" not in value:
            raise ValueError("has no prefix length")
        found = ipaddress.IPv4Interface(value)
    except ValueError as e:
        raise SpecError(field, f'{value!r}: {e}; use as "10.1.0.1/24"') from e
    network = found.network
    if network.prefixlen < 31 and found.ip in (network.network_address, network.broadcast_address):
        raise SpecError(field, f"{found} is no host's, but the subnet's")
    return found
