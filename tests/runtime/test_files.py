"""Files appear whole or not at all, and a killed writer leaves nothing that stays."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from longscan.runtime.files import parse_json, replacing


def _write_and_die(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "a [1].st"
    path.write_text("whole")
    for _ in range(3):
        writer = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(path,))
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL and path.read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 2  # each removed the one before
    with replacing(path) as mine, replacing(path) as other:  # two at once keep out of each other's way
        mine.write_text("mine")
        other.write_text("other")
    assert [p.name for p in tmp_path.iterdir()] == ["a [1].st"] and path.read_text() == "mine"


@pytest.mark.parametrize("text", ['"\\ud800"', '{"a": ["\\udfff\\ud83d"]}', '{"\\udc00": 1}'])
def test_half_a_surrogate_pair_is_refused_where_it_would_be_written_again(text):
    with pytest.raises(ValueError, match="half a surrogate pair"):
        parse_json(text)
    parse_json(text, halves=True)
    assert parse_json(r'"\ud83d\ude00"') == "\U0001f600"
