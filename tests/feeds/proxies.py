"""Two small proxies on loopback, HTTP and SOCKS5, that count what goes through them and may refuse it."""

import asyncio
import base64
import socket
from typing import Self
from urllib.parse import urlsplit

CREDENTIALS = "user:secret"


class HttpProxy:
    """CONNECT for anything, and GET of absolute addresses, as clients ask for plain http."""

    scheme = "http"

    def __init__(self, *, refuse: int = 0, credentials: str = "") -> None:
        self.refuse, self.credentials = refuse, credentials
        self.connections = 0
        """Connections that were passed on, a request each where it is http."""
        self.targets: set[str] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        who = f"{self.credentials}@" if self.credentials else ""
        self.url = f"{self.scheme}://{who}127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._shake_hands(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _shake_hands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, address, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        status = self.refuse or (0 if self._admits(head) else 407)
        if status:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        parts = urlsplit(f"//{address}" if method == "CONNECT" else address)
        assert parts.hostname
        assert parts.port
        first = b""
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            first = head.replace(f"http://{parts.netloc}".encode(), b"", 1)
        await self._pass_on(parts.hostname, parts.port, first, reader, writer)

    def _admits(self, head: bytes) -> bool:
        token = base64.b64encode(self.credentials.encode())
        return not self.credentials or b"proxy-authorization: basic " + token.lower() in head.lower()

    async def _pass_on(
        self, host: str, port: int, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self.targets.add(f"{host}:{port}")
        far_reader, far_writer = await asyncio.open_connection(host, port)
        far_writer.write(first)
        self._writers.add(far_writer)
        ways = [asyncio.create_task(_pump(reader, far_writer)), asyncio.create_task(_pump(far_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            far_writer.transport.abort()
            self._writers.discard(far_writer)


class SocksProxy(HttpProxy):
    """SOCKS5, CONNECT only, RFC 1928; with credentials RFC 1929."""

    scheme = "socks5"

    async def _shake_hands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        method = 2 if self.credentials else 0
        writer.write(bytes((5, method if method in methods else 255)))
        if method == 2:
            _, length = await reader.readexactly(2)
            user = await reader.readexactly(length)
            password = await reader.readexactly((await reader.readexactly(1))[0])
            known = b":".join((user, password)) == self.credentials.encode()
            writer.write(bytes((1, not known)))
            if not known:
                await writer.drain()
                return
        _, _, _, kind = await reader.readexactly(4)
        if kind == 1:
            host = socket.inet_ntoa(await reader.readexactly(4))
        else:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        writer.write(bytes((5, self.refuse, 0, 1, 0, 0, 0, 0, 0, 0)))
        await writer.drain()
        if not self.refuse:
            await self._pass_on(host, port, b"", reader, writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        return
