"""A feed behind a proxy, and one that its exchange will not serve."""

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from config.schema import Feed
from daemon import desk as desks
from daemon import source
from daemon.desk import Desk
from feeds import runner
from feeds.errors import FORBIDDEN_S
from tests.daemon.brokers import until
from tests.daemon.test_desk import at_work, emulated, feed, make, markets, told
from tests.feeds.proxies import CREDENTIALS, HttpProxy, SocksProxy

__all__ = ["make", "told"]  # fixtures


def through(port: int, url: str) -> Feed:
    return feed(port, "BTC/USDT:USDT").model_copy(update={"proxy": SecretStr(url)})


@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
async def test_a_feed_goes_through_its_proxy(
    make: Callable[..., Desk], capsys: pytest.CaptureFixture[str], kind: type[HttpProxy]
) -> None:
    async with emulated(markets("BTCUSDT")) as (emulator, port), kind(credentials=CREDENTIALS) as proxy:
        desk = make(through(port, proxy.url))
        async with at_work(desk):
            await until(lambda: desk.live and bool(desk.markets))
            await until(lambda: desk.availability(desk.markets[0]) == ("online", ""))
            assert proxy.targets == {f"127.0.0.1:{port}"}
            assert proxy.connections >= 2, "history and websocket"
            await proxy.__aexit__()
            await until(lambda: not desk.live)
            await until(lambda: desk.availability(desk.markets[0])[1].startswith("cannot connect through proxy"))
            state, reason = desk.availability(desk.markets[0])
            assert state == "stale"
            assert f"{kind.scheme}://127.0.0.1:{proxy.port}" in reason
        assert emulator.venue.requests["websocket"] == 1
    assert "secret" not in capsys.readouterr().out + str(desk.feed) + desk.reason


@pytest.mark.parametrize("status", [403, 451])
async def test_an_exchange_that_refuses_us_is_asked_seldom_and_said_to_refuse(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    for module in (runner, source):
        monkeypatch.setattr(module, "FORBIDDEN_S", 0.7)
    async with emulated(markets("BTCUSDT")) as (emulator, port):
        desk = make(feed(port, "BTC/USDT:USDT"))
        async with at_work(desk):
            await until(lambda: desk.live and bool(desk.markets))
            emulator.refuse = status
            await emulator.cut()
            await until(lambda: desk.reason == f"refused: HTTP {status}")
            state, reason = desk.availability(desk.markets[0])
            assert state == "refused"
            assert reason.startswith(f"refused: HTTP {status}"), "of the websocket, or of REST"
            emulator.refuse = False
            await until(lambda: desk.live and desk.availability(desk.markets[0])[0] == "online")


async def test_a_history_that_refuses_us_is_said_to_refuse(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "FORBIDDEN_S", 0.7)
    async with emulated(markets("BTCUSDT")) as (emulator, port):
        emulator.refuse = 451
        desk = make(feed(port, "BTC/USDT:USDT"))
        async with at_work(desk):
            await desk.settled.wait()
            assert desk.reason == "refused: HTTP 451 from 127.0.0.1"
            asked = emulator.venue.requests.total()
            assert asked == 1
            emulator.refuse = False
            await until(lambda: desk.live)


def test_minutes_pass_between_tries() -> None:
    assert FORBIDDEN_S >= 120
    assert desks.REFUSED == "refused: "
