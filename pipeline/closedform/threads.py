"""One BLAS thread: the same bits on every machine, and no thread that waits in vain.

The matrices here are small. On a machine that does something else as well, two BLAS threads wait
for one another actively and take ten times as long as one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _controller() -> ThreadpoolController:
    """The BLAS libraries of this process; numpy and scipy have loaded theirs by now."""
    return ThreadpoolController()


def one_thread(call: Callable[P, R]) -> Callable[P, R]:
    """Decorator: products and factorisations in one thread."""

    @functools.wraps(call)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _controller().limit(limits=1, user_api="blas"):
            return call(*args, **kwargs)

    return limited
