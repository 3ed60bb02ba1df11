"""Files that come over a network: fetched by several threads, a bounded way ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

from vitdc.data.decoding import File, ordered_map

NUM_THREADS = 16  # requests at a time
FETCH_AHEAD = 2 * NUM_THREADS  # files in memory before they are decoded
CHUNK_SIZE = 4  # of whole files, which may be photos of many megabytes


def fetch_all(fetch: Callable[[str], File], names: Sequence[str]) -> Generator[File]:
    """What `fetch` gives for each name, in order. Close the iterator to end the threads early."""
    executor = ThreadPoolExecutor(NUM_THREADS)
    try:
        yield from ordered_map(lambda name: executor.submit(fetch, name), names, ahead=FETCH_AHEAD)
    finally:
        executor.shutdown(cancel_futures=True)
