"""The one way this package compiles: strict IEEE arithmetic, cached where a cache can be kept."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def jit(function: _Function) -> _Function:
    """Compile `function` on first call and keep the machine code beside the source.

    Numba looks for a writable place in this order: ``NUMBA_CACHE_DIR``, the source tree's ``__pycache__``, the user's
    cache folder. Where there is none (a read-only install under a locked-down service) it refuses to compile at all;
    then the function is compiled anew in each process, which takes some seconds at the start. Name a writable folder
    in ``NUMBA_CACHE_DIR`` to avoid that.

    Numba does not notice when a function in *another* file changed, so a cached function calls only functions of its
    own file. `fastmath` stays off: reordered sums would end agreement to the bit.
    """
    try:
        return njit(function, cache=True, error_model="numpy")  # type: ignore[no-any-return]
    except RuntimeError:  # "cannot cache function …: no locator available"
        return njit(function, error_model="numpy")  # type: ignore[no-any-return]
