"""The composition root: what runs, in which order it starts and stops, and why. Nothing else is decided here.

Start: model and store (recovery), broker, publisher, feeds. Stop, in reverse: feeds first, so that nothing new is
decided; the last work is committed; the publisher drains and says offline; then the embedded broker and the store.
"""

import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import signal
from collections.abc import Callable

import msgspec
import structlog

from config.load import ConfigError
from config.schema import Config
from daemon import check, clock, systemd, topics
from daemon.broker import EmbeddedBroker
from daemon.committer import Committer
from daemon.desk import Desk
from daemon.health import Reporter
from daemon.metrics import Metrics, MetricsServer
from daemon.mqtt import Credentials, MqttLink, Will
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.reload import Reloader
from daemon.requests import Requests
from daemon.source import Budgets
from daemon.store import Store
from inference.artifact import Manifest
from inference.engine import Model
from inference.signals import Rules
from inference.stopwatch import Stopwatch

STORE_FILE = "lstmd.sqlite"
BROKER_FOLDER = "broker"


def run(config: Config, read: Callable[[], Config]) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. `read` reads the configuration anew, on SIGHUP or request.

    Raises:
        ConfigError, BrokerRefused, StoreError, MetricsError, RequestRefused: the operator's to mend, maybe in a group.

    """
    asyncio.run(_main(config, Reloader(config, read)))
    return 0


def _reload(reloader: Reloader) -> None:
    try:
        reloader.reload()
    except ConfigError as error:
        structlog.get_logger().error("reload_refused", problems=[str(problem) for problem in error.problems])


def rules_of(config: Config, manifest: Manifest) -> Rules:
    """Join the operator's costs and thresholds with the artifact's."""
    own, theirs = config.decision, manifest.decision
    return Rules(
        taker_fee_bps=own.taker_fee_bps,
        half_spread_bps=own.half_spread_bps,
        enter_edge_bps=theirs.enter_edge_bps if own.enter_edge_bps is None else own.enter_edge_bps,
        exit_edge_bps=theirs.exit_edge_bps if own.exit_edge_bps is None else own.exit_edge_bps,
        probability_min=own.probability_min,
        volatility_target_bps=own.volatility_target_bps,
        cooldown_candles=own.cooldown_candles,
        daily_loss_limit_bps=own.daily_loss_limit_bps,
    )


async def _main(config: Config, reloader: Reloader) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, reloader)
    artifact = check.check(config)
    model = Model(artifact, rules_of(config, artifact.manifest))
    log = structlog.get_logger()
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(Store(config.store.path / STORE_FILE))
        metrics = Metrics()
        if config.metrics.enabled:
            stack.callback(MetricsServer(metrics, config.metrics.listen).close)
        broker = None
        if config.mqtt.embedded_port is not None:
            broker = EmbeddedBroker(config.store.path / BROKER_FOLDER, port=config.mqtt.embedded_port)
            stack.push_async_callback(broker.stop)
            await broker.start()
        boot_id = clock.boot_id()
        log.info(
            "starting",
            version=importlib.metadata.version("lstmd"),
            boot_id=boot_id,
            model=model.id,
            policy=model.policy,
        )
        await _serve(config, model, store, metrics, broker, reloader, boot_id, stop)
    log.info("stopped")


async def _serve(
    config: Config,
    model: Model,
    store: Store,
    metrics: Metrics,
    broker: EmbeddedBroker | None,
    reloader: Reloader,
    boot_id: str,
    stop: asyncio.Event,
) -> None:
    base = config.mqtt.base_topic
    pipeline = Pipeline(model, base_topic=base, watch=Stopwatch(clock.now_ns), journal=store.journal)
    link = _link(config, broker, boot_id)
    publisher = Publisher(
        link,
        store,
        status_topic=f"{base}/status",
        online=_status("online", boot_id),
        offline=_status("offline", boot_id),
        stamp=functools.partial(_stamp, boot_id),
        inflight_max=config.mqtt.inflight_max,
        rng=clock.rng(),
        shipped_us=functools.partial(metrics.stages.observe, "publish"),
    )
    committer = Committer(config, pipeline, store, publisher, metrics)
    budgets = Budgets(store)
    desks = [
        Desk(number, feed, pipeline, store, metrics, committer.moved, budgets)
        for number, feed in enumerate(config.feeds)
    ]
    reporter = Reporter(config, model, desks, store, publisher, metrics, boot_id)
    requests = Requests(link, publisher, store, reporter, reloader, pipeline)
    shipping = asyncio.Event()
    async with asyncio.TaskGroup() as outer:
        ship = outer.create_task(publisher.run(shipping), name="publisher")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(committer.run(), name="committer"),
                    group.create_task(committer.live(), name="live"),
                    group.create_task(reporter.run(), name="reporter"),
                    group.create_task(requests.run(), name="requests"),
                    group.create_task(_say_ready(desks), name="ready"),
                    *(group.create_task(desk.run(stop), name=f"desk {desk.exchange}") for desk in desks),
                ]
                if broker:
                    tasks.append(group.create_task(broker.watch(), name="broker"))
                await stop.wait()
                systemd.notify("STOPPING=1")
                for task in tasks:
                    task.cancel()
            committer.finish()  # after a crash what was not committed is left: it is fetched and folded again
        finally:
            reporter.say_offline()
            shipping.set()
            await asyncio.wait([ship])  # a crash says goodbye too: whoever leaves politely has no last will


async def _say_ready(desks: list[Desk]) -> None:
    """Tell the service manager once recovery is over, or waits for nothing but an exchange."""
    for desk in desks:
        await desk.settled.wait()
    # Markets and their models stay: no collection needs to look at them again, least of all as candles close.
    gc.collect()
    gc.freeze()
    systemd.notify("READY=1")


def _stamp(boot_id: str) -> bytes:
    return f'"published_at":"{topics.rfc3339(clock.now_ns())}","boot_id":"{boot_id}"'.encode()


def _link(config: Config, broker: EmbeddedBroker | None, boot_id: str) -> MqttLink:
    mqtt = config.mqtt
    password = mqtt.password.get_secret_value() if mqtt.password else None
    return MqttLink(
        broker.url if broker else mqtt.url,
        client_id=f"lstmd-{boot_id}",
        will=Will(f"{mqtt.base_topic}/status", _status("offline", boot_id)),
        credentials=Credentials(mqtt.username, password, mqtt.ca_file, mqtt.client_cert, mqtt.client_key),
        keepalive_s=mqtt.keepalive_s,
        inflight_max=mqtt.inflight_max,
    )


def _status(state: str, boot_id: str) -> bytes:
    return topics.encode(msgspec.convert({"state": state, "boot_id": boot_id}, topics.Status))
