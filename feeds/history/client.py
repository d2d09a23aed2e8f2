"""A plain client for an exchange that ccxt does not know: GET, JSON with its numbers' texts, at a pace, with a timeout.

Foreign exceptions become ours here.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from feeds.errors import FeedError, Forbidden, RateLimited, RemoteError, RequestRefused
from feeds.proxy import masked, shown

OUR_FAULTS = (400, 401, 404, 405, 422)
LIMITS = (403, 418, 429)
"""Too many requests, or banned for them. A firewall that bars an address says 403 too; haste does not help there."""

_decode = msgspec.json.Decoder(float_hook=str).decode


def network_faults() -> tuple[type[Exception], ...]:
    """Return what asking over HTTP, maybe through a proxy, raises when the network is at fault."""
    from aiohttp import ClientError
    from aiohttp_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError

    return ClientError, ProxyError, ProxyConnectionError, ProxyTimeoutError, TimeoutError, OSError


class TokenBucket:
    """How often one may ask, as exchanges count it: so many at once, then so many a second. Pure."""

    def __init__(self, *, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._level, self._at_s = float(burst), 0.0

    def take(self, now_s: float) -> float:
        """Take a token, maybe one that is still to come; return in how many seconds it is there."""
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._per_s) - 1
        self._at_s = now_s
        return max(0.0, -self._level / self._per_s)


class HttpClient:
    """Asks one exchange."""

    def __init__(self, base: str, *, pace: TokenBucket, timeout_s: float, back_off_s: float) -> None:
        """Set up; `back_off_s` is how long to wait after a limit was hit when the answer does not say."""
        self._base = base
        self.throttler = pace
        """Whom to ask before each request; may be shared."""
        self._timeout_s, self._back_off_s = timeout_s, back_off_s
        self._session: Any = None
        self._proxy = ""

    def route(self, proxy: str) -> None:
        """Send what follows through a proxy, see `feeds.proxy`."""
        self._proxy = proxy

    async def get(self, path: str, query: Mapping[str, Any]) -> Any:
        """Return the answer to a GET of ``base/path``; numbers with a point or an exponent are their texts.

        Raises:
            RateLimited: too many requests, or banned.
            Forbidden: we are not served here.
            RequestRefused: the exchange finds the request wrong.
            RemoteError: anything else that is no answer.

        """
        await asyncio.sleep(self.throttler.take(asyncio.get_running_loop().time()))
        if self._session is None:
            self._session = self._open()
        try:
            async with self._session.get(f"{self._base}/{path}", params=query, allow_redirects=False) as reply:
                body, status, wait = await reply.read(), reply.status, reply.headers.get("Retry-After", "")
        except network_faults() as error:
            through = f"through proxy {shown(self._proxy)}: " if self._proxy else ""
            raise RemoteError(through + masked(str(error)[:300] or type(error).__name__)) from error
        if status != 200:
            raise self._refusal(status, f"{path}: HTTP {status} {body[:200]!r}", wait)
        try:
            return _decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RemoteError(f"{path}: no JSON ({error}): {body[:200]!r}") from error

    def _open(self) -> Any:
        from aiohttp import ClientSession, ClientTimeout
        from aiohttp_socks import ProxyConnector

        timeout = ClientTimeout(total=self._timeout_s)
        if self._proxy.startswith("socks"):
            plain = self._proxy.replace("socks5h://", "socks5://")  # names are looked up by the proxy either way
            return ClientSession(timeout=timeout, connector=ProxyConnector.from_url(plain, rdns=True))
        return ClientSession(timeout=timeout, proxy=self._proxy or None)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _refusal(self, status: int, said: str, wait: str) -> FeedError:
        """Say who is to blame."""
        if status in LIMITS:
            is_number = wait.isascii() and wait.isdigit()
            return RateLimited(said, retry_after_s=float(wait) if is_number else self._back_off_s)
        if status == 451:
            return Forbidden(said)
        return RequestRefused(said) if status in OUR_FAULTS else RemoteError(said)
