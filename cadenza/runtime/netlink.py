"""The few requests of rtnetlink that a container's side of a link needs, in the calling thread's network namespace.

The program ``ip`` does the same, at 3 ms a call for starting a process. Layouts: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct

NETLINK_ROUTE = 0
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 0x1, 0x4, 0x400
IFF_UP = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_GATEWAY = 5
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1
_HEAD = struct.Struct("=IHHII")
REPLY_LIMIT_S = 5.0


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _address(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def link_up(index: int) -> bytes:
    """Set an interface up. This and those below give a whole message."""
    return _message(RTM_NEWLINK, 0, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP))


def address_add(index: int, address: str, prefix_bits: int) -> bytes:
    """Give an interface an IPv4 address."""
    body = struct.pack("=BBBBI", socket.AF_INET, prefix_bits, 0, RT_SCOPE_UNIVERSE, index)
    packed = _address(address)
    return _message(RTM_NEWADDR, NLM_F_CREATE, body + _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed))


def default_route_add(gateway: str) -> bytes:
    """The IPv4 route to everywhere."""
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    )
    return _message(RTM_NEWROUTE, NLM_F_CREATE, body + _attribute(RTA_GATEWAY, _address(gateway)))


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body


def ask(*messages: bytes) -> None:
    """Send them one after the other; OSError with the kernel's number at the first that it refuses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as sock:
        sock.settimeout(REPLY_LIMIT_S)
        for message in messages:
            sock.send(message)
            reply = sock.recv(4096)
            _, kind, _, _, _ = _HEAD.unpack_from(reply)
            (code,) = struct.unpack_from("=i", reply, _HEAD.size)
            if kind == NLMSG_ERROR and code != 0:
                raise OSError(-code, os.strerror(-code))
