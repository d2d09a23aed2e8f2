"""What fails is said in words; what really fails here are real connections."""

import pytest

from daemon.broker import free_port
from daemon.diagnosis import causes, words
from feeds.errors import RateLimited, RemoteError
from feeds.history import open_history
from tests.daemon.test_desk import emulated, markets
from tests.feeds.proxies import HttpProxy


async def failure(rest_url: str, proxy: str | None = None) -> tuple[str, str]:
    history = open_history("binance", rest_url, proxy=proxy)
    try:
        with pytest.raises(RemoteError) as caught:
            await history.time_ns()
    finally:
        await history.aclose()
    return words(str(caught.value), hints=causes(caught.value))


async def test_a_port_where_nobody_listens() -> None:
    said, advice = await failure(f"http://127.0.0.1:{free_port()}")
    assert said.startswith("nobody listens there (")
    assert "rest_url" in advice


async def test_a_name_that_nobody_knows() -> None:
    said, advice = await failure("http://nowhere.invalid:9000")
    assert said.startswith("the name cannot be resolved (")
    assert "DNS" in advice


async def test_a_server_without_tls() -> None:
    async with emulated(markets("BTCUSDT")) as (_, port):
        said, advice = await failure(f"https://127.0.0.1:{port}")
    assert said.startswith("no TLS with what answers there (")
    assert "clock and certificates" in advice


@pytest.mark.parametrize("status", [403, 451])
async def test_an_exchange_that_bars_us(status: int) -> None:
    async with emulated(markets("BTCUSDT")) as (emulator, port):
        emulator.refuse = status
        said, advice = await failure(f"http://127.0.0.1:{port}")
    assert said == f"the exchange will not serve this address (HTTP {status} from 127.0.0.1)"
    assert "proxy" in advice


async def test_a_proxy_that_is_not_there() -> None:
    proxy = f"http://user:secret@127.0.0.1:{free_port()}"
    said, advice = await failure("http://127.0.0.1:9", proxy)
    assert said.startswith("no way through the proxy (")
    assert "secret" not in said
    assert "proxy" in advice


async def test_a_proxy_that_does_not_know_us() -> None:
    async with HttpProxy(credentials="user:other") as proxy:
        said, _ = await failure("https://127.0.0.1:9", f"http://user:secret@127.0.0.1:{proxy.port}")
    assert said.startswith("the proxy wants another user and password (")


def test_what_is_not_known_is_passed_on() -> None:
    assert words("half the moon fell down")[0] == "half the moon fell down"
    assert words("slower", hints=causes(RateLimited("slower", retry_after_s=1)))[0].startswith("too many requests")
    assert words("no answer to request (1,)")[0] == "no answer to request (1,)"
