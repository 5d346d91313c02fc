# SPDX-License-Identifier: Apache-2.0
"""Bridge: a switch that sandboxes are plugged into, with addresses, NAT and published ports.

    sandbox              owner                                kernel
       | opens a netlink socket in its network
       | hand-over, waits -> |
       |                     | veth: eth0 there, a port here -> |
       |                     | address, default route, rules -> |
       | <------------- byte |
       | execve

Nothing of the payload's runs before its network is as it will be. The bridge is in the caller's
network namespace, or, of an ordinary user, in a router (router.py); its rules are in a table of
their own, which the kernel removes with the socket that made it, however this program ends.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nsbox import (
    conntrack,
    etc,
    hostsfile,
    identity,
    interface,
    interrupts,
    later,
    launcher,
    links,
    netguard,
    netrules,
    netspec,
    nft,
    router,
    rtnl,
)
from nsbox.addresses import Pool, counterpart
from nsbox.checks import flag
from nsbox.errors import NetworkError, SpecError, StateError, Unavailable
from nsbox.identity import HOSTNAME, HOSTS, RESOLV, HostNames, Identity
from nsbox.lease import Lease
from nsbox.netrules import HostPort
from nsbox.registry import directory
from nsbox.spec import NetLabel
from nsbox.subnets import claim_subnet, free_subnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from nsbox.netrules import Published
    from nsbox.netspec import Address, Dns, HostAlias, Subnet
    from nsbox.nftmsg import Message
    from nsbox.spec import Spec
    from nsbox.subnets import Claim

_NAMES = (HostPort(53, "udp"), HostPort(53, "tcp"))


class Cable(NamedTuple):
    """The requests that lay one: here the *pair* of links and the *mark* of the port, and those
    *inside* the sandbox."""

    pair: rtnl.Request
    mark: rtnl.Request
    inside: tuple[rtnl.Request, ...]


class Bridge(links.Owned):
    """A Linux bridge in the caller's network namespace; ``net=bridge`` plugs a sandbox in.

    Made by ``start()``, or by the ``with`` block, at whose end it is removed. So it is when this
    program ends, however that is. The sandboxes on it have to be stopped before.

    Of an ordinary user it is in a network namespace that all bridges of this program share. What
    leaves that, with *nat*, does so by pasta or slirp4netns; to published ports and to those of
    *host_ports* every connection comes from the gateway, and host_ports are those of 127.0.0.1.

    Args:
        name: of the link, at most 15 bytes; a new one when it is not given.
        subnet: IPv4, as ``"10.77.0.0/24"``: its first address is the bridge's, and the gateway;
            sandboxes get the others, and a default route. Without one they have a link only.
        subnet6: IPv6, as ``"fd00:77::/64"``, beside *subnet*.
        nat: what leaves the subnet gets the host's address (masquerade), and the host forwards.
        isolated: nobody but the host opens connections to its sandboxes, but to published ports.
        host_ports: services of the host that its sandboxes reach, at the gateway's address, as
            ``8080`` or ``"53/udp"``. All others are closed to them.
        dns: name servers that are asked before the host's, which follow up to three in all:
            addresses, or ``{"nameservers": ..., "searches": ..., "options": ...}``.
        mtu: bytes; with *subnet6* at least 1280.

    Raises:
        SpecError: an argument is wrong.

    Attributes:
        name: of the link.
        subnet, subnet6: as networks; None when there are none.
        gateway, gateway6: its own addresses.
    """

    _finds_subnet = False
    _started = False

    def __init__(
        self,
        name: str | None = None,
        *,
        subnet: Any = None,
        subnet6: Any = None,
        nat: bool = False,
        isolated: bool = True,
        host_ports: Iterable[Any] = (),
        dns: Any = None,
        mtu: int | None = None,
    ) -> None:
        super().__init__()
        self._named, self._found = name is not None, subnet is None
        self.name = interface.new_name() if name is None else interface.check_name(name, "name")
        self.subnet: IPv4Network | None = None
        self.subnet6: IPv6Network | None = None
        if subnet is not None:
            self.subnet = cast("IPv4Network", netspec.parse_subnet(subnet, "subnet", 4))
        if subnet6 is not None:
            if subnet is None and not self._finds_subnet:
                raise SpecError("subnet6", "is beside an IPv4 subnet=")
            self.subnet6 = cast("IPv6Network", netspec.parse_subnet(subnet6, "subnet6", 6))
        self.nat, self.isolated = flag(nat, "nat"), flag(isolated, "isolated")
        if nat and subnet is None and not self._finds_subnet:
            raise SpecError("nat", "is of a subnet=")
        self.mtu = interface.check_mtu(mtu, six=subnet6 is not None)
        self._host_ports = tuple(_host_ports(host_ports))
        self._dns = netspec.parse_dns(dns) if dns is not None else None
        self.table = f"nsb-{secrets.token_hex(6)}"
        self._stand_in = netspec.Dns()
        self.hosts: hostsfile.NetworkHosts | None = None
        self._undo = ExitStack()
        self._leases: set[Lease] = set()
        self._resolvers: dict[tuple[Dns | None, str], str] = {}
        self._lock = threading.RLock()

    # ------------------------------------------------------------ what it is

    @property
    def gateway(self) -> IPv4Address | None:
        return None if self.subnet is None else self.subnet.network_address + 1

    @property
    def gateway6(self) -> IPv6Address | None:
        return None if self.subnet6 is None else self.subnet6.network_address + 1

    @property
    def label(self) -> NetLabel:
        """What it is called in plans; what makes it one of the values of ``net=``."""
        where = ", ".join(map(str, filter(None, (self.subnet, self.subnet6))))
        return NetLabel(f"eth0 in {self.name}{where and ', '}{where}", self)

    @property
    def link(self) -> interface.Interface:
        """The bridge itself, as a link. Raises StateError unless it is there."""
        self._check_there()
        self._own.lent = True
        return interface.Interface(self._route, self.name)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Of the sandboxes that are plugged in."""
        return tuple(self._leases)

    def _check_there(self) -> None:
        launcher.check_owner(self._owner)
        if not self._started or self._closed:
            status = "closed" if self._closed else "created"
            raise StateError(f"{self._said()}: it is {status}, use start() or with", status=status)
        if not self._place.lives():
            raise StateError(f"{self._said()} was lost with its launcher", status="lost")

    # ------------------------------------------------------------ start and end

    def start(self) -> Bridge:
        """Make the link, its address and its rules.

        Raises:
            StateError: it was started before.
            Unavailable: the subnet is in use, or the host cannot do it.
            NetworkError: the kernel refused; nothing is left.
        """
        if self._started or self._closed:
            raise StateError(f"{self._said()} was started before", status="started")
        self._started = True
        try:
            with interrupts.Held():
                self._place = router.place()
                self._undo.callback(self._place.release)
                self._claim()
                self._make()
        except BaseException:
            self.close()
            raise
        return self

    def _claim(self) -> None:
        """The addresses, of all that run here."""
        where, taken = self._place.name, self._place.taken
        claim = self._claim_subnet()
        if claim is not None:
            self._undo.callback(claim.close)
            self.subnet = cast("IPv4Network", claim.subnet)
            self._pool = Pool(self.subnet, where)
            self._undo.callback(self._pool.close)
        if self.subnet6 is not None:
            self._undo.callback(claim_subnet(self.subnet6, taken, "subnet6", where).close)

    def _claim_subnet(self) -> Claim | None:
        if self.subnet is None:
            return None
        return claim_subnet(self.subnet, self._place.taken, where=self._place.name)

    def _make(self) -> None:
        self._route = self._open(self._place.net)
        self._mark = self._alias()
        if self.subnet is not None:  # what has to outlive the link comes before it
            self._rules = self._place.rules()
            self._undo.callback(later.call, self._rules.close)
            if self.nat or not self.isolated:
                versions = (4,) if self.subnet6 is None else (4, 6)
                self._place.forward(versions, self._undo)
        mac = interface.new_mac()  # its own, or it would be the lowest of its ports'
        self._index = interface.new_index()
        self._route.do(
            rtnl.link_add("bridge", self.name, index=self._index, mtu=self.mtu, mac=mac),
            rtnl.link_set(self._index, alias=self._mark),
        )
        own = self.routing(self.gateway, self.gateway6)
        addresses = [interface.with_prefix(gateway, subnet) for gateway, subnet, _ in own]
        # Somebody may want at once what the caller chose. In a router, which looks for nothing but
        # claims, that is any address.
        found = self._found and self._place.net is None
        chosen = [one for one in addresses if one.version == 6 or not found]
        self._own = interface.Own(self._route, self._index, chosen, named=self._named)
        # Not a method of ours: one that is forgotten has to end before its parts do.
        self._undo.callback(self._own.delete)
        self._route.do(
            rtnl.link_set(self._index, up=True),
            *(rtnl.address_add(self._index, address) for address in addresses),
        )
        if self.subnet is not None and self.gateway is not None:
            self._make_rules(self.subnet, self.gateway)
            self._make_files()

    def _make_rules(self, subnet: IPv4Network, gateway: IPv4Address) -> None:
        if self.nat:
            self._place.lead_out()
        resolver = self._place.resolver()
        host_ports = tuple(dict.fromkeys((*self._host_ports, *(_NAMES if resolver else ()))))
        self.transact(
            [*netguard.guard_table(self.table, self._index), *netrules.network_table(
                self.table, self.name, subnet, gateway, self.subnet6, self.gateway6,
                nat=self.nat, isolated=self.isolated, host_ports=host_ports,
                uplink=self._place.uplink, ports=self._index,
            )],
            "rules",
        )  # fmt: skip
        self._place.admit_loopback(self.name)
        gateways: list[Address] = [gateway]
        if self.gateway6 is not None:
            gateways.append(self.gateway6)
        self._place.serve_host(gateways, self._host_ports, self._undo)
        if resolver is not None:
            left = [port for port in _NAMES if port not in self._host_ports]
            self._place.serve_host([gateway], left, self._undo, resolver)
            self._stand_in = netspec.Dns((gateway,))

    def _make_files(self) -> None:
        self.hosts = hostsfile.NetworkHosts()
        self._undo.callback(self.hosts.close)
        self._hostnames = HostNames()
        self._undo.callback(self._hostnames.close)

    def _resolv_conf(self, dns: Dns | None, policy: str) -> str:
        """The path of a file for whoever has these name servers before the host's."""
        if (dns, policy) not in self._resolvers:
            path = f"{directory()}/{launcher.current().entry.name()}-resolv"
            self._undo.callback(hostsfile.remove, path)
            more = dns if policy == "None" else etc.merge(self._stand_in, dns or netspec.Dns())
            identity.write(path, hostsfile.resolv_conf(policy, more).text)
            self._resolvers[dns, policy] = path
        return self._resolvers[dns, policy]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """It is there, and is not closed as long as the block lasts: what a thread writes for a
        sandbox while another one closes the bridge would stay."""
        launcher.check_owner(self._owner)  # in a forked child nobody gives the lock back
        with self._lock:
            self._check_there()
            yield

    def _delete(self) -> None:
        with self._lock:
            self._undo.close()

    def __enter__(self) -> Bridge:
        return self if self._started else self.start()

    # ------------------------------------------------------------ for its leases

    def lease(self, spec: Spec, who: Identity, kind: str = "container") -> Lease:
        """For nsbox's own use: a place for one sandbox, which errors call *kind* and its name.

        Raises:
            StateError: the bridge is not there.
            Unavailable: there is no address, or no port, left.
        """
        self._check_there()
        try:
            made = Lease(self, spec, who, kind)
        except Exception:
            self._check_there()  # closed meanwhile: that is what was wrong
            raise
        self._leases.add(made)
        return made

    def while_open(self, undo: Callable[..., Any], *args: Any) -> None:
        """What a lease has to undo, unless it went with the bridge."""
        if not self._closed:
            undo(*args)

    @property
    def router(self) -> router.Router | None:
        """For nsbox's own use: of an ordinary user's bridge, where it is."""
        self._check_there()
        return self._place if isinstance(self._place, router.Router) else None

    def forget(self, lease: Lease) -> None:
        self._leases.discard(lease)

    def identify(
        self,
        spec: Spec,
        name: str = "",
        *,
        policy: str = "Default",
        aliases: tuple[HostAlias, ...] = (),
    ) -> Identity:
        """For nsbox's own use: who a sandbox will be here, *name* being what it is called."""
        with self._kept():
            return self._identify(spec, name, policy, aliases)

    def _identify(
        self, spec: Spec, name: str, policy: str, aliases: tuple[HostAlias, ...]
    ) -> Identity:
        if self.hosts is None:
            if spec.dns is not None:
                raise SpecError("dns", "the bridge has no subnet=, and so no way to a name server")
            return identity.alone(spec.hostname, aliases)
        who = self._with_name(spec, name)
        try:
            who.files[HOSTS] = self.hosts.path
            if aliases:
                hosts = self.hosts.with_aliases(aliases)
                who.callback(self.while_open, self.hosts.drop, hosts)
                who.files[HOSTS], who.asked[HOSTS] = hosts.path, "host_aliases"
            who.files[RESOLV] = self._resolv_conf(spec.dns or self._dns, policy)
            if spec.dns is not None:
                who.asked[RESOLV] = "dns"
        except BaseException:
            who.close()
            raise
        return who

    def named(self, spec: Spec, name: str) -> Identity:
        """With a host name, if it can have one."""
        with self._kept():
            return self._with_name(spec, name)

    def _with_name(self, spec: Spec, name: str) -> Identity:
        names = [name] if identity.published(name) else []
        if spec.hostname is None and not identity.may_be_named(spec):
            return Identity(None, names)
        if spec.hostname is not None:
            hostname = self._hostnames.take(spec.hostname)
        else:
            hostname = self._hostnames.take_new(identity.host_name(name))
        more = [hostname] if identity.published(hostname) else []
        who = Identity(hostname, dict.fromkeys([*names, *more]),
                       {HOSTNAME: self._hostnames.path(hostname)})  # fmt: skip
        who.callback(self.while_open, self._hostnames.give, hostname)
        return who

    def take_address(self, wanted: str | None) -> tuple[Address | None, Address | None]:
        if self.subnet is None:
            if wanted is not None:
                raise SpecError("address", "the bridge has no subnet=")
            return None, None
        address = self._take(wanted)
        if self.subnet6 is None:
            return address, None
        return address, counterpart(address, self.subnet, self.subnet6)

    def _take(self, wanted: str | None) -> Address:
        try:
            return self._pool.take(wanted)
        except Unavailable as e:
            holder = next((one for one in self.leases if str(one.address) == wanted), None)
            if holder is None:
                raise
            raise Unavailable(
                "network", f"{wanted} is lent to {holder}", err=e.errno or 0
            ) from None

    def give_address(self, address: Address | None) -> None:
        if address is not None:
            self._pool.give(address)

    def routing(
        self, address: Address | None, address6: Address | None
    ) -> Iterator[tuple[Address, Subnet, Address]]:
        """(address, its subnet, the gateway), of each version that there is."""
        for own, subnet, gateway in ((address, self.subnet, self.gateway),
                                     (address6, self.subnet6, self.gateway6)):  # fmt: skip
            if own is not None and subnet is not None and gateway is not None:
                yield own, subnet, gateway

    def cable(
        self, port: str, peer: str, mac: str, addresses: tuple[Address | None, Address | None]
    ) -> Cable:
        """What makes a veth pair: *port* of the bridge, and in a sandbox *peer* with these
        *addresses* and default routes. Nothing is made yet."""
        # Ours to choose, so nobody has to ask for them; two, for a device that is "stacked" on its
        # own number waits up to a second until the kernel believes that it is up (linkwatch).
        index, inside = interface.new_index(), interface.new_index()
        # Of this bridge alone, as its index is; without addresses there is no guard, and no group.
        group = 0 if self.subnet is None else self._index
        pair = rtnl.veth_add(port, peer, peer_index=inside, peer_mac=mac, index=index, up=True,
                             master=self._index, mtu=self.mtu, group=group)  # fmt: skip
        # Where br_netfilter is on, by a published port a sandbox comes back to itself.
        mark = rtnl.link_set(index, alias=self._mark, hairpin=True)
        wanted = [rtnl.link_set(inside, up=True)]
        for address, subnet, gateway in self.routing(*addresses):
            wanted.append(rtnl.address_add(inside, interface.with_prefix(address, subnet)))
            wanted.append(rtnl.route_add(None, gateway=gateway, index=inside))
        return Cable(pair, mark, tuple(wanted))

    def plug(self, cable: Cable, pid: int) -> None:
        """Lay it, to the network of process *pid*."""
        self._check_there()
        self._route.do(rtnl.to_process(cable.pair, pid), cable.mark)

    def unplug(self, port: str) -> None:
        """Delete the pair, soon."""
        later.delete(self._route, port)

    def transact(self, messages: list[Message], what: str) -> None:
        """Change the rules of its table."""
        try:
            nft.transact(self._rules, messages)
        except OSError as e:
            raise NetworkError(e.errno or 0, f"{what} of {self.name}", str(e)) from e

    def redirect(self, entry: Published) -> None:
        """Datagrams of those that have asked its ports already: else they wait until the kernel
        forgets them, which is no reason to publish nothing."""
        with suppress(OSError):
            own = {one.ip for _, one in self._route.addresses()}
            conntrack.redirect(self._rules, entry, own)

    def release(self, entry: Published) -> None:
        """Soon, as nobody waits for it; unless it is published again till then."""

        def finish() -> None:
            if not any(entry in lease.published for lease in self.leases):
                conntrack.release(self._rules, entry)

        later.call(finish)

    def __del__(self) -> None:
        if getattr(self, "_started", False):
            super().__del__()

    def _said(self, state: str = "") -> str:
        where = f" {self.subnet}" if self.subnet is not None else ""
        return f"<nsbox.{type(self).__name__} {self.name!r}{where}{state}>"

    def __repr__(self) -> str:
        return self._said(" closed" if self._closed else "")


class Network(Bridge):
    """A bridge as Docker's: with a subnet that nobody else has, NAT, and names for its sandboxes.

    Takes what ``Bridge`` takes; without *subnet* a free /24 is found when it is started.
    """

    _finds_subnet = True

    def __init__(self, name: str | None = None, *, nat: bool = True, **keywords: Any) -> None:
        super().__init__(name, nat=nat, **keywords)

    def _claim_subnet(self) -> Claim | None:
        return super()._claim_subnet() or free_subnet(where=self._place.name)


def _host_ports(ports: Any) -> Iterator[HostPort]:
    if isinstance(ports, (str, bytes)) or not isinstance(ports, Iterable):
        raise SpecError("host_ports", f"must be a list, such as [{ports!r}]")
    for i, value in enumerate(ports):
        number, _, protocol = str(value).partition("/")
        if not number.isdecimal() or isinstance(value, bool):
            raise SpecError(f"host_ports[{i}]", f'{value!r}: use 8080 or "53/udp"')
        yield HostPort(int(number), protocol or "tcp")  # type: ignore[arg-type]
