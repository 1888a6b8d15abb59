"""The mistake bank's report: `python tests/mistake_bank.py` replays every known mistake and every alternative."""

from __future__ import annotations

import sys

from ddpm_from_scratch.course import exercises
from ddpm_from_scratch.course.engine import Verdict, grade
from ddpm_from_scratch.course.exercise import Exercise


def replay(exercise: Exercise) -> list[Verdict]:
    """What each known mistake gets."""
    return [grade(exercise, mistake.answer) for mistake in exercise.mistakes]


def undiagnosed(exercise: Exercise, verdicts: list[Verdict]) -> list[str]:
    """The mistakes that do not get their own sentence, and the right answers that are refused."""
    found = []
    for number, verdict in enumerate(verdicts):
        if (verdict.status, verdict.mistake) != ("wrong", number):
            got = verdict.status if verdict.mistake is None else f"taken for mistake {verdict.mistake}"
            found.append(f"{exercise.id}: mistake {number} is {got}: {verdict.message}")
    for answer in (exercise.reference, *exercise.alternatives):
        verdict = grade(exercise, answer)
        if verdict.status != "right":
            found.append(f"{exercise.id}: {answer.__name__} is right, but: {verdict.message}")
    return found


def main() -> int:
    bank = exercises.all_exercises()
    failures = [line for exercise in bank for line in undiagnosed(exercise, replay(exercise))]
    mistakes, alternatives = (sum(len(getattr(e, what)) for e in bank) for what in ("mistakes", "alternatives"))
    print(*failures, sep="\n", end="\n" * bool(failures))
    print(f"{len(bank)} exercises, {mistakes} mistakes, {alternatives} alternatives, {len(failures)} failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
