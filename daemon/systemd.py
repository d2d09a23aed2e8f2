"""Tell systemd how we are: sd_notify(3) in a few lines, and the watchdog's interval."""

import os
import socket


def notify(*fields: str) -> bool:
    """Send fields such as ``READY=1`` or ``STATUS=warming`` to the service manager.

    Returns whether there was one to tell: outside systemd, or where its socket is gone or full, nothing happens. A
    manager that does not read must not hold us up.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return False
    # systemd writes an abstract socket's leading zero byte as '@'.
    name = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto("\n".join(fields).encode(), name)
        except OSError:
            return False
    return True


def watchdog_interval_s() -> float | None:
    """How often to send ``WATCHDOG=1``, seconds: half of what systemd allows; None where it does not watch us."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
