"""The REST shell of the emulated exchange: requests in, the dialect's answers out, and what may go wrong between."""

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from feeds.emulator.dialects.base import Dialect, Refused
from feeds.emulator.venue import Venue


class Rest:
    """Serve requests about a venue in a dialect."""

    def __init__(self, venue: Venue, dialect: Dialect) -> None:
        self._venue, self._dialect = venue, dialect

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one GET."""
        path, faults = request.match_info["path"], self._venue.faults
        self._venue.requests[path] += 1
        if faults.refusal:
            return web.Response(status=faults.refusal)
        try:
            if faults.limited:
                faults.limited -= 1
                raise self._dialect.limited(faults.retry_after_s, banned=faults.banned)
            body = self._dialect.rest(path, request.query)
            return _reply(body, 200, self._venue.headers)
        except Refused as refused:
            return _reply(refused.body, refused.status, {**self._venue.headers, **refused.headers})


def _reply(body: Any, status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json")
