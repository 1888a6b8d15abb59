"""The registry: module `lNN` holds the exercises of lesson NN as a tuple `EXERCISES`."""

from __future__ import annotations

import importlib
import pkgutil

from ddpm_from_scratch.course.exercise import Exercise


def lessons() -> list[str]:
    """Numbers of the lessons that have exercises, in order: ["00", "01", ...]."""
    return sorted(module.name[1:] for module in pkgutil.iter_modules(__path__) if module.name[1:].isdigit())


def of_lesson(lesson: str) -> tuple[Exercise, ...]:
    """The exercises of lesson "NN", in order; none for a lesson without exercises."""
    if lesson not in lessons():
        return ()
    return importlib.import_module(f"{__name__}.l{lesson}").EXERCISES


def all_exercises() -> tuple[Exercise, ...]:
    """Every exercise of the course, in order."""
    return tuple(exercise for lesson in lessons() for exercise in of_lesson(lesson))


def get(exercise_id: str) -> Exercise:
    """The exercise called `exercise_id`, as "01.2".

    Raises:
        ValueError: no such exercise; the message lists those of the lesson, or the lessons.
    """
    lesson = str(exercise_id).partition(".")[0]
    exercises = of_lesson(lesson)
    for exercise in exercises:
        if exercise.id == exercise_id:
            return exercise
    known = (
        ", ".join(exercise.id for exercise in exercises) or ", ".join(f"{number}.1" for number in lessons()) + ", ..."
    )
    raise ValueError(f"there is no exercise {exercise_id!r}: write the id as text, one of {known}")
