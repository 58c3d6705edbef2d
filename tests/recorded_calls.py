"""Calls that are made again and again, without a GPU."""

from collections.abc import Callable, Hashable


class Recorded:
    """In the place of graphs: from its second time on, what is run for a key is the call made then, no later one."""

    def __init__(self) -> None:
        self.calls: dict[Hashable, Callable[[], None] | None] = {}
        self.again = 0

    def run(self, key: Hashable, call: Callable[[], None]) -> None:
        if key not in self.calls:
            self.calls[key] = None
            call()
            return
        self.again += 1
        if self.calls[key] is None:
            self.calls[key] = call
        self.calls[key]()  # type: ignore[misc]

    def forget(self, keys: Callable[[Hashable], bool]) -> None:
        for key in [key for key in self.calls if keys(key)]:
            del self.calls[key]
