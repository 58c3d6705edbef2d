"""Notebooks under pytest: a kernel's reply is looked for anew every other second.

A client that sleeps until its socket wakes it can miss a reply that has come: three times in some twenty runs a
notebook stood still for the whole of --nbmake-timeout, then found the reply and passed. Which library loses the
wake-up is not known; looking again costs nothing.
"""

import math
import time
from queue import Empty
from typing import Any

from jupyter_client.channels import AsyncZMQSocketChannel

SECONDS = 2.0

_wait_once = AsyncZMQSocketChannel.get_msg


async def _get_msg(channel: AsyncZMQSocketChannel, timeout: float | None = None) -> dict[str, Any]:
    """The channel's next message. Raises Empty after `timeout` seconds; None: never."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            return await _wait_once(channel, min(SECONDS, left))
        except Empty:
            if time.monotonic() >= deadline:
                raise


AsyncZMQSocketChannel.get_msg = _get_msg  # type: ignore[method-assign]
