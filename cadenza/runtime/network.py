"""A network namespace for each container, from a pool: loopback, and a way out to the world but not to the machine.

Each namespace has a pair of interfaces, one end inside as ``eth0``, the other on the host, with a /30 of its own.
What a container sends is filtered on the host's side, where it cannot change it and where gVisor's traffic passes too:

- to the world: allowed, with the machine's address (masquerade);
- to the machine itself, by any of its addresses: dropped, but for replies;
- to other containers, and to link-local addresses (a cloud's metadata service): dropped.

The rules match interfaces by the prefix of their names, in one nftables table made once, so that a namespace costs no
rule. A namespace is handed on once all processes of its container are gone, if that could not change it: the standard
level has no CAP_NET_ADMIN and no CAP_NET_RAW, and sockets end with their processes. gVisor takes the addresses out of
its namespace, so that one is destroyed. Making one costs 1.2 ms of CPU time and takes 2 to 6;
handing it on costs nothing.

Names begin with ``cz`` and four hex digits of the state directory: leftovers of an earlier agent with that directory
are found by it, and several agents on one machine do not disturb each other. A blackhole route reserves the range.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Iterable, Optional, Sequence

from cadenza.runtime import netlink
from cadenza.runtime.driver import HOST_NETWORK, RuntimeFault

NETNS_FOLDER = "/run/netns"
RANGE_BITS = 20
LINK_BITS = 30
LINKS = 1 << (LINK_BITS - RANGE_BITS)
"""Most namespaces of one agent: 1,024."""
COMMAND_LIMIT_S = 20.0
POOL_SIZE = 32
"""How many wait for containers when nothing starts; each takes about 0.1 MiB of the kernel's memory."""
MOST_READY = 64
"""How many that were given back are kept at most."""
FIRST_READY = 4
"""How many are made at once when the agent starts."""
REFILL_AFTER_S = 1.0
"""How long nobody must have taken one before more are made ahead: whoever starts now comes first."""
MADE_AT_ONCE = 8
CLONE_NEWNET = 0x40000000
PERMITTED = (("ping_group_range", "0 2147483647"), ("ip_unprivileged_port_start", "0"))
FORWARD_SWITCH = "/proc/sys/net/ipv4/ip_forward"
RESOLV_CONF = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespace:
    """A network for one container. ``path`` is for `ContainerConfig.netns`; ``address`` is the container's, or ""."""

    name: str
    path: str
    address: str = ""


def tag_of(state_dir: str) -> str:
    """What the names of an agent's things begin with."""
    return "cz" + hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:4]


def candidate_ranges() -> Iterable[ipaddress.IPv4Network]:
    """Where to look for a free range: upwards in 10.128.0.0/9, of which most private networks use the lower half."""
    return ipaddress.ip_network("10.128.0.0/9").subnets(new_prefix=RANGE_BITS)  # type: ignore[return-value]


def free_range(taken: Sequence[ipaddress.IPv4Network], start: int = 0) -> ipaddress.IPv4Network:
    """The first candidate from number ``start`` on (mod their count) that overlaps nothing taken. RuntimeFault."""
    candidates = list(candidate_ranges())
    for number in range(len(candidates)):
        candidate = candidates[(start + number) % len(candidates)]
        if not any(candidate.overlaps(network) for network in taken if network.prefixlen > 0):
            return candidate
    raise RuntimeFault("no private address range is free for containers: every part of 10.128.0.0/9 has a route")


def link_addresses(range_: ipaddress.IPv4Network, number: int) -> tuple[str, str]:
    """The host's and the container's address on link ``number``."""
    first = int(range_.network_address) + number * 4
    return str(ipaddress.ip_address(first + 1)), str(ipaddress.ip_address(first + 2))


def ruleset(tag: str, range_: ipaddress.IPv4Network) -> str:
    """The nftables table, as one transaction that replaces an earlier one."""
    mine, table = f'"{tag}*"', f"inet cadenza_{tag}"
    return f"""add table {table}
delete table {table}
table {table} {{
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {mine} ct state established,related accept
    iifname {mine} drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {mine} ip saddr != {range_} drop
    iifname {mine} meta nfproto ipv6 drop
    iifname {mine} oifname "cz*" drop
    iifname {mine} ip daddr 169.254.0.0/16 drop
    oifname {mine} ct state established,related accept
    oifname {mine} drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {range_} oifname != "cz*" masquerade
  }}
}}
"""


def usable_resolv_conf(texts: Sequence[str]) -> str:
    """The first of some resolv.conf texts with a name server that is not on loopback, without those that are.

    A resolver on the machine's loopback is out of a container's reach. "" when there is none.
    """
    for text in texts:
        lines, servers = [], 0
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                if words[1].startswith("127.") or words[1] == "::1":
                    continue
                servers += 1
            if words and not line.startswith(("#", ";")):
                lines.append(line)
        if servers:
            return "\n".join(lines) + "\n"
    return ""


def resolv_conf(paths: Sequence[str] = RESOLV_CONF) -> str:
    """Text for a container's /etc/resolv.conf, from this machine's; "" when names cannot be resolved from inside."""
    return usable_resolv_conf([text for path in paths if (text := _text(path))])


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def name_servers(text: str) -> list[ipaddress.IPv4Network]:
    """The name servers of a resolv.conf. They are often reached by the default route, so no other route shows them."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ipaddress.IPv4Network(words[1]))
            except ValueError:
                pass  # IPv6: no range of ours meets it
    return found


class HostNetwork:
    """Stands in for `Network` where this user cannot make one: containers share the machine's network."""

    async def open(self, keep: Iterable[str] = ()) -> None: ...

    async def take(self) -> Namespace:
        return Namespace("", HOST_NETWORK)

    async def give_back(self, name: str, whole: bool = False) -> None: ...

    async def close(self) -> None: ...


class Network:
    """The pool. Needs root, and the programs ip and nft.

    ``take`` hands out a namespace, ``give_back`` destroys it or keeps it for the next; a container without network
    takes none and leaves `ContainerConfig.netns` empty.
    """

    def __init__(self, state_dir: str, pool_size: int = POOL_SIZE) -> None:
        self._state_file = os.path.join(state_dir, "network.json")
        self._pool_size = pool_size
        self.tag = tag_of(state_dir)
        self._range = ipaddress.ip_network("10.128.0.0/20")
        self._ready: deque[Namespace] = deque()
        self._links: dict[str, int] = {}
        """Namespaces that exist, with the numbers of their links."""
        self._refill: Optional[asyncio.Task[None]] = None
        self._refill_timer: Optional[asyncio.TimerHandle] = None
        self._spoilt: list[str] = []
        """Given back and not to be used again: destroyed together, when nothing starts."""
        self._takers = 0
        self._taken = 0
        self._out: dict[str, Namespace] = {}
        self._making = asyncio.Lock()
        self._mtu = 1500

    async def open(self, keep: Iterable[str] = ()) -> None:
        """Clean up after an earlier agent, except the namespaces named in ``keep``, and begin to fill the pool."""
        os.makedirs(os.path.dirname(self._state_file), exist_ok=True)
        kept = set(keep)
        state = self._load()
        there = self._names()
        await self._destroy([name for name in there if name not in kept])
        self._links = {name: int(state["links"][name]) for name in there if name in kept and name in state["links"]}
        if self._links:
            self._range = ipaddress.ip_network(state["range"])
        else:
            await self._reserve(str(state.get("range", "")))
        self._mtu = await self._way_out_mtu()
        await self._nft(ruleset(self.tag, ipaddress.IPv4Network(self._range)))
        with open(FORWARD_SWITCH) as file:
            forwards = file.read().strip() == "1"
        if not forwards:
            with open(FORWARD_SWITCH, "w") as file:
                file.write("1")
        self._save()
        self._start_refill(FIRST_READY)

    async def take(self) -> Namespace:
        """A namespace that nobody else has. RuntimeFault when none can be made."""
        if not self._ready:
            self._takers += 1
            try:
                async with self._making:
                    if not self._ready:
                        await self._make(min(self._takers, MADE_AT_ONCE))
            finally:
                self._takers -= 1
        namespace = self._ready.popleft()
        self._out[namespace.name] = namespace
        self._taken += 1
        self._refill_soon()
        return namespace

    async def give_back(self, name: str, whole: bool = False) -> None:
        """Take a namespace back; nothing happens if there is none of that name.

        ``whole``: all processes that were in it are gone and could not change it, so the next container may have it.
        Else it is destroyed, with others, as soon as nothing starts.
        """
        if name not in self._links or name in self._spoilt:
            return
        known = self._out.pop(name, None)
        if whole and known is not None and len(self._ready) < MOST_READY:
            self._ready.append(known)
            return
        self._spoilt.append(name)
        self._refill_soon()

    async def close(self) -> None:
        """Destroy all namespaces, the table and the reservation. Forwarding stays on: others may use it by now."""
        if self._refill_timer is not None:
            self._refill_timer.cancel()
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        async with self._making:
            await self._destroy(self._names())
            await self._nft(f"add table inet cadenza_{self.tag}\ndelete table inet cadenza_{self.tag}\n")
            await self._ip([f"route del blackhole {self._range}"], force=True)
        try:
            os.unlink(self._state_file)
        except FileNotFoundError:
            pass

    # Inside.

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(NETNS_FOLDER) if name.startswith(self.tag + "n")]
        except FileNotFoundError:
            return []

    def _load(self) -> dict[str, Any]:
        try:
            with open(self._state_file) as file:
                state = json.load(file)
            return {"range": str(state["range"]), "links": dict(state["links"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"links": {}}

    def _save(self) -> None:
        with open(self._state_file + ".new", "w") as file:
            json.dump({"range": str(self._range), "links": self._links}, file)
        os.replace(self._state_file + ".new", self._state_file)

    async def _reserve(self, earlier: str) -> None:
        """Choose a range with no route of the machine and no name server in it, and keep others from choosing it."""
        if earlier:
            await self._ip([f"route del blackhole {earlier}"], force=True)
        listed = json.loads(await self._call(["ip", "-4", "-j", "route", "show", "table", "all"], ""))
        taken = [server for path in RESOLV_CONF for server in name_servers(_text(path))]
        for route in listed:
            try:
                taken.append(ipaddress.IPv4Network(route.get("dst", "").replace("default", "0.0.0.0/0"), strict=False))
            except ValueError:
                pass
        # Start at a place of our own, so that two agents that look at once do not meet.
        self._range = free_range(taken, int(self.tag[2:], 16))
        await self._ip([f"route add blackhole {self._range}"])

    async def _way_out_mtu(self) -> int:
        """Packets as large as the machine's own way out takes, or some never arrive."""
        routes = json.loads(await self._call(["ip", "-4", "-j", "route", "show", "default"], "") or "[]")
        try:
            with open(f"/sys/class/net/{routes[0]['dev']}/mtu") as file:
                return int(file.read())
        except (OSError, IndexError, KeyError, ValueError):
            return 1500

    def _refill_soon(self) -> None:
        if self._refill_timer is not None:
            self._refill_timer.cancel()
        self._refill_timer = None
        if len(self._ready) < self._pool_size or self._spoilt:
            self._refill_timer = asyncio.get_running_loop().call_later(REFILL_AFTER_S, self._start_refill)

    def _start_refill(self, most: int = MOST_READY) -> None:
        if self._refill is None or self._refill.done():
            self._refill = asyncio.ensure_future(self._fill(min(most, self._pool_size)))

    async def _fill(self, size: int) -> None:
        """Destroy what is spoilt and make what is missing, as long as nobody takes one meanwhile."""
        taken = self._taken
        if self._spoilt:
            spoilt, self._spoilt = self._spoilt, []
            await self._destroy(spoilt)
            self._save()
        while (missing := size - len(self._ready)) > 0 and taken == self._taken:
            async with self._making:
                try:
                    await self._make(min(missing, MADE_AT_ONCE))
                except RuntimeFault:
                    # Whoever takes next tries again and hears why.
                    return
        if size < self._pool_size:
            self._refill_soon()

    async def _make(self, count: int) -> None:
        used = set(self._links.values())
        numbers = [number for number in range(LINKS) if number not in used][:count]
        if not numbers:
            raise RuntimeFault(f"all {LINKS} container networks of this machine are in use")
        made, outside = [], []
        for number in numbers:
            name, link = f"{self.tag}n{number}", f"{self.tag}v{number}"
            host, inside = link_addresses(ipaddress.IPv4Network(self._range), number)
            outside += [
                f"netns add {name}",
                f"link add {link} mtu {self._mtu} type veth peer name eth0 mtu {self._mtu} netns {name}",
                f"addr add {host}/{LINK_BITS} dev {link}",
                f"link set {link} up",
            ]
            made.append((Namespace(name, f"{NETNS_FOLDER}/{name}", inside), host))
            self._links[name] = number
        try:
            # Before there is anything to find, so that the next agent knows which link is whose.
            self._save()
            await self._ip(outside)
            await asyncio.to_thread(furnish, made)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._destroy([namespace.name for namespace, _ in made])))
            raise
        self._ready.extend(namespace for namespace, _ in made)

    async def _destroy(self, names: Sequence[str]) -> None:
        lines = []
        for name in names:
            # The link first: a namespace lives as long as its last process, the host's end need not.
            lines += [f"link del {self.tag}v{name[len(self.tag) + 1 :]}", f"netns del {name}"]
        if lines:
            await self._ip(lines, force=True)
        for name in names:
            self._links.pop(name, None)
        gone = set(names)
        self._ready = deque(namespace for namespace in self._ready if namespace.name not in gone)

    async def _ip(self, lines: Sequence[str], namespace: str = "", force: bool = False) -> None:
        argv = ["ip", *(["-n", namespace] if namespace else []), *(["-force"] if force else []), "-batch", "-"]
        await self._call(argv, "\n".join(lines) + "\n", force)

    async def _nft(self, rules: str) -> None:
        await self._call(["nft", "-f", "-"], rules)

    async def _call(self, argv: Sequence[str], text: str, force: bool = False) -> str:
        path = shutil.which(argv[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
        if path is None:
            raise RuntimeFault(f"the program {argv[0]} is missing: apt-get install iproute2 nftables")
        # In a thread: uvloop's own pipes raise when a program ends before it has read what it is given.
        command, given = [path, *argv[1:]], text.encode()
        try:
            done = await asyncio.to_thread(
                subprocess.run, command, input=given, capture_output=True, timeout=COMMAND_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise RuntimeFault(f"{argv[0]} did not answer within {COMMAND_LIMIT_S:g} s") from None
        if done.returncode != 0 and not force:
            detail = done.stderr.decode(errors="replace").strip()
            raise RuntimeFault(
                f"cannot set up the container's network: {detail.splitlines()[0] if detail else argv}", detail
            )
        return done.stdout.decode()


def furnish(made: Sequence[tuple[Namespace, str]]) -> None:
    """Set up namespaces from inside, each with its gateway: interfaces, address, route. Blocks. RuntimeFault.

    Ordinary programs may ping, and serve low ports without root. Here and not by the runtime program: a container with
    a user namespace of its own may not change a network namespace that is the machine's. A thread's settings are those
    of the namespace it is in: it takes one of its own.
    """
    faults: list[OSError] = []

    def work() -> None:
        try:
            for namespace, gateway in made:
                with open(namespace.path, "rb") as file:
                    if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns", namespace.path)
                eth0 = socket.if_nametoindex("eth0")
                netlink.ask(
                    netlink.link_up(socket.if_nametoindex("lo")),
                    netlink.address_add(eth0, namespace.address, LINK_BITS),
                    netlink.link_up(eth0),
                    netlink.default_route_add(gateway),
                )
                for name, value in PERMITTED:
                    with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as file:
                        file.write(value)
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=work, name="network settings")
    thread.start()
    thread.join()
    if faults:
        raise RuntimeFault(f"cannot set up the container's network: {faults[0]}")
