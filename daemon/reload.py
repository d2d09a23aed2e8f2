"""Read the configuration again while running, on SIGHUP or on request.

What can change at once does; what cannot is named.
"""

from collections.abc import Callable

import structlog

from config.schema import Config
from daemon import log_setup

AT_ONCE = frozenset({"log.level"})
"""Keys that take effect without a restart. All others decide what is published or how, so they begin with a start."""


class Reloader:
    """Compares the configuration on disk with the one in force."""

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        """Set up; `read` reads and checks the configuration anew."""
        self._config, self._read = config, read

    def reload(self) -> dict[str, object]:
        """Apply what can be applied; return the keys applied and those that need a restart.

        Raises:
            ConfigError: what is on disk cannot be used; nothing has changed.

        """
        fresh = self._read()
        before, after = _flat(self._config), _flat(fresh)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        log_setup.set_level(fresh.log.level)
        log = self._config.log.model_copy(update={"level": fresh.log.level})
        self._config = self._config.model_copy(update={"log": log})
        found: dict[str, object] = {"applied": sorted(changed & AT_ONCE), "needs_restart": sorted(changed - AT_ONCE)}
        structlog.get_logger().info("reloaded", **found)
        return found


def _flat(config: Config) -> dict[str, object]:
    """Name each setting `section.key`; a list of feeds is one setting."""
    sections = config.model_dump(mode="json")
    found = {"feeds": sections.pop("feeds")}
    for section, keys in sections.items():
        found.update({f"{section}.{key}": value for key, value in keys.items()})
    return found
