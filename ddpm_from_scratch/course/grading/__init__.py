"""Grading a folder of students' notebooks: `ddpm course grade FOLDER`.

A notebook is a stranger's program. What keeps it from gaining or harming anything, module by module:

- `notebooks`: the file is read as text; where each answer is, and whether it is blank, is decided without running it.
- `edition`: a copy of the package from which the exercises' answers are removed; only this copy enters the sandbox.
- `sandbox`: one process in bubblewrap: no network, nothing to read but Python and that copy, no further processes,
  limits on memory, disk and time.
- `inside`: what runs there: the notebook's cells and, after each answer, the answer on the exercise's inputs.
- `plain`: all that comes out: numbers, text and tensors, never an object.
- `judge`: outside, the exercise engine compares these outputs with the reference, which was never inside.
- `folder`: every notebook in turn, several at a time, each in processes of its own.
- `gradebook`: the rows as CSV, as a table and as JUnit.
"""
