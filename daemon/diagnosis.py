"""What exchanges, proxies and the network say when something is wrong, in plain words and with an advice. Pure."""

import re

_MEANINGS = (
    (
        r"HTTP (403|451)",
        "the exchange will not serve this address",
        "exchanges bar countries and data centres: run it elsewhere, or set the feed's proxy",
    ),
    (r"\b407\b|(?i:proxy ?authentication)", "the proxy wants another user and password", "correct the feed's proxy"),
    (
        r"SSL|(?i:certificate)",
        "no TLS with what answers there",
        "look at this machine's clock and certificates, and whether something opens TLS on the way",
    ),
    (
        r"gaierror|DNSError|[Nn]ame or service not known|name resolution|getaddrinfo",
        "the name cannot be resolved",
        "look at DNS and the network of this machine, and at ws_url and rest_url",
    ),
    (r"(?i)through proxy|proxyerror", "no way through the proxy", "look at the feed's proxy and whether it runs"),
    (r"\b(418|429)\b|RateLimited", "too many requests from this address", "wait some minutes; see who else asks"),
    (r"(?i)time[d ]*out", "no answer in time", "a firewall drops it, or the exchange is overloaded: try again"),
    (
        r"Connect call failed|ConnectionRefused|Cannot connect to host",
        "nobody listens there",
        "look at ws_url and rest_url, and at firewalls",
    ),
    (
        r"not subscribed|never asked for",
        "the exchange does not carry what was asked for",
        "look at the symbols: one may be halted or gone",
    ),
)
"""By what an error or its causes say: what it means, and what to do. The first that fits counts."""
_CAUSES_MAX = 8


def words(said: str, *, hints: str = "") -> tuple[str, str]:
    """Put what was said of a failure into words: what it is, and what to do about it.

    `hints` help to understand it and are not shown.
    """
    for pattern, meaning, advice in _MEANINGS:
        if re.search(pattern, f"{said} {hints}"):
            return f"{meaning} ({said})", advice
    return said, "try again; if it stays, look for announcements of the exchange"


def causes(error: BaseException) -> str:
    """Name the types of an error and of what it came from: often they say more than the text."""
    names, cause = [type(error).__name__], error.__cause__ or error.__context__
    while cause is not None and len(names) < _CAUSES_MAX:
        names.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    return " ".join(names)
