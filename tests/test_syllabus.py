"""The syllabus agrees with the lessons that exist and with the package."""

from __future__ import annotations

import importlib

import pytest

from ddpm_from_scratch.course import build, exercises, plots, syllabus

SOURCES = {int(path.name[:2]): path for path in sorted(build.SOURCES.glob("[0-9][0-9]_*.py"))}


def test_fourteen_lessons_in_order():
    assert [lesson.number for lesson in syllabus.LESSONS] == list(range(14))
    assert all(15 <= lesson.minutes <= 60 for lesson in syllabus.LESSONS)
    stages = [syllabus.STAGES.index(lesson.stage) for lesson in syllabus.LESSONS]
    assert stages == sorted(stages) and set(stages) == set(range(len(syllabus.STAGES)))


@pytest.mark.parametrize("number", SOURCES)
def test_a_lesson_opens_with_the_title_and_minutes_of_the_syllabus(number):
    lesson, first = syllabus.LESSONS[number], build.read_source(SOURCES[number])[0]
    assert first.text.startswith(f"# {number:02d} · {lesson.title}\n")
    assert f"About {lesson.minutes} minutes" in first.text


@pytest.mark.parametrize("number", SOURCES)
def test_the_exercises_fit_into_the_lesson(number):
    minutes = sum(exercise.minutes for exercise in exercises.of_lesson(f"{number:02d}"))
    assert minutes < syllabus.LESSONS[number].minutes


@pytest.mark.parametrize("number", SOURCES)
def test_what_a_lesson_builds_exists(number):
    for module in filter(None, syllabus.LESSONS[number].builds.split(", ")):
        importlib.import_module(f"ddpm_from_scratch.{module}")


def test_the_map_and_the_table_name_every_lesson():
    figure = syllabus.map_figure()
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {lesson.title for lesson in syllabus.LESSONS} <= words
    assert {f"{lesson.minutes} min" for lesson in syllabus.LESSONS} <= words
    assert all(f"| {lesson.number:02d} | {lesson.title} |" in syllabus.table() for lesson in syllabus.LESSONS)
    assert plots.to_png(figure)
