"""The pure parts of `cadenza.runtime.network`."""

from __future__ import annotations

import ipaddress

import pytest

from cadenza.runtime import network
from cadenza.runtime.driver import RuntimeFault

NET = ipaddress.IPv4Network


def test_a_range_overlaps_no_route_of_the_machine() -> None:
    default = NET("0.0.0.0/0")
    assert network.free_range([default]) == NET("10.128.0.0/20")
    assert network.free_range([default, NET("10.128.4.0/30"), NET("10.128.16.0/20")]) == NET("10.128.32.0/20")
    assert network.free_range([NET("10.192.0.0/10")], start=1024) == NET("10.128.0.0/20")
    with pytest.raises(RuntimeFault, match="no private address range"):
        network.free_range([NET("10.0.0.0/8")])


def test_links_never_overlap_and_stay_in_the_range() -> None:
    range_ = NET("10.128.0.0/20")
    links = [network.link_addresses(range_, number) for number in range(network.LINKS)]
    addresses = [ipaddress.ip_address(address) for link in links for address in link]
    assert len(set(addresses)) == 2 * network.LINKS
    assert all(address in range_ for address in addresses)
    assert links[1] == ("10.128.0.5", "10.128.0.6")


def test_names_fit_the_kernels_fifteen_characters() -> None:
    tag = network.tag_of("/var/lib/cadenza")
    assert len(f"{tag}v{network.LINKS - 1}") <= 15
    assert tag != network.tag_of("/home/me/cadenza")


def test_the_rules_name_only_what_is_ours() -> None:
    text = network.ruleset("cz0abc", NET("10.128.0.0/20"))
    for line in text.splitlines():
        if any(verdict in line for verdict in (" drop", " accept", "masquerade")) and "policy" not in line:
            assert '"cz' in line, line


@pytest.mark.parametrize(
    ("texts", "usable"),
    [
        (["nameserver 192.0.2.53\n"], "nameserver 192.0.2.53\n"),
        (["# note\nsearch eu\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n"], "search eu\nnameserver 192.0.2.1\n"),
        (["nameserver 127.0.0.53\n", "nameserver 192.0.2.2\n"], "nameserver 192.0.2.2\n"),
        (["nameserver ::1\n"], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_name_servers_on_loopback_are_out_of_reach(texts: list[str], usable: str) -> None:
    assert network.usable_resolv_conf(texts) == usable


def test_a_name_server_behind_the_default_route_keeps_its_address():
    text = "# made by hand\nnameserver 10.255.255.53\nnameserver fd00::1\nsearch example\nnameserver 192.0.2.7 \n"
    servers = network.name_servers(text)
    assert servers == [NET("10.255.255.53/32"), NET("192.0.2.7/32")]
    last = 2047
    assert network.free_range([], start=last) == NET("10.255.240.0/20")
    assert network.free_range(servers, start=last) == NET("10.128.0.0/20")
