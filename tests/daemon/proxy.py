"""A link that can be cut: TCP forwarded to a port, until told otherwise."""

import asyncio
import ssl
from typing import Self


class Proxy:
    """Forwards connections to `port` on loopback; `async with` listens on `self.port`, with `tls` behind that."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target, self._tls = port, tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self.refuses = False
        """Whether new connections are broken at once, as if nobody listened."""
        self.budget: int | None = None
        """Bytes that may still go to the target before the link is cut."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.url = f"mqtt://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        self._answers.set()

    def cut(self) -> None:
        """Break every connection without a farewell."""
        for writer in self._writers:
            writer.transport.abort()

    def hold_answers(self, hold: bool) -> None:
        """Keep back what the target says."""
        (self._answers.clear if hold else self._answers.set)()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.refuses:
                raise ConnectionRefusedError
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, target_writer}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, target_writer, outward=True))
                group.create_task(self._forward(target_reader, writer, outward=False))
        except* OSError:
            pass
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outward: bool) -> None:
        while data := await reader.read(65536):
            if not outward:
                await self._answers.wait()
            elif self.budget is not None:
                data, self.budget = data[: self.budget], max(0, self.budget - len(data))
            writer.write(data)
            await writer.drain()
            if outward and self.budget == 0:
                self.budget = None
                raise ConnectionAbortedError
        raise ConnectionAbortedError
