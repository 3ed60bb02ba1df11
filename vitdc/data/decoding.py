"""From the bytes of image files to pixels, over all cores; `pixels` decodes each.

Worker processes import this module, so it must stay light: NumPy and Pillow, never torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from vitdc.data.pixels import Pixels, decode_file, explain
from vitdc.errors import TrainingError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext

PRELOADED = ["vitdc.data.decoding"]  # by the server of the workers


class Unreadable(NamedTuple):
    """In the place of a file that its store would not give.

    Attributes:
        reason: Why.
    """

    reason: str


File = str | bytes | Unreadable  # its path, its content, or why there is neither
Item = TypeVar("Item")
Result = TypeVar("Result")


class Decoded(NamedTuple):
    """A decoded chunk.

    Attributes:
        images: (n, H, W, C) uint8: the readable ones, in order.
        problems: Position in the chunk of every unreadable file, and why.
        pages: Position of every file of several images, and their number.
        left_out: Position of every file with further pages that are no images, and their number.
        brightest: Position of every file with `pixels.Found.brightest`, and that.
    """

    images: np.ndarray
    problems: dict[int, str]
    pages: dict[int, int]
    left_out: dict[int, int]
    brightest: dict[int, int]

    def sources(self, names: Sequence[str]) -> list[tuple[int, str]]:
        """Position and name of every image, by the names of the files; pages have a number."""
        found = []
        for position, name in enumerate(names):
            if (number := self.pages.get(position, 1)) > 1:
                found += [(position, f"{name}#{page + 1}") for page in range(number)]
            elif position not in self.problems:
                found.append((position, name))
        return found


def decode_chunk(files: Iterable[File], pixels: Pixels) -> Decoded:
    """Decode a few files; those that cannot be are left out and explained."""
    images = list[np.ndarray]()
    problems, pages, left_out, brightest = (dict[int, Any]() for _ in range(4))
    with _quiet_pillow:
        for position, file in enumerate(files):
            if isinstance(file, Unreadable):
                problems[position] = file.reason
                continue
            try:
                found = decode_file(file, pixels)
            except Exception as error:  # codecs raise anything on hostile bytes
                problems[position] = explain(error, file)
                continue
            images += found.images
            if len(found.images) > 1:
                pages[position] = len(found.images)
            if found.left_out:
                left_out[position] = found.left_out
            if found.brightest is not None:
                brightest[position] = found.brightest
    stacked = np.array(images, np.uint8).reshape(-1, *pixels.shape)
    return Decoded(stacked, problems, pages, left_out, brightest)


class Stop:
    """Ends a decoding from any thread, even in the middle of a file if processes are at work."""

    def __init__(self) -> None:
        self._lock, self._set = threading.Lock(), False
        self._pipe: tuple[Connection, Connection] | None = None

    def set(self) -> None:
        with self._lock:
            if self._pipe and not self._set:
                self._pipe[1].send_bytes(b"")  # never read, so all processes see it
            self._set = True

    def is_set(self) -> bool:
        return self._set

    def open(self, context: BaseContext) -> Connection:
        """What becomes readable when it is set."""
        with self._lock:
            self._pipe = context.Pipe(duplex=False)
            if self._set:
                self._pipe[1].send_bytes(b"")
            return self._pipe[0]


def decode_chunks(
    chunks: Iterable[Sequence[File]],
    pixels: Pixels,
    *,
    num_workers: int,
    quick_start: bool = False,
    stop: Stop | None = None,
) -> Generator[Decoded]:
    """Decode chunk after chunk in processes, in order and a bounded way ahead.

    Close the iterator to end the processes early.

    Args:
        chunks: The files of each chunk.
        pixels: What is wanted of every image.
        num_workers: Processes; with one, everything happens in this process.
        quick_start: Fork the processes of this and later calls from one that has imported what
            they need. Only for threads beside the main one: Ctrl-C may interrupt the main thread
            while a process is being forked for it, which would then complain.
        stop: When it is set, results are not whole any more, and end.

    Raises:
        TrainingError: A process was killed, or it crashed.
    """
    stop = stop or Stop()
    if num_workers == 1:
        for files in chunks:
            yield decode_chunk(takewhile(lambda _: not stop.is_set(), files), pixels)
        return
    # spawn: a forked child would inherit the locks of whatever threads run here
    context = multiprocessing.get_context("forkserver" if quick_start else "spawn")
    if quick_start:
        context.set_forkserver_preload(PRELOADED)
    executor = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(stop.open(context),)
    )

    def submit(files: Sequence[File]) -> Future[Decoded]:
        try:
            with _interrupts_held_back(), _main_module_hidden():  # from a process that this starts
                return executor.submit(_decode_in_worker, files, pixels)
        except OSError:
            if executor._broken:  # while another was being started: it needs a pipe that is closed
                raise BrokenProcessPool from None
            raise

    try:
        yield from ordered_map(submit, chunks, ahead=2 * num_workers)
    except BrokenProcessPool:
        processes = [*executor._processes.values()]  # public from Python 3.14: kill_workers()
        # The executor ends those that it knew of when one was killed, and waits for all.
        for process in processes:
            process.kill()
        executor.shutdown(cancel_futures=True)
        if not stop.is_set():
            reason = _why_ended([each.exitcode for each in processes])
            raise TrainingError(f"a process that decodes images {reason}") from None
    finally:
        stop.set()  # chunks that the executor has handed out cannot be cancelled
        executor.shutdown(cancel_futures=True)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    submit: Callable[[Item], Future[Result]], items: Iterable[Item], *, ahead: int
) -> Generator[Result]:
    """Results in the order of `items`, of which at most `ahead` are in work or done at a time.

    `Executor.map` reads all of its input at once, and so holds all of it in memory.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(submit(item))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class _QuietPillow:
    """Switches Pillow's own size limit and warnings off: `max_pixels` and `problems` replace them.

    Both belong to the whole process, so the first thread that decodes switches them off, and the
    last one on.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._undo = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        from PIL import Image

        with self._lock:
            if self._threads == 0:
                self._undo.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                Image.MAX_IMAGE_PIXELS = None
                self._undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._undo.close()


_quiet_pillow = _QuietPillow()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Deliver Ctrl-C after the block. A process started in it never sees one: its parent does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_hiding = threading.Lock()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Start processes that do not run the program's script again, as Python lets them by default.

    They need nothing of it, it may import much, and without `if __name__ == "__main__":`, or read
    from standard input, it would not survive.
    """
    with _hiding:
        main = vars(sys.modules["__main__"])
        known: dict[str, object] = {n: main[n] for n in ("__file__", "__spec__") if n in main}
        main.update(dict.fromkeys(known))
        try:
            yield
        finally:
            main.update(known)


def _why_ended(exit_codes: Iterable[int | None]) -> str:
    """What ended the first of some processes, by the exit codes of all; the rest was ended then."""
    own = [code for code in exit_codes if code not in (None, 0, -signal.SIGTERM, -signal.SIGKILL)]
    if not own:
        return (
            "was killed; if there was too little memory for it, use fewer cores (taskset) or"
            " smaller images"
        )
    if own[0] > 0:
        return f"ended by itself (exit code {own[0]}); what it said about it stands above"
    return (
        f"crashed ({signal.Signals(-own[0]).name}) in a library that reads images; find the file,"
        " e.g. by preparing halves of the folder, and convert or remove it"
    )


# of a worker process
_state = threading.Lock()
_is_at_work = False
_is_stopped = False  # its results are no longer wanted


def _start_worker(stop: Connection) -> None:
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()


def _decode_in_worker(files: Sequence[File], pixels: Pixels) -> Decoded:
    global _is_at_work
    with _state:
        _is_at_work = True
    try:
        return decode_chunk(takewhile(lambda _: not _is_stopped, files), pixels)
    finally:
        with _state:
            _is_at_work = False


def _watch(stop: Connection) -> None:
    """Never outlive the parent process, even if it is killed; drop a file that is not wanted.

    Reading one may take forever. Between files a process lives on: it may be in the middle of
    sending a result, and whoever receives half of one waits for the rest.
    """
    global _is_stopped
    parent = multiprocessing.parent_process()
    assert parent is not None
    if parent.sentinel in wait([parent.sentinel, stop]):
        os._exit(1)
    with _state:
        _is_stopped = True
        if _is_at_work:
            os._exit(0)
    parent.join()
    os._exit(1)
