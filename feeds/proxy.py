"""Proxies that a feed goes through, ``http://``, ``socks5://`` or ``socks5h://``: how to name them without secrets."""

import re
from urllib.parse import urlsplit


def shown(proxy: str) -> str:
    """Name a proxy without its user and password."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def masked(text: str) -> str:
    """Hide users and passwords of addresses in what a library said."""
    return re.sub(r"://[^/\s]*@", "://***@", text)
