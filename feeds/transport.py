"""Websocket connections: the only module that knows the `websockets` library."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, ProxyError, WebSocketException

from feeds.errors import Forbidden, RateLimited, RemoteError, RequestRefused
from feeds.proxy import masked, shown

_MAX_SIZE_BYTES = 8 << 20
_QUEUE_FRAMES = 1024
"""Above this many unread frames the socket is paused: the exchange waits, nothing is dropped. A pause that outlives the
ping timeout ends the connection."""
_PING_S = 20.0
_SEND_TIMEOUT_S = 5.0
_DEFAULT_RETRY_AFTER_S = 60.0


class Connection:
    """An open websocket."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    async def recv(self) -> bytes:
        """Return the next frame's bytes, text or not. Cancelling loses nothing.

        Raises:
            RemoteError: the connection has ended.

        """
        try:
            return await self._websocket.recv(decode=False)
        except ConnectionClosed as error:
            raise RemoteError(f"connection ended: {error}") from error

    async def send(self, text: str) -> None:
        """Send one text frame.

        Raises:
            RemoteError: the connection has ended, or takes nothing for 5 s.

        """
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await self._websocket.send(text)
        except (ConnectionClosed, TimeoutError) as error:
            raise RemoteError(f"cannot send: {error or 'timed out'}") from error


@asynccontextmanager
async def connect(
    url: str,
    *,
    proxy: str | None = None,
    ping: bool = True,
    open_timeout_s: float = 10.0,
    close_timeout_s: float = 0.5,
) -> AsyncIterator[Connection]:
    """Open a websocket for the length of the block and close it cleanly after, however the block ends.

    With `ping` a server that leaves the protocol's pings unanswered for 20 s counts as gone. No `proxy` but the one
    given is used, whatever the environment says; see `feeds.proxy`.

    Raises:
        RemoteError: it cannot be opened now; `RateLimited` if the exchange says that we come too often, `Forbidden` if
            it will not have us.
        RequestRefused: `url` is no websocket address.

    """
    websocket = await _open(url, proxy, open_timeout_s, close_timeout_s, _PING_S if ping else None)
    try:
        yield Connection(websocket)
    finally:
        try:
            await websocket.close()
        finally:  # a second cancellation must not leave the socket to the event loop
            websocket.transport.abort()


async def _open(
    url: str, proxy: str | None, open_timeout_s: float, close_timeout_s: float, ping_s: float | None
) -> ClientConnection:
    through = f" through proxy {shown(proxy)}" if proxy else ""
    try:
        return await websockets_connect(
            url,
            compression=None,
            proxy=proxy,
            open_timeout=open_timeout_s,
            close_timeout=close_timeout_s,
            ping_interval=ping_s,
            ping_timeout=_PING_S,
            max_size=_MAX_SIZE_BYTES,
            max_queue=_QUEUE_FRAMES,
        )
    except InvalidURI as error:
        raise RequestRefused(str(error)) from error
    except InvalidStatus as error:
        raise _refused(error) from error
    except ProxyError as error:
        raise RemoteError(f"cannot connect{through}: {error.__cause__ or error}") from error
    except (OSError, WebSocketException) as error:
        raise RemoteError(f"cannot connect{through}: {masked(str(error)) or type(error).__name__}") from error


def _refused(error: InvalidStatus) -> RemoteError:
    """Any status may pass, so none is final; a limit and a bar ask for more patience."""
    status = error.response.status_code
    if status in (403, 451):  # firewalls answer 403 for minutes, 451 is for countries
        return Forbidden(f"HTTP {status}")
    if status not in (418, 429):  # Binance: 429 too many requests, 418 banned for a while
        return RemoteError(f"cannot connect: HTTP {status}")
    text = error.response.headers.get("Retry-After", "")
    retry_after_s = float(text) if text.isascii() and text.isdigit() else _DEFAULT_RETRY_AFTER_S
    return RateLimited(f"cannot connect: HTTP {status}", retry_after_s=retry_after_s)
