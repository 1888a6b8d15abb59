"""The set-up: its files agree with each other, the learner's folder keeps answers, the runner reports the truth."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import line_counts
import pytest
import run
import typer
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

from ddpm_from_scratch.course import syllabus, workspace

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
POSIX = pytest.mark.skipif(os.name != "posix", reason="make and sh are for Linux and macOS")


def locked() -> dict[str, list[tuple[str, Marker | None]]]:
    """Package name → its pinned versions, each with the marker under which it is installed."""
    pins: dict[str, list[tuple[str, Marker | None]]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\").strip())
            version = str(requirement.specifier).removeprefix("==")
            pins.setdefault(requirement.name, []).append((version, requirement.marker))
    return pins


# The files agree


def test_what_the_package_reads_is_installed_with_it() -> None:
    """A clone finds its data files anyway; one who installs a wheel has those that pyproject.toml names."""
    package = ROOT / "ddpm_from_scratch"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["ddpm_from_scratch"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    unread = {".py", ".pyc", ".toml"}
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix not in unread]
    there = {path for path in files if not any(part.startswith(".") for part in path.relative_to(package).parts)}
    assert len(there) > 40 and there <= installed, sorted(there - installed)


def test_conda_states_what_pyproject_states() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"] == [
        f"python{PROJECT['requires-python']}",
        "pip",
        {"pip": ["-e .[test]"]},
    ]


def test_lock_pins_every_dependency_within_its_range() -> None:
    pins = locked()
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        requirement = Requirement(line)
        versions = pins.get(requirement.name.replace("_", "-"), [])
        assert versions, f"{requirement.name} is not in requirements.lock: run make lock"
        assert all(requirement.specifier.contains(version) for version, _ in versions), f"{line}, locked {versions}"


def test_lock_has_hashes_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|file:|--(extra-)?index|--find-links", text)
    blocks = re.split(r"\n(?=\S)", text)
    assert all("--hash=sha256:" in block for block in blocks if not block.startswith("#"))


def code_of(text: str) -> list[str]:
    """The fenced blocks and the inline code of a Markdown text."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def test_readme_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    assert {"lab", "test", "test-long", "demo", "lint", "lessons", "lessons-update", "help"} <= targets
    code = "\n".join(code_of(README))
    assert set(re.findall(r"^make ([a-z-]+)", code, flags=re.MULTILINE)) <= targets
    for module in re.findall(r"-m (ddpm_from_scratch[\w.]*)", code):
        assert importlib.util.find_spec(module), f"README names {module}, which does not exist"


def test_readme_commands_have_the_options_it_uses() -> None:
    from ddpm_from_scratch.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"\b(?:ddpm|ddpm_from_scratch\.cli) ([a-z]+)(.*)", "\n".join(code_of(README)))
    assert {"train", "sample", "eval", "info"} <= {name for name, _ in lines}
    for name, rest in lines:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, f"ddpm {name}{rest}"


def test_command_line_runs_as_a_module_as_accelerate_launches_it() -> None:
    command = [sys.executable, "-m", "ddpm_from_scratch.cli", "train", "--help"]
    assert "dataset" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_readme_states_the_python_range_and_the_lessons() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert README.count("Python 3.11 or newer") >= 2
    assert syllabus.table() in README, "put the table of course/syllabus.py into the README"
    written = {lesson.name[:2] for lesson in (ROOT / "lessons").glob("*.ipynb")}
    assert written <= {f"{lesson.number:02d}" for lesson in syllabus.LESSONS}


@pytest.mark.parametrize("way", ["pip", "uv", "conda", "Windows without make"])
def test_readme_gives_each_way_its_three_lines(way: str) -> None:
    block = re.search(rf"^{way}[^\n]*:\n\n```\w+\n(.*?)```", README, flags=re.DOTALL | re.MULTILINE)
    assert block and block[1].count("\n") == 3


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
    assert "set -euo pipefail" in lines
    assert "make test" in (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")


@POSIX
def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert phony and set(phony[1].split()) == set(re.findall(r"^  make (\S+)  ", listed, flags=re.MULTILINE))


# The set-up script, with a Python and a uv that only write down how they were called

FAKE_PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in *base_executable*) echo "$0" ;; esac
"""
FAKE_UV = """#!/bin/sh
echo "uv $*" >>"$CALLS"
case "$1" in venv) mkdir -p .venv/bin && cp "$FAKE_PYTHON" .venv/bin/python ;; esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The set-up's files in a folder whose path has spaces, and a PATH with the few tools the script needs."""
    folder, tools = tmp_path / "a clone", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    for name in ("bootstrap.sh", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    for name in ("sh", "cat", "cksum", "dirname", "rm", "mkdir", "cp", "awk"):
        (tools / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name} on this machine"))
    return folder


def add_tool(clone: Path, name: str, script: str) -> None:
    path = clone.parent / "bin" / name
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)


def bootstrap(clone: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script; what it did and the calls it made."""
    calls, tools = clone.parent / "calls", clone.parent / "bin"
    calls.write_text("", encoding="utf-8")
    environment = {"PATH": str(tools), "CALLS": str(calls), "FAKE_PYTHON": str(tools / "python3")}
    done = subprocess.run(
        ["sh", "bootstrap.sh"], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    return done, calls.read_text(encoding="utf-8").splitlines()


@POSIX
@pytest.mark.parametrize("old", [False, True])
def test_setup_without_a_new_enough_python_says_so_in_one_line(clone: Path, old: bool) -> None:
    if old:
        add_tool(clone, "python3", "#!/bin/sh\nexit 1\n")
    done, _ = bootstrap(clone)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "no Python 3.11 or newer found" in done.stderr
    assert not (clone / ".venv").exists()


@POSIX
def test_setup_runs_once_and_again_when_the_lock_or_the_path_changes(clone: Path) -> None:
    add_tool(clone, "python3", FAKE_PYTHON)
    add_tool(clone, "uv", FAKE_UV)
    done, calls = bootstrap(clone)
    assert done.returncode == 0, done.stderr
    assert any("--require-hashes -r requirements.lock" in call for call in calls)
    assert any("--no-deps" in call and call.endswith("-e .") for call in calls)

    done, calls = bootstrap(clone)
    assert done.returncode == 0
    assert calls == []

    with (clone / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write("# changed\n")
    assert any("requirements.lock" in call for call in bootstrap(clone)[1])

    moved = clone.rename(clone.parent / "moved clone")
    assert any(call.endswith("-e .") for call in bootstrap(moved)[1])


@POSIX
def test_setup_that_failed_is_tried_again(clone: Path) -> None:
    add_tool(clone, "python3", FAKE_PYTHON)
    add_tool(clone, "uv", FAKE_UV + 'case "$*" in *--require-hashes*) exit 1 ;; esac\n')
    done, _ = bootstrap(clone)
    assert done.returncode != 0
    assert "needs the network" in done.stderr
    add_tool(clone, "uv", FAKE_UV)
    done, calls = bootstrap(clone)
    assert done.returncode == 0
    assert any("requirements.lock" in call for call in calls)


@POSIX
def test_setup_without_venv_module_says_what_to_install(clone: Path) -> None:
    add_tool(clone, "python3", FAKE_PYTHON + 'case "$*" in "-m venv"*) exit 1 ;; esac\n')
    done, _ = bootstrap(clone)
    assert done.returncode != 0
    assert "sudo apt install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


# The learner's folder


@pytest.fixture
def lessons(tmp_path: Path) -> Path:
    folder = tmp_path / "lessons"
    folder.mkdir()
    for name in ("00_start_here.ipynb", "01_forward_process.ipynb"):
        (folder / name).write_text(f"{name}, first version", encoding="utf-8")
    return folder


@pytest.fixture
def work(lessons: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "my work"
    workspace.copy_lessons(lessons, folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.iterdir()) if p.name != workspace.RECORD}


def test_lessons_are_copied_once_and_an_answer_is_never_overwritten(lessons: Path, work: Path) -> None:
    assert contents(work) == contents(lessons)
    (work / "01_forward_process.ipynb").write_text("my answer", encoding="utf-8")
    (lessons / "01_forward_process.ipynb").write_text("second version", encoding="utf-8")
    (lessons / "02_schedules.ipynb").write_text("new lesson", encoding="utf-8")
    written = workspace.copy_lessons(lessons, work)
    assert [path.name for path in written] == ["02_schedules.ipynb"]
    assert contents(work)["01_forward_process.ipynb"] == "my answer"


def test_a_deleted_lesson_comes_back_fresh(lessons: Path, work: Path) -> None:
    (work / "00_start_here.ipynb").unlink()
    workspace.copy_lessons(lessons, work)
    assert contents(work) == contents(lessons)


def test_update_lays_changed_lessons_beside_answers(lessons: Path, work: Path) -> None:
    (work / "01_forward_process.ipynb").write_text("my answer", encoding="utf-8")
    assert workspace.copy_lessons(lessons, work, update=True) == []  # nothing changed upstream

    for lesson in lessons.iterdir():
        lesson.write_text("second version", encoding="utf-8")
    workspace.copy_lessons(lessons, work, update=True)
    assert contents(work) == {
        "00_start_here.ipynb": "second version",  # never touched: replaced
        "01_forward_process.ipynb": "my answer",
        "01_forward_process.new.ipynb": "second version",
    }
    assert workspace.copy_lessons(lessons, work, update=True) == []

    (work / "01_forward_process.new.ipynb").write_text("my second answer", encoding="utf-8")
    (lessons / "01_forward_process.ipynb").write_text("third version", encoding="utf-8")
    workspace.copy_lessons(lessons, work, update=True)
    assert contents(work)["01_forward_process.ipynb"] == "my answer"
    assert contents(work)["01_forward_process.new.ipynb"] == "my second answer"
    assert contents(work)["01_forward_process.new2.ipynb"] == "third version"


def test_a_lesson_that_was_only_opened_counts_as_untouched(tmp_path: Path) -> None:
    """JupyterLab's autosave writes kernel and language into the metadata; a cell that was run has outputs."""
    lessons, work = tmp_path / "lessons", tmp_path / "work"
    lessons.mkdir()
    for name in ("00_opened.ipynb", "01_run.ipynb"):
        cells = [{"cell_type": "code", "source": ["1 + 1"], "outputs": [], "metadata": {}}]
        (lessons / name).write_text(json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
    workspace.copy_lessons(lessons, work)
    for name in ("00_opened.ipynb", "01_run.ipynb"):
        notebook = json.loads((work / name).read_text())
        notebook["metadata"] = {"kernelspec": {"display_name": "Python 3 (ipykernel)"}}
        notebook["cells"][0]["outputs"] = ["2"] if name == "01_run.ipynb" else []
        (work / name).write_text(json.dumps(notebook, indent=1), encoding="utf-8")
        lesson = json.loads((lessons / name).read_text())
        lesson["cells"][0]["source"] = ["2 + 2"]
        (lessons / name).write_text(json.dumps(lesson), encoding="utf-8")
    written = [path.name for path in workspace.copy_lessons(lessons, work, update=True)]
    assert written == ["00_opened.ipynb", "01_run.new.ipynb"]


@pytest.mark.parametrize("record", [None, "not json", "[]"])
def test_a_lost_record_makes_every_file_the_learners(lessons: Path, work: Path, record: str | None) -> None:
    (work / workspace.RECORD).unlink()
    if record is not None:
        (work / workspace.RECORD).write_text(record, encoding="utf-8")
    before = contents(work)
    for lesson in lessons.iterdir():
        lesson.write_text("second version", encoding="utf-8")
    workspace.copy_lessons(lessons, work, update=True)
    assert {name: contents(work)[name] for name in before} == before
    assert contents(work)["00_start_here.new.ipynb"] == "second version"


def test_no_lessons_and_no_room_are_told_in_one_sentence(lessons: Path, tmp_path: Path) -> None:
    with pytest.raises(workspace.WorkspaceError, match="no lessons found"):
        workspace.copy_lessons(tmp_path / "nowhere", tmp_path / "work")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(workspace.WorkspaceError, match="cannot write the lessons"):
        workspace.copy_lessons(lessons, tmp_path / "file")


# JupyterLab


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a b"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/ttys001"}, "darwin", False),
        ({}, "win32", True),
    ],
)
def test_browser_opens_only_where_it_is_seen(environ: dict[str, str], platform: str, expected: bool) -> None:
    assert workspace.has_display(environ, platform) is expected


def test_labs_questions_are_settled_and_what_a_person_settled_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    file = tmp_path / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    workspace.quieten_lab()
    assert json.loads(file.read_text()) == workspace.LAB_SETTINGS
    widgets = "@jupyter-widgets/jupyterlab-manager:plugin"
    file.write_text(json.dumps({widgets: {"saveState": False}, "theirs": {"size": 3}}))
    workspace.quieten_lab()
    settled = json.loads(file.read_text())
    assert settled[widgets] == {"saveState": False} and settled["theirs"] == {"size": 3}
    assert settled.keys() == {"theirs", *workspace.LAB_SETTINGS}


def test_lab_starts_where_its_settings_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "share").write_text("a file where a folder belongs", encoding="utf-8")
    workspace.quieten_lab()
    (tmp_path / "share").unlink()
    file = tmp_path / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    file.parent.mkdir(parents=True)
    file.write_text("{half", encoding="utf-8")
    workspace.quieten_lab()
    assert file.read_text(encoding="utf-8") == "{half"


def test_lab_command_keeps_the_token_and_the_lesson(tmp_path: Path) -> None:
    command = workspace.lab_command(tmp_path / "my work", browser=False)
    assert f"--ServerApp.root_dir={tmp_path / 'my work'}" in command
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in command
    assert "--no-browser" in command
    assert "--no-browser" not in workspace.lab_command(tmp_path)
    assert not any("token" in part or "password" in part for part in command)
    assert ("--allow-root" in command) == (hasattr(os, "geteuid") and os.geteuid() == 0)


def test_python3_is_this_environments_kernel(tmp_path: Path) -> None:
    """Although the user has a kernel of that name and another environment is active."""
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(
        json.dumps({"argv": ["/nonexistent"], "display_name": "Gone", "language": "python"})
    )
    foreign = {
        "JUPYTER_DATA_DIR": str(tmp_path),
        "JUPYTER_PATH": str(tmp_path),
        "VIRTUAL_ENV": "/nonexistent",
        "PYTHONPATH": "/nonexistent",
    }
    code = "from jupyter_client import kernelspec as k; print(k.get_kernel_spec('python3').resource_dir)"
    environment = workspace.lab_environment({**os.environ, **foreign})
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(sys.prefix)


@POSIX
def test_make_is_not_led_astray_by_the_environment() -> None:
    """Of another environment, or of a container that forbids bytecode, nothing reaches what make runs."""
    foreign = dict.fromkeys(("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"), "1")
    probe = "include Makefile\nprobe:\n\t@env\n"
    command = ["make", "-s", "-f", "-", "probe"]
    done = subprocess.run(
        command, cwd=ROOT, input=probe, env={**os.environ, **foreign}, capture_output=True, text=True, check=True
    )
    handed_on = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "PATH" in handed_on and not handed_on & foreign.keys()


# The test runner


@pytest.mark.parametrize(("marker", "pattern"), [("fuzz", run.FUZZING), ("browser", run.BROWSER)])
def test_the_runner_reads_every_file_that_has_the_marker(marker: str, pattern: str) -> None:
    def marks(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        return any(isinstance(node, ast.Attribute) and ast.unparse(node) == f"pytest.mark.{marker}" for node in nodes)

    tests = ROOT / "tests"
    assert {path.name for path in tests.glob("test_*.py") if marks(path)} == {path.name for path in tests.glob(pattern)}


def pytest_on(folder: Path, source: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "test_sample.py").write_text(source, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", folder],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_a_skip_is_a_failure_under_ci(tmp_path: Path, ci: str, status: int) -> None:
    source = "import pytest\ndef test_a():\n    pytest.skip('no such tool')\n"
    done = pytest_on(tmp_path, source, {"CI": ci})
    assert done.returncode == status
    assert ("skipped, which is a failure under CI=true" in done.stdout and "no such tool" in done.stdout) == bool(ci)


def test_a_skipped_module_is_a_failure_under_ci(tmp_path: Path) -> None:
    source = "import pytest\npytest.importorskip('no_such_module')\n"
    assert pytest_on(tmp_path, source, {"CI": "true"}).returncode != 0


def test_fuzzing_tries_a_seed_even_without_time(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.fuzz\ndef test_a(fuzz_seeds):\n    assert list(fuzz_seeds()) == [0]\n"
    assert pytest_on(tmp_path, source, {"FUZZ_SECONDS": "0"}).returncode == 0


def test_runner_goes_on_after_a_failure_and_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "test_bad.py", tmp_path / "test_good.py"
    bad.write_text("def test_a():\n    assert 1 + 1 == 3\n", encoding="utf-8")
    good.write_text("def test_a():\n    pass\ndef test_b():\n    pass\n", encoding="utf-8")
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    stages = [run.Stage(path.stem, [str(path)], 60, 60, {}) for path in (bad, good)]
    stages.append(run.Stage("empty", ["-k", "nothing", str(good)], 60, 60, {}))
    stages.append(run.Stage("broken", [str(tmp_path / "missing.py")], 60, 60, {}))
    monkeypatch.setattr(run, "quick_stages", lambda: stages)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 2 failed, 0 skipped"


def test_runner_stops_a_stage_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "test_hang.py"
    hanging.write_text("import time\ndef test_a():\n    time.sleep(600)\n", encoding="utf-8")
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = run.run(run.Stage("hang", [str(hanging)], 1, 2, {}), [])
    assert (result.failed, result.note) == (1, "stopped after 2 s")


def test_line_counts_leave_out_what_is_not_code() -> None:
    function = 'def f(x):\n    """Doc\n    string."""\n    text = """a\n    b"""  # comment\n\n    return text\n'
    assert line_counts.code_lines(f'"""Module."""\n\n# comment\n{function}') == {4, 7, 8, 10}
