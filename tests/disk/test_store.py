# SPDX-License-Identifier: GPL-2.0-or-later
"""The store against a real QEMU: what is written is in the image, and every fault ends in an error with its cause."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import ref

import numpy as np
import pytest

from tests.disk.exporter import MIB, exporter, make_image, nodes
from vmlink.disk import store as module
from vmlink.disk.record import Kind, Write
from vmlink.disk.store import Store
from vmlink.errors import VmError
from vmlink.process import Child

SIZE = 8 * MIB
FORMATS = ["raw", "qcow2"]


def with_store(directory: Path, image: Path, form: str, work: Callable[[Store], None],
               beside: Callable[[Child], None] = lambda _: None) -> None:
    """Export the image and let `work` use it in a worker thread, `beside` in this one."""
    async def run() -> None:
        async with exporter(directory / "nbd.sock") as (exports, child):
            await exports.image("data", nodes(image, form))
            made = Store("data")

            def all_of_it() -> None:
                try:
                    made.connect(exports.path, "data")
                    work(made)
                finally:
                    made.close()

            with ThreadPoolExecutor(1) as worker:
                done = asyncio.get_running_loop().run_in_executor(worker, all_of_it)
                beside(child)
                await done

    asyncio.run(run())


def content(image: Path, form: str) -> bytes:
    """What a guest would read."""
    plain = image.with_suffix(".plain")
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", image, plain], check=True, timeout=20)
    return plain.read_bytes()


def test_nothing_of_what_was_moved_is_kept(tmp_path: Path) -> None:
    """Else a host's memory is full after as many bytes as it has."""
    def work(store: Store) -> None:
        written, read = np.ones(2 * MIB, np.uint8), np.empty(2 * MIB, np.uint8)
        store.write([Write(Kind.WRITE, 0, written.nbytes, written.data)])
        store.read_into([(0, read.data)])
        assert (written == read).all()
        kept = [ref(written), ref(read)]
        del written, read
        assert not [each for each in kept if each() is not None]

    with_store(tmp_path, make_image(tmp_path / "image", SIZE), "raw", work)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_in_the_image(tmp_path: Path, form: str) -> None:
    """Random writes of all kinds and sizes, in rounds of some that do not overlap, against a model in memory."""
    image, model, rng = make_image(tmp_path / "image", SIZE, form), bytearray(SIZE), random.Random(form)

    def work(store: Store) -> None:
        assert store.size == SIZE
        for _ in range(12):
            batch = []
            cuts = sorted(rng.sample(range(SIZE // 512), 200))
            for start, end in zip(cuts, cuts[1:], strict=False):
                offset, length = 512 * start, 512 * (end - start)
                kind = rng.choice(list(Kind) + [None])
                if kind is None:
                    continue
                data = rng.randbytes(length) if kind is Kind.WRITE else b""
                batch.append(Write(kind, offset, length, data))
                model[offset:offset + length] = data or bytes(length)
            rng.shuffle(batch)
            store.write(batch)
            offset = 512 * rng.randrange(SIZE // 512)
            assert store.read(offset, SIZE - offset) == model[offset:]
        store.flush()

    with_store(tmp_path, image, form, work)
    assert content(image, form) == model


def test_a_large_write_is_cut(tmp_path: Path) -> None:
    image, data = make_image(tmp_path / "image", SIZE), os.urandom(3 * MIB + 512)
    with_store(tmp_path, image, "raw", lambda store: store.write([Write(Kind.WRITE, 512, len(data), data)]))
    assert content(image, "raw")[512:][:len(data)] == data


@pytest.mark.parametrize("form", FORMATS)
def test_holes_are_seen(tmp_path: Path, form: str) -> None:
    image = make_image(tmp_path / "image", SIZE, form)
    seen: list[list[tuple[int, int, bool]]] = []

    def look(store: Store, offset: int, length: int) -> None:
        found = store.extents(offset, length)
        seen.append(list(zip(found.offsets.tolist(), found.lengths.tolist(), found.zero.tolist(), strict=True)))

    def work(store: Store) -> None:
        store.write([Write(Kind.WRITE, MIB, MIB, b"x" * MIB), Write(Kind.WRITE, 5 * MIB, MIB, b"y" * MIB)])
        store.write([Write(Kind.TRIM, 5 * MIB, MIB)])
        look(store, MIB // 2, 4 * MIB)
        look(store, 0, SIZE)

    with_store(tmp_path, image, form, work)
    first, whole = seen
    assert first == [(MIB // 2, MIB // 2, True), (MIB, MIB, False), (2 * MIB, 5 * MIB // 2, True)]
    if form == "raw":  # the first sectors of a new raw file are allocated
        assert whole.pop(0)[:1] == (0,)
        whole[0] = (0, MIB, True)
    assert whole == [(0, MIB, True), (MIB, MIB, False), (2 * MIB, 6 * MIB, True)]


def test_what_is_not_there_of_a_sparse_disk_costs_nothing(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 1 << 40, "qcow2")

    def work(store: Store) -> None:
        store.write([Write(Kind.WRITE, 1 << 39, 4096, b"x" * 4096), Write(Kind.WRITE, 1 << 38, 4096, b"y" * 4096)])
        store.write(store.needed([Write(Kind.TRIM, 0, (1 << 39) - 512), Write(Kind.ZERO, 1 << 39, 512)]))
        assert store.read(1 << 38, 4096) == bytes(4096)
        assert store.read(1 << 39, 4096) == bytes(512) + b"x" * 3584
        found = store.extents(0, store.size)
        assert found.lengths[~found.zero].sum() <= 2 * 65536 and found.lengths.sum() == 1 << 40

    with_store(tmp_path, image, "qcow2", work)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_file_system_is_told_with_its_remedy(tmp_path: Path, small_tmpfs: Path) -> None:
    def work(store: Store) -> None:
        with pytest.raises(VmError, match="disk data: could not be written: .*No space left") as told:
            store.write([Write(Kind.WRITE, at, MIB, b"x" * MIB) for at in range(0, SIZE, MIB)])
        assert told.value.hint == "make room on the file system that holds the image"
        with pytest.raises(VmError, match="No space left"):  # what was lost is not forgotten
            store.flush()

    with_store(tmp_path, make_image(small_tmpfs / "image", SIZE), "raw", work)


def test_a_qemu_that_dies_is_told(tmp_path: Path) -> None:
    reading = threading.Event()

    def work(store: Store) -> None:
        with pytest.raises(VmError, match="disk data: could not be read: .*closed"):
            while True:
                store.read(0, SIZE)
                reading.set()
        with pytest.raises(VmError, match="disk data"):
            store.write([Write(Kind.ZERO, 0, 512)])

    def kill(child: Child) -> None:
        assert reading.wait(20)
        os.kill(child.pid, signal.SIGKILL)

    with_store(tmp_path, make_image(tmp_path / "image", SIZE), "raw", work, kill)


def test_a_qemu_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, hung = threading.Event(), threading.Event()

    def work(store: Store) -> None:
        ready.set()
        assert hung.wait(20)
        monkeypatch.setattr(module, "TIMEOUT", 0.2)
        with pytest.raises(VmError, match=r"disk data: no answer for 0.2 s"):
            store.flush()

    def hang(child: Child) -> None:
        assert ready.wait(20)
        os.kill(child.pid, signal.SIGSTOP)
        hung.set()

    with_store(tmp_path, make_image(tmp_path / "image", SIZE), "raw", work, hang)


def test_a_call_under_way_ends_when_the_store_is_closed(tmp_path: Path) -> None:
    ready, hung = threading.Event(), threading.Event()

    def work(store: Store) -> None:
        ready.set()
        assert hung.wait(20)
        threading.Timer(0.05, store.close).start()
        with pytest.raises(VmError, match="the export is closed"):
            store.flush()

    def hang(child: Child) -> None:
        assert ready.wait(20)
        os.kill(child.pid, signal.SIGSTOP)
        hung.set()

    with_store(tmp_path, make_image(tmp_path / "image", SIZE), "raw", work, hang)


def test_an_export_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="disk data: cannot open the export data"):
        Store("data").connect(tmp_path / "nothing", "data")


# --- the export -------------------------------------------------------------------------------------

def test_an_image_in_use_is_refused_with_the_cause(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", SIZE, "qcow2")

    async def run() -> None:
        async with exporter(tmp_path / "one.sock") as (one, _), exporter(tmp_path / "two.sock") as (two, _):
            await one.image("data", nodes(image, "qcow2"))
            with pytest.raises(VmError, match="""disk data: .*Failed to get "write" lock"""):
                await two.image("data", nodes(image, "qcow2"))
            await one.withdraw()
            await two.image("data", nodes(image, "qcow2", "again"))

    asyncio.run(run())


@pytest.mark.parametrize(("form", "cause"), [("qcow2", "not in qcow2 format"), ("raw", "No such file")])
def test_an_image_that_cannot_be_opened_is_told(tmp_path: Path, form: str, cause: str) -> None:
    image = make_image(tmp_path / "image", SIZE) if form == "qcow2" else tmp_path / "missing"

    async def run() -> None:
        async with exporter(tmp_path / "one.sock") as (exports, _):
            with pytest.raises(VmError, match=f"opening the image of disk data: .*{cause}"):
                await exports.image("data", nodes(image, form))

    asyncio.run(run())


def test_withdrawn_while_in_use(tmp_path: Path) -> None:
    """The image is free for the VM's own nodes, whoever was connected."""
    image, data = make_image(tmp_path / "image", SIZE, "qcow2"), b"x" * 4096

    async def run() -> None:
        async with exporter(tmp_path / "nbd.sock") as (exports, _):
            await exports.image("data", nodes(image, "qcow2"))
            store = Store("data")
            store.connect(exports.path, "data")
            store.write([Write(Kind.WRITE, MIB, len(data), data)])
            await exports.withdraw()
            with pytest.raises(VmError, match="disk data"):
                store.write([Write(Kind.WRITE, 0, len(data), data)])
            store.close()
            await exports.image("data", nodes(image, "qcow2", "again"))
            store = Store("data")
            store.connect(exports.path, "data")
            assert store.read(MIB, len(data)) == data
            store.close()
            exports.close()
            assert not exports.path.exists()

    asyncio.run(run())


def test_a_node_that_cannot_be_exported_keeps_nobody_from_another(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", SIZE)

    async def run() -> None:
        async with exporter(tmp_path / "nbd.sock") as (exports, _):
            await exports.image("data", nodes(image, "raw"))
            with pytest.raises(VmError, match="exporting disk other"):
                await exports.node("other", "nothing")
            await exports.withdraw()
            await exports.image("data", nodes(image, "raw", "again"))

    asyncio.run(run())
