"""Websocket connections: the only module that knows the `websockets` library."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from feeds.errors import RateLimited, RemoteError, RequestRefused

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
async def connect(url: str, *, open_timeout_s: float = 10.0, close_timeout_s: float = 0.5) -> AsyncIterator[Connection]:
    """Open a websocket for the length of the block and close it cleanly after, however the block ends.

    Raises:
        RemoteError: it cannot be opened now; `RateLimited` if the exchange says that we come too often.
        RequestRefused: `url` is no websocket address.

    """
    websocket = await _open(url, open_timeout_s, close_timeout_s)
    try:
        yield Connection(websocket)
    finally:
        try:
            await websocket.close()
        finally:  # a second cancellation must not leave the socket to the event loop
            websocket.transport.abort()


async def _open(url: str, open_timeout_s: float, close_timeout_s: float) -> ClientConnection:
    try:
        return await websockets_connect(
            url,
            compression=None,
            proxy=None,
            open_timeout=open_timeout_s,
            close_timeout=close_timeout_s,
            ping_interval=_PING_S,
            ping_timeout=_PING_S,
            max_size=_MAX_SIZE_BYTES,
            max_queue=_QUEUE_FRAMES,
        )
    except InvalidURI as error:
        raise RequestRefused(str(error)) from error
    except InvalidStatus as error:
        raise _refused(error) from error
    except (OSError, WebSocketException) as error:
        raise RemoteError(f"cannot connect: {error}") from error


def _refused(error: InvalidStatus) -> RemoteError:
    """Any status may pass (firewalls answer 403 for minutes), so none but an explicit limit is told apart."""
    status = error.response.status_code
    if status not in (418, 429):  # Binance: 429 too many requests, 418 banned for a while
        return RemoteError(f"cannot connect: HTTP {status}")
    text = error.response.headers.get("Retry-After", "")
    retry_after_s = float(text) if text.isascii() and text.isdigit() else _DEFAULT_RETRY_AFTER_S
    return RateLimited(f"cannot connect: HTTP {status}", retry_after_s=retry_after_s)
