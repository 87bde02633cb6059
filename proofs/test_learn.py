"""Each exercise shows what the page says of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from learn.exercises import EXERCISES, Exercise
from learn.page import PAGE, page
from stack.settings import ROOT


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda each: each.title)
def test_an_exercise_shows_what_its_page_says(exercise: Exercise) -> None:
    seen = exercise.run()
    assert seen.holds, "\n".join([exercise.claim, *seen.lines])


def test_the_page_is_made_of_the_exercises() -> None:
    assert PAGE.read_text() == page(), "python -m learn --write-docs"


def test_a_number_that_is_none_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "learn", "11"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "N=11: must be a number from 1 to 10, or all\n")


def test_one_is_asked_run_and_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "learn", "2"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    told = [EXERCISES[1].question, "python main.py has ended by itself, with status 0", EXERCISES[1].claim]
    assert [text for text in told if text not in done.stdout] == []
