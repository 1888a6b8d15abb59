"""The course: exercises and their checks, the lesson generator, progress."""
