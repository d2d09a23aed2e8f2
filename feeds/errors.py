"""What may go wrong between us and an exchange, by who is to blame."""

FORBIDDEN_S = 300.0
"""How long to leave an exchange alone that will not serve us."""


class FeedError(Exception):
    """Base of all that this package raises on purpose."""


class RemoteError(FeedError):
    """The exchange or the network failed; trying again later is right."""


class RateLimited(RemoteError):
    """The exchange asks us to slow down.

    Attributes:
        retry_after_s: seconds to wait before the next request.

    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Forbidden(RemoteError):
    """The exchange will not serve us, from here or at all (HTTP 403, 451): only a slow retry makes sense."""


class RequestRefused(FeedError):
    """The exchange understood and refused: the same request will fail again (unknown symbol, bad argument)."""
