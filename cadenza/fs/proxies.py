"""What this machine's environment says of the way to others: proxies, and authorities that certificates come from."""

from __future__ import annotations

import os
import ssl
import urllib.request
from typing import Mapping, Optional

from yarl import URL

from cadenza.base.errors import InvalidError
from cadenza.fs.reference import is_loopback


def authorities(environ: Mapping[str, str]) -> ssl.SSLContext:
    """This machine's authorities, those of SSL_CERT_FILE (which OpenSSL reads by itself), and of REQUESTS_CA_BUNDLE."""
    context = ssl.create_default_context()
    bundle = environ.get("REQUESTS_CA_BUNDLE", "")
    try:
        if os.path.isdir(bundle):
            context.load_verify_locations(capath=bundle)
        elif bundle:
            context.load_verify_locations(cafile=bundle)
    except (OSError, ssl.SSLError):
        raise InvalidError(f"REQUESTS_CA_BUNDLE names {bundle}, which cannot be read as certificates") from None
    return context


def proxy(url: URL, environ: Mapping[str, str]) -> Optional[str]:
    """The proxy that the environment names for an address; none for this machine's own."""
    if url.host is None or is_loopback(f"[{url.host}]" if ":" in url.host else url.host):
        return None
    lower = {key.lower(): value for key, value in environ.items() if key.lower().endswith("_proxy") and value}
    found = lower.get(f"{url.scheme}_proxy") or lower.get("all_proxy")
    proxies = {"no": lower["no_proxy"]} if "no_proxy" in lower else {}
    if not found or urllib.request.proxy_bypass_environment(url.host, proxies):  # type: ignore[attr-defined]
        return None
    return found if "://" in found else f"http://{found}"
