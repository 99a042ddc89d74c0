# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions and answers about a disk: what is asked arrives, and whatever arrives, no more than WireError comes out."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from vmlink.disk.compare import COARSE, FINE, MOST_BYTES, Answer, Question, answer, hashed, runs
from vmlink.disk.store import Extents
from vmlink.wire import WireError

SIZES = (1 << 30, 1 << 20)

ranges = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 40)).map(
    lambda pair: (512 * pair[0], min(512 * pair[1], SIZES[1] - 512 * pair[0]))), max_size=8)
questions = st.builds(Question, st.integers(0, 2**64 - 1), st.integers(0, 1), st.sampled_from([COARSE, FINE]), ranges)


class Memory:
    """A store that is a buffer; what is zero is a hole."""

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def extents(self, offset: int, length: int) -> Extents:
        table: list[tuple[int, int, bool]] = []
        for at in range(offset, offset + length, 512):
            zero = not any(self.content[at:at + 512])
            if table and table[-1][2] == zero:
                table[-1] = table[-1][0], table[-1][1] + 512, zero
            else:
                table.append((at, 512, zero))
        columns = np.array(table, np.int64).reshape(-1, 3)
        return Extents(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.bool_))

    def read_into(self, parts: Any) -> None:
        for offset, view in parts:
            view[:] = self.content[offset:offset + len(view)]


@given(questions)
def test_a_question_arrives(question: Question) -> None:
    assert Question.decode(question.encode(), SIZES) == question


@given(questions, st.data())
def test_an_answer_arrives(question: Question, data: st.DataObject) -> None:
    count = question.blocks
    zero = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    hashes = np.arange(2 * count, dtype=np.uint64).reshape(-1, 2)
    found = Answer.decode(Answer(question.number, zero, hashes).encode(), {question.number: question})
    assert found is not None
    assert (found.zero == zero).all() and (found.hashes[~zero] == hashes[~zero]).all()


@given(st.lists(st.integers(0, 3), min_size=256, max_size=256), ranges.filter(bool), st.sampled_from([COARSE, FINE]))
def test_the_answer_is_what_the_disk_holds(values: list[int], asked: list[tuple[int, int]], grain: int) -> None:
    content = b"".join(bytes([value]) * 4096 for value in values)
    stores: Any = [Memory(bytes(SIZES[1])), Memory(content)]
    found = answer(stores, Question(1, 1, grain, asked))
    blocks = [content[offset + at:offset + min(at + grain, length)]
              for offset, length in asked for at in range(0, length, grain)]
    assert len(blocks) == len(found.zero) == len(found.hashes)
    for block, zero, (low, high) in zip(blocks, found.zero.tolist(), found.hashes.tolist(), strict=True):
        if zero:
            assert not any(block)
        else:
            assert low.to_bytes(8, "little") + high.to_bytes(8, "little") == xxhash.xxh3_128_digest(block)


@pytest.mark.parametrize(("disk", "grain", "asked"), [
    (2, FINE, [(0, 512)]),
    (0, 8192, [(0, 512)]),
    (0, 0, [(0, 512)]),
    (0, FINE, [(0, 0)]),
    (0, FINE, [(1, 512)]),
    (0, FINE, [(0, 513)]),
    (1, FINE, [(SIZES[1], 512)]),
    (1, FINE, [(SIZES[1] - 512, 1024)]),
    (1, FINE, [(2**64 - 512, 1024)]),
    (0, COARSE, [(0, MOST_BYTES), (MOST_BYTES, 512)]),
])
def test_a_question_that_makes_no_sense_is_refused(disk: int, grain: int, asked: list[tuple[int, int]]) -> None:
    with pytest.raises(WireError, match="question about"):
        Question.decode(Question(1, disk, grain, asked).encode(), SIZES)


@given(st.binary(max_size=200), st.integers(0, 64))
def test_whatever_arrives(payload: bytes, blocks: int) -> None:
    asked = Question(int.from_bytes(payload[:8], "little"), 0, FINE, [(0, FINE * blocks)] if blocks else [])
    with contextlib.suppress(WireError):
        Question.decode(payload, SIZES)
    with contextlib.suppress(WireError):
        found = Answer.decode(payload, {asked.number: asked})
        assert found is not None and len(found.zero) == len(found.hashes) == blocks


def test_an_answer_that_nobody_asked_for_is_none() -> None:
    """It is of a copy that ended."""
    assert Answer.decode(Answer(5, np.ones(1, np.bool_), np.zeros((1, 2), np.uint64)).encode(), {}) is None


def test_nothing_has_no_checksums() -> None:
    assert hashed([], FINE).shape == (0, 2)
    assert runs(np.zeros(0, np.bool_)) == []
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
