# SPDX-License-Identifier: Apache-2.0
"""What a topology is made of: hosts, routers, switches, links; and the networks they are in."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nsbox import nslist, probe, wiring
from nsbox.compile import compile_pause
from nsbox.container import Container
from nsbox.errors import NetworkError, SpecError, StateError
from nsbox.interface import Interface
from nsbox.keywords import make_spec
from nsbox.namespace import Namespace
from nsbox.netlink import rtnl as open_rtnl
from nsbox.process import dev_null
from nsbox.slots import JOIN, Joined, Slot
from nsbox.spawn import spawn
from nsbox.spec import Mount

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from nsbox.process import Process
    from nsbox.shaping import Shape
    from nsbox.topology import Topology

FOREVER = ("sleep", "infinity")
_HOSTS = "/etc/hosts"
#: Whatever the host's own settings, which a new network namespace starts with: answers may come
#: by another way than the one that leads there.
SYSCTLS = (("net/ipv4/conf/all/rp_filter", "2"),)
FORWARD = (*SYSCTLS, ("net/ipv4/ip_forward", "1"))


class Host(Container):
    """A host of a ``Topology``: a container with a network of its own, that it is started in.

    It takes the keywords of ``Container``. Its name is its host name; without a command it sleeps,
    with nsbox-init as PID 1.
    """

    kind = wiring.HOST

    def __init__(self, topology: Topology, name: str, args: Any, **keywords: Any) -> None:
        if "net" in keywords:
            raise SpecError("net", "is the topology's")
        super().__init__(
            list(FOREVER) if args is None else args,
            name=name,
            **{"hostname": name, "init": True, **keywords},
        )
        self._topology = topology
        self._network: Network | None = None

    def place(self, network: Network, hosts_file: str, id_map: str) -> None:
        """By its topology: where it will be started."""
        args, keywords = self._wanted
        mounts = tuple(keywords.get("mounts", ()))
        makes_files = self.spec.root.kind in ("host", "overlay")
        if makes_files and _HOSTS not in {mount.dst for mount in mounts}:
            mounts += (Mount.file(_HOSTS, hosts_file),)
        self._wanted = (args, {**keywords, "mounts": mounts})
        self._joined = Joined(("user", "net"), network.holder.pidfd, id_map)
        self._box = f"{self._topology.name}/{self.name}"
        self._network = network

    def start(self) -> Container:
        """By its topology, when that is started."""
        if self._network is None:
            raise StateError(f"host {self.name!r} is started with its topology",
                             status="created")  # fmt: skip
        return super().start()

    @property
    def network(self) -> Namespace:
        """Its network namespace; ``network.run`` runs a program of the caller's in it.

        Raises:
            StateError: the topology has not been started.
        """
        if self._network is None:
            raise StateError(f"host {self.name!r} has no network yet", status="created")
        return self._network.namespace

    @property
    def interfaces(self) -> dict[str, Interface]:
        """``"eth0"`` and so on, in the order of its links; empty before the start."""
        ends = self._topology.wiring().of[self.name]
        network = self._network
        return {} if network is None else {end.name: network.interface(end.name) for end in ends}

    @property
    def ip(self) -> IPv4Address | None:
        """Its first address; None without a link. Known before the start."""
        found = self._topology.wiring().addresses(self.name)
        return found[0].ip if found else None


class Router(Host):
    """A host that forwards packets: each of its links is in a subnet of its own."""

    kind = wiring.ROUTER


class Switch:
    """A Linux bridge, in a network namespace that the switches of a topology share."""

    kind = wiring.SWITCH

    def __init__(self, topology: Topology, name: str) -> None:
        self.name = name
        self._topology = topology

    @property
    def interfaces(self) -> dict[str, Interface]:
        """Its ports, ``"s1-eth1"`` and so on; empty before the start."""
        network = self._topology.switching
        ends = self._topology.wiring().of[self.name]
        return {} if network is None else {end.name: network.interface(end.name) for end in ends}

    def __repr__(self) -> str:
        return f"<nsbox.nodes.Switch {self.name!r}>"


Node = Host | Switch


class Link:
    """A cable between two nodes: a veth pair.

    Attributes:
        a, b: the nodes.
        mtu: bytes; 0 for the kernel's own choice.
        shaping: what it was told of rate, delay and loss; None for nothing.
    """

    def __init__(self, topology: Topology, number: int, a: Node, b: Node, shape: Shape | None,
                 mtu: int) -> None:  # fmt: skip
        self.a, self.b = a, b
        self.shaping = shape
        self.mtu = mtu
        self._topology = topology
        self._number = number

    @property
    def ends(self) -> tuple[Interface, Interface]:
        """The interface at *a*, and that at *b*. Raises StateError unless the topology is up."""
        one, other = self._topology.wiring().ends[self._number]
        return self._topology.interface(one), self._topology.interface(other)

    @property
    def is_up(self) -> bool:
        """Both of its ends are there and set up. Raises StateError unless the topology is up."""
        try:
            return all(end.is_up for end in self.ends)
        except NetworkError:  # a host that may can take its end away
            return False

    def shape(self, rate: Any = None, **more: Any) -> None:
        """``Interface.shape`` of both ends, so of each direction by itself. The new one takes the
        place of the old one, also while packets flow."""
        for end in self.ends:
            self.shaping = end.shape(rate, **more)

    def unshape(self) -> None:
        """Nothing is bounded or delayed any more."""
        for end in self.ends:
            end.unshape()
        self.shaping = None

    def down(self) -> None:
        """Cut it: both ends are set down. Routes stay as they are, so nobody looks for another
        way."""
        for end in self.ends:
            end.down()

    def up(self) -> None:
        """Undo ``down``: with the routes, which the kernel forgets when an end is set down."""
        ends = self._topology.wiring().ends[self._number]
        for end in ends:
            self._topology.configure(end)
        self._topology.await_carriers(ends)

    def __str__(self) -> str:
        what = f"  {self.shaping}" if self.shaping is not None else ""
        return f"{self.a.name} - {self.b.name}{what}"

    def __repr__(self) -> str:
        return f"<nsbox.nodes.Link {self}>"


class Network:
    """A network namespace of a topology's, with a process that holds it and a socket in it."""

    def __init__(self, namespace: Namespace, holder: Process) -> None:
        """Takes over both, also when it fails."""
        self.namespace = namespace
        self.holder = holder
        try:
            self.route = open_rtnl(namespace)
        except BaseException:
            namespace.close()
            raise

    @classmethod
    def hold(
        cls,
        label: str,
        id_map: str,
        uid: int,
        shared: Process | None = None,
        sysctls: tuple[tuple[str, str], ...] = (),
    ) -> Network:
        """Make one, in the user namespace of *shared* or in a new one; ids are mapped by *id_map*,
        see ``Build.id_map``, and the process that holds it is *uid*."""
        kinds = ["pid", "mnt", "net"] + ["user"] * (shared is None)
        spec = make_spec(["pause"], namespaces=kinds, user=uid,
                         profile="standard" if id_map == "range" else "strict")  # fmt: skip
        descriptors = {Slot("stdio", n): dev_null() for n in range(3)}
        join: tuple[str, ...] = ()
        join_map = ""
        if shared is not None:
            join, join_map = ("user",), id_map
            descriptors[JOIN] = shared.pidfd
        plan = compile_pause(spec, probe.host(), join, join_map=join_map, sysctls=sysctls)
        with ExitStack() as failed:
            holder = spawn(plan, descriptors)
            failed.callback(holder.close)
            fd = holder.open_namespace("net")
            failed.pop_all()
        nslist.boxes[holder.pid] = label
        # Root acts from outside, with rights in all of them: links lead from one to another.
        seen_by = "" if probe.host().privileged else id_map
        return cls(Namespace("net", fd, holder, seen_by, uid), holder)

    def interface(self, name: str) -> Interface:
        return Interface(self.route, name, self.namespace)

    def close(self) -> None:
        self.route.close()
        nslist.boxes.pop(self.holder.pid, None)
        self.namespace.close()
