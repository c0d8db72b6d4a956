"""Writing files whole or row by row, hashing what they hold, and recording what software made them."""

import io
import json
from pathlib import Path

import pytest

from aqa_lib.runtime import files

ROW = {"id": "a", "question": "What?", "choices": ["dog", "cat"], "answer": "dog", "task": "sound"}


def test_the_environment_is_recorded():
    made = files.environment()
    assert made["torch"] and made["python"].startswith("3.")
    assert made["commit"] is None or (len(made["commit"]) == 40 and made["dirty"] in (True, False))


def test_a_short_write_is_continued():
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(data[:3])  # as a disk does that has no room for more

    files.append(file := Slow(), ROW)
    assert json.loads(file.getvalue()) == ROW and file.getvalue().endswith(b"\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_in_one_sentence():
    with open("/dev/full", "ab", buffering=0) as file:
        with pytest.raises(files.FileError, match="/dev/full: cannot be written .No space .*make room"):
            files.append(file, ROW)


def test_the_fingerprint_sees_the_questions_and_nothing_else():
    row = {"id": 7, "question": "What  is it?", "choices": ["a dog", "a cat "], "answer": "a dog"}
    same = {"id": "7", "question": "What is it?", "choices": ["a cat", "a dog"], "answer": "a dog", "more": 1}
    other = row | {"id": "8"}
    assert files.fingerprint([row, other]) == files.fingerprint([other, same])
    for change in ({"id": 8}, {"question": "Which?"}, {"choices": ["a dog", "a cow"]}, {"answer": ""}):
        assert files.fingerprint([row]) != files.fingerprint([row | change])
