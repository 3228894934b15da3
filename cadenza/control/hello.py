"""The first frame of a connection, and whether the two ends can understand each other."""

from __future__ import annotations

import msgspec

import cadenza
from cadenza.protocol.frame import PROTOCOL


class Hello(msgspec.Struct):
    """The first header."""

    t: str
    protocol: int
    version: str = ""
    role: str = ""
    token_id: str = ""
    token_secret: str = ""
    environment: str = ""
    """Which environment the client means where a request names none."""

    def __repr__(self) -> str:
        return f"Hello({self.version}, {self.token_id})"  # the secret is not for logs


decode_hello = msgspec.json.Decoder(Hello).decode


def refuse(protocol: int, version: str, role: str) -> str:
    """Why a hello is not welcome, as a sentence for people; empty when it is."""
    ours = cadenza.__version__
    if protocol != PROTOCOL:
        older = "client" if protocol < PROTOCOL else "server"
        remedy = (
            "upgrade the package that your program imports"
            if older == "client"
            else "upgrade the server's package and restart it (cadenza down)"
        )
        return (
            f"the server (cadenza {ours}) speaks protocol {PROTOCOL}, the client (cadenza {version[:40] or 'unknown'}) "
            f"protocol {protocol}: {remedy}"
        )
    if role != "client":
        return f"this socket is for the role 'client', not {role[:40]!r}"
    return ""
