"""Websocket and REST through a proxy: the one that is configured and no other, its password never said."""

from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection

from feeds.emulator import Emulator, tape_from
from feeds.emulator.dialects import DIALECTS
from feeds.errors import Forbidden, RateLimited, RemoteError
from feeds.history import HISTORIES, open_history
from feeds.proxy import masked, shown
from feeds.transport import connect
from tests.feeds.emulators import BEGIN_MS, START_MS
from tests.feeds.proxies import CREDENTIALS, HttpProxy, SocksProxy

KINDS = pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
VENUES = sorted(DIALECTS.keys() & HISTORIES.keys())


@pytest.fixture
async def emulator(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Emulator, int]]:
    exchange = getattr(request, "param", "binance")
    native = DIALECTS[exchange].natives[0]
    tape = tape_from("synthetic", native, seed=3, begin_ns=BEGIN_MS * 1_000_000)
    emulator = Emulator({native: tape}, exchange=exchange, start_ns=START_MS * 1_000_000)
    yield emulator, await emulator.start()
    await emulator.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name proxies that are not there, as an environment may."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)


@KINDS
@pytest.mark.parametrize("credentials", ["", CREDENTIALS])
async def test_a_websocket_goes_through(
    emulator: tuple[Emulator, int], kind: type[HttpProxy], credentials: str
) -> None:
    async with kind(credentials=credentials) as proxy:
        async with connect(f"ws://127.0.0.1:{emulator[1]}/market/stream", proxy=proxy.url) as connection:
            await connection.send('{"method":"SUBSCRIBE","params":["btcusdt@markPrice@1s"],"id":1}')
            assert await connection.recv() == b'{"result":null,"id":1}'
        assert proxy.connections == 1
        assert proxy.targets == {f"127.0.0.1:{emulator[1]}"}


async def test_no_proxy_but_the_configured_one_is_used(emulator: tuple[Emulator, int]) -> None:
    async with connect(f"ws://127.0.0.1:{emulator[1]}/market/stream") as connection:
        assert isinstance(connection._websocket, ClientConnection)
    history = open_history("binance", f"http://127.0.0.1:{emulator[1]}")
    try:
        assert await history.markets()
    finally:
        await history.aclose()


@KINDS
@pytest.mark.parametrize("emulator", VENUES, indirect=True)
@pytest.mark.parametrize("credentials", ["", CREDENTIALS])
async def test_a_history_goes_through(
    emulator: tuple[Emulator, int], request: pytest.FixtureRequest, kind: type[HttpProxy], credentials: str
) -> None:
    exchange = request.node.callspec.params["emulator"]
    async with kind(credentials=credentials) as proxy:
        history = open_history(exchange, f"http://127.0.0.1:{emulator[1]}", proxy=proxy.url)
        try:
            assert len(await history.markets()) == 1
            assert await history.time_ns() >= START_MS // 1000 * 10**9
            asked = sum(emulator[0].venue.requests.values())
            assert proxy.connections >= 1
            assert proxy.targets == {f"127.0.0.1:{emulator[1]}"}
            assert asked >= 2
        finally:
            await history.aclose()


REFUSALS = pytest.mark.parametrize(
    ("kind", "refuse", "said"), [(HttpProxy, 403, "403"), (HttpProxy, 407, "407"), (SocksProxy, 2, "not allowed")]
)


@REFUSALS
async def test_a_proxy_that_refuses_a_websocket_is_named(
    emulator: tuple[Emulator, int], kind: type[HttpProxy], refuse: int, said: str
) -> None:
    async with kind(refuse=refuse, credentials=CREDENTIALS) as proxy:
        with pytest.raises(RemoteError, match=rf"through proxy {kind.scheme}://127.*{said}") as failed:
            async with connect(f"ws://127.0.0.1:{emulator[1]}/market/stream", proxy=proxy.url):
                pass
    assert "secret" not in str(failed.value)
    assert not isinstance(failed.value, Forbidden), "it was not the exchange that said so"


@pytest.mark.parametrize(("kind", "refuse", "said"), [(HttpProxy, 407, "407"), (SocksProxy, 2, "not allowed")])
@pytest.mark.parametrize("emulator", ["binance", "bitmex"], indirect=True)
async def test_a_proxy_that_refuses_a_history_is_named(
    emulator: tuple[Emulator, int], request: pytest.FixtureRequest, kind: type[HttpProxy], refuse: int, said: str
) -> None:
    exchange = request.node.callspec.params["emulator"]
    async with kind(refuse=refuse, credentials=CREDENTIALS) as proxy:
        history = open_history(exchange, f"http://127.0.0.1:{emulator[1]}", proxy=proxy.url)
        try:
            with pytest.raises(RemoteError, match=said) as failed:
                await history.markets()
        finally:
            await history.aclose()
    assert "secret" not in str(failed.value)
    assert emulator[0].venue.requests.total() == 0


@KINDS
async def test_a_proxy_that_is_not_there_is_a_remote_fault(kind: type[HttpProxy]) -> None:
    async with kind() as gone:
        pass
    url = gone.url.replace("127", f"{CREDENTIALS}@127")
    history = open_history("binance", "http://127.0.0.1:9", proxy=url)
    try:
        with pytest.raises(RemoteError, match=f"through proxy {gone.url}") as failed:
            await history.time_ns()
        with pytest.raises(RemoteError, match=f"through proxy {gone.url}") as also:
            async with connect("ws://127.0.0.1:9", proxy=url):
                pass
    finally:
        await history.aclose()
    assert "secret" not in f"{failed.value}{also.value}"


async def test_a_wrong_password_is_said(emulator: tuple[Emulator, int]) -> None:
    async with SocksProxy(credentials=CREDENTIALS) as proxy:
        wrong = proxy.url.replace("secret", "hunter2")
        with pytest.raises(RemoteError, match="through proxy") as failed:
            async with connect(f"ws://127.0.0.1:{emulator[1]}/market/stream", proxy=wrong):
                pass
    assert "hunter2" not in str(failed.value)


@pytest.mark.parametrize("status", [403, 451])
@pytest.mark.parametrize("emulator", VENUES, indirect=True)
async def test_an_exchange_that_will_not_serve_us_is_told_apart(
    emulator: tuple[Emulator, int], request: pytest.FixtureRequest, status: int
) -> None:
    exchange = request.node.callspec.params["emulator"]
    emulator[0].refuse = status
    history = open_history(exchange, f"http://127.0.0.1:{emulator[1]}")
    try:
        # Some exchanges say 403 of haste; that is left alone for long, too.
        hasty = status == 403 and exchange in ("bybit", "bitmex")
        with pytest.raises(RateLimited if hasty else Forbidden, match=str(status)):
            await history.markets()
    finally:
        await history.aclose()
    with pytest.raises(Forbidden, match=f"^HTTP {status}$"):
        async with connect(f"ws://127.0.0.1:{emulator[1]}{DIALECTS[exchange].ws_paths[0]}"):
            pass


def test_secrets_are_masked() -> None:
    assert shown("socks5h://user:p:w@[::1]:1080") == "socks5h://[::1]:1080"
    assert shown("http://127.0.0.1:3128") == "http://127.0.0.1:3128"
    assert masked("no way to http://u:p@host:1/x and ws://h") == "no way to http://***@host:1/x and ws://h"
