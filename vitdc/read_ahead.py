"""Reading ahead: the next items are made while who iterates is at work on one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Draws items from a generator in a thread, a bounded way ahead of who iterates over this.

    The thread starts with the block and ends with it, and closes the generator.

    Args:
        items: The generator.
        limit: How many items it may be ahead.
        on_stop: Called at the end of the block, before it waits for the item that is being made.
    """

    def __init__(
        self,
        items: Generator[Item],
        *,
        limit: int,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._items, self._room, self._on_stop = items, Semaphore(limit), on_stop
        self._results: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
        self._stopped = False
        self._thread = Thread(target=self._draw, daemon=True)  # a second Ctrl-C does not wait

    def __enter__(self) -> Iterator[Item]:
        self._thread.start()
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._on_stop()
        self._room.release()
        self._thread.join()

    def _iterate(self) -> Iterator[Item]:
        while (result := self._results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result[0]
            self._room.release()

    def _draw(self) -> None:
        try:
            with closing(self._items) as items:
                for item in items:
                    self._room.acquire()
                    if self._stopped:
                        return
                    self._results.put((item,))
            self._results.put(None)
        except BaseException as error:  # raised where the items are wanted
            self._results.put(error)
