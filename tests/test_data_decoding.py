"""Many image files -> pixels, over all cores."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.spawn import get_preparation_data
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdc.data import decoding
from vitdc.data.decoding import decode_chunk, decode_chunks, ordered_map
from vitdc.data.pixels import Pixels
from vitdc.errors import TrainingError

RGB8 = Pixels(image_size=8, channels=3, max_pixels=10_000)
GREY8 = Pixels(image_size=8, channels=1, max_pixels=10_000)
ORANGE = (250, 120, 10)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def test_unreadable_files_are_explained_and_left_out(tmp_path):
    good = encoded(Image.new("RGB", (16, 16), ORANGE), "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    truncated = encoded(Image.fromarray(noise), "JPEG")[:-900]
    bomb = encoded(Image.new("1", (101, 100)), "PNG")
    files = [b"not a picture", good, truncated, bomb, str(tmp_path / "gone.png"), b"", good]
    images, problems, *_ = decode_chunk(files, RGB8)
    assert len(images) == 2
    assert {position: reason.split(" (")[0] for position, reason in problems.items()} == {
        0: "not an image of a known format",
        2: "damaged: image file is truncated",
        3: "too large: 101 x 100 pixels exceed data.max_pixels=10000",
        4: "No such file or directory",
        5: "not an image of a known format",
    }


def test_a_truncated_png_is_unreadable():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    _, problems, *_ = decode_chunk([encoded(Image.fromarray(noise), "PNG")[:-900]], RGB8)
    assert set(problems) == {0}


def test_pillows_own_bomb_warning_stays_silent_and_its_limit_untouched(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, problems, *_ = decode_chunk([encoded(Image.new("L", (8, 8)), "PNG")], GREY8)
    assert len(images) == 1
    assert not problems
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pillow_stays_silent_until_the_last_thread_is_done(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    large, before = encoded(Image.new("L", (8, 8)), "PNG"), warnings.filters[:]
    first_is_in, first_may_go = threading.Event(), threading.Event()

    def slowly():
        first_is_in.set()
        assert first_may_go.wait(60)
        yield large

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(decode_chunk, slowly(), GREY8)
        assert first_is_in.wait(60)

        def meanwhile():
            first_may_go.set()
            first.result()
            yield large  # the first thread has ended while this one is at work

        images, problems, *_ = decode_chunk(meanwhile(), GREY8)
    assert (len(images), problems) == (1, {})
    assert first.result().problems == {}
    assert Image.MAX_IMAGE_PIXELS == 10
    assert warnings.filters == before


def test_input_is_read_only_a_bounded_way_ahead():
    read = []

    def numbers():
        for number in range(100):
            read.append(number)
            yield number

    with ThreadPoolExecutor(2) as executor:
        results = ordered_map(lambda number: executor.submit(pow, number, 2), numbers(), ahead=5)
        assert next(results) == 0
        assert len(read) == 5
        assert [*results] == [number**2 for number in range(1, 100)]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_chunks_come_back_in_order_whatever_the_number_of_processes(num_workers):
    files = [encoded(Image.new("L", (8, 8), grey), "PNG") for grey in range(40)]
    chunks = [files[start : start + 4] for start in range(0, 40, 4)]
    decoded = [*decode_chunks(chunks, GREY8, num_workers=num_workers)]
    greys = np.concatenate([images[:, 0, 0, 0] for images, *_ in decoded])
    assert greys.tolist() == list(range(40))


def test_a_process_killed_while_another_is_started_is_one_line(monkeypatch, tmp_path):
    """The executor has closed the pipes then that it hands to the other."""

    def submit(executor, *arguments):
        executor._broken = "a process was killed"
        raise OSError("handle is closed")

    monkeypatch.setattr(decoding.ProcessPoolExecutor, "submit", submit)
    with pytest.raises(TrainingError, match="a process that decodes images was killed"):
        next(decode_chunks([["a.png"]], GREY8, num_workers=2))


@pytest.mark.parametrize("quick_start", [False, True])
def test_a_killed_process_is_one_line(tmp_path, quick_start):
    """As the kernel kills one when memory runs out."""
    silent = tmp_path / "silent.png"
    os.mkfifo(silent)  # whoever reads it waits
    chunks = [[str(silent)]] * 3
    decoded = decode_chunks(chunks, GREY8, num_workers=2, quick_start=quick_start)
    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_a_child, multiprocessing.active_children())
        with pytest.raises(TrainingError, match="a process that decodes images was killed"):
            next(decoded)
        killed.result()


@pytest.mark.parametrize("quick_start", [False, True])
def test_a_process_killed_while_another_starts_is_one_line(monkeypatch, quick_start):
    """The executor does not end the other, which has nothing to do, and would wait for it."""
    monkeypatch.setattr(BaseProcess, "start", slow_start)
    chunks = itertools.repeat([encoded(Image.new("L", (8, 8)), "PNG")])
    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_a_child, multiprocessing.active_children(), of=2)
        with pytest.raises(TrainingError, match="a process that decodes images was killed"):
            deque(decode_chunks(chunks, GREY8, num_workers=2, quick_start=quick_start), maxlen=0)
        killed.result()


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ([-signal.SIGTERM, -signal.SIGKILL], "was killed; if there was too little memory"),
        ([-signal.SIGKILL, -signal.SIGSEGV], "crashed (SIGSEGV) in a library that reads images"),
        ([-signal.SIGTERM, 1, None], "ended by itself (exit code 1); what it said about it stands"),
    ],
)
def test_the_reason_is_that_of_the_first_process_that_ended(codes, reason):
    assert decoding._why_ended(codes).startswith(reason)


def test_a_crash_in_a_library_is_told_from_too_little_memory(tmp_path):
    silent = tmp_path / "silent.png"
    os.mkfifo(silent)
    decoded = decode_chunks([[str(silent)]] * 3, GREY8, num_workers=2)
    with ThreadPoolExecutor(1) as thread:
        others = multiprocessing.active_children()
        crashed = thread.submit(kill_a_child, others, number=signal.SIGSEGV)
        with pytest.raises(TrainingError, match=r"crashed \(SIGSEGV\)"):
            next(decoded)
        crashed.result()


def test_a_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from vitdc.data.decoding import Pixels, decode_chunks\n"
        "print('once')\n"
        "decoded = decode_chunks([[b'']] * 4, Pixels(8, 3, 100), num_workers=2)\n"
        "print([len(each.problems) for each in decoded])\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("once\n[1, 1, 1, 1]\n", "")


@pytest.mark.parametrize(
    "known", [{}, {"__file__": "<stdin>"}, {"__spec__": SimpleNamespace(name="toy")}]
)
def test_processes_are_not_told_of_the_main_module(monkeypatch, known):
    main = ModuleType("__main__")
    vars(main).update(known)
    before = dict(vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    with decoding._main_module_hidden():
        told = get_preparation_data("process")
    assert not {"init_main_from_path", "init_main_from_name"} & told.keys()
    assert vars(main) == before


def slow_start(process: BaseProcess, start=BaseProcess.start) -> None:
    start(process)
    time.sleep(1)


def kill_a_child(others: list[BaseProcess], *, of: int = 1, number: int = signal.SIGKILL) -> None:
    """End the first of the children that start from now on; other tests may have left some."""
    while len(children := set(multiprocessing.active_children()) - {*others}) < of:
        time.sleep(0.01)
    if of > 1:
        time.sleep(0.5)  # both have started, and the executor does not know of the second yet
    os.kill(min(children, key=attrgetter("pid")).pid, number)


def test_workers_import_nothing_heavy():
    code = (
        "import sys, vitdc.data.decoding as d; d.decode_chunk([b''], d.Pixels(8, 3, 100));"
        "print(*{'torch', 'torchvision', 'pydantic', 'boto3', 'sklearn'} & set(sys.modules))"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == ""
