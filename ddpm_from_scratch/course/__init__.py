"""The course: exercises and their checks, hints, solutions and progress.

from ddpm_from_scratch.course import check, hint, progress, setup, solution
"""

from .display import CourseError, WrongAnswer, check, hint, progress, setup, solution

__all__ = ["CourseError", "WrongAnswer", "check", "hint", "progress", "setup", "solution"]
