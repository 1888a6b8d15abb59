"""JupyterLab in a real browser: serving it as `make lab` does, running a notebook, reading what is on the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import nbformat

from ddpm_from_scratch.course import workspace

WHOLE_NOTEBOOK = {"windowingMode": "none", "autoStartDefaultKernel": True}
"""All cells are in the page, also those out of sight."""
STDERR = "application/vnd.jupyter.stderr"
BANNERS = ".jp-Dialog, .jp-toast-container .Toastify__toast"


@contextmanager
def served_lab(work: Path, home: Path, start: str) -> Iterator[str]:
    """JupyterLab on `work` as `make lab` serves it without a display; yields the address it prints."""
    workspace.quieten_lab()
    environment = workspace.lab_environment({**os.environ, "HOME": str(home), "VIRTUAL_ENV": "/nonexistent"})
    command = workspace.lab_command(work, start, browser=False)
    log = home / "lab.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (address := re.search(r"http://(localhost|127\.0\.0\.1)\S+token=\w+", log.read_text())):
            assert server.poll() is None and time.monotonic() < end, (
                f"JupyterLab printed no address:\n{log.read_text()}"
            )
            time.sleep(0.1)
        yield address[0]
    finally:
        server.terminate()
        server.wait(timeout=30)


def keep_all_cells_in_the_page(home: Path) -> None:
    """Settings of a user in whose browser a notebook is drawn as a whole."""
    folder = home / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
    folder.mkdir(parents=True)
    (folder / "tracker.jupyterlab-settings").write_text(json.dumps(WHOLE_NOTEBOOK))


class Lab:
    """A running JupyterLab and the folder that it serves."""

    def __init__(self, address: str, work: Path) -> None:
        self.work = work
        self.token = parse_qs(urlsplit(address).query)["token"][0]
        self.root = address.split("/lab")[0]

    def write(self, name: str, cells: Sequence[str]) -> Path:
        """A notebook of these code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.work / name)
        return self.work / name

    def open(self, page: Any, name: str) -> Path:
        """The notebook alone on the page, its kernel started."""
        page.goto(f"{self.root}/lab/tree/{quote(name)}?reset&token={self.token}")
        wait_for_kernel(page)
        return self.work / name

    def stop_kernels(self) -> None:
        """End every kernel, so that the next test has the memory."""
        for kernel in json.loads(self._call("GET", "api/kernels")):
            self._call("DELETE", f"api/kernels/{kernel['id']}")

    def _call(self, method: str, path: str) -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.root}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


# ---------------------------------------------------------------- a notebook on the page


def wait_for_kernel(page: Any) -> None:
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()


def choose(page: Any, menu: str, *path: str) -> None:
    """Choose an entry of the menu bar, such as `choose(page, "Run", "Run All Cells")`."""
    page.locator(".lm-MenuBar-itemLabel").get_by_text(menu, exact=True).click()
    for entry in path:
        page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).last.click()


def run_all(page: Any, notebook: Path, seconds: float) -> nbformat.NotebookNode:
    """Choose Run > Run All Cells, wait for the last cell, save; the notebook as saved."""
    wait_for_kernel(page)
    choose(page, "Run", "Run All Cells")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        page.wait_for_timeout(1000)
        page.keyboard.press("Control+s")
        try:
            saved = nbformat.read(notebook, as_version=4)
        except nbformat.reader.NotJSONError:  # JupyterLab is writing it
            continue
        code = [cell for cell in saved.cells if cell.cell_type == "code"]
        if errors(saved) or all(cell.execution_count for cell in code):
            return saved
    raise AssertionError(f"the cells did not finish in {seconds:.0f} s")


def run_cell(page: Any, number: int, seconds: float = 60) -> str:
    """Run one code cell, by its number from 0; the text that it prints."""
    cell = page.locator(".jp-CodeCell").nth(number)
    prompt = cell.locator(".jp-InputArea-prompt")
    before, end = prompt.inner_text(), time.monotonic() + seconds
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    while prompt.inner_text() == before or "*" in prompt.inner_text():
        assert time.monotonic() < end, f"cell {number} did not finish in {seconds:.0f} s"
        page.wait_for_timeout(100)
    return str(cell.locator(".jp-OutputArea-output").first.inner_text()).strip()


def outputs(saved: nbformat.NotebookNode) -> list[Any]:
    """Every output of a notebook, in order."""
    return [output for cell in saved.cells if cell.cell_type == "code" for output in cell.outputs]


def errors(saved: nbformat.NotebookNode) -> list[str]:
    """The errors among a notebook's outputs, in words."""
    found = [output for output in outputs(saved) if output.output_type == "error"]
    return [f"{output.ename}: {output.evalue}" for output in found]


def warnings_on(page: Any) -> list[str]:
    """Questions, banners and red text on the page."""
    shown = page.locator(f'{BANNERS}, .jp-OutputArea-output[data-mime-type="{STDERR}"]')
    return [text.strip() for text in shown.all_inner_texts()]


def set_theme(page: Any, theme: str) -> None:
    """Choose the theme "Light" or "Dark" and wait until it is there."""
    choose(page, "Settings", "Theme", f"JupyterLab {theme}")
    page.locator(f"body[data-jp-theme-light={'true' if theme == 'Light' else 'false'}]").wait_for(state="attached")
    page.wait_for_timeout(500)


TOO_WIDE = """
() => [...document.querySelectorAll('.jp-OutputArea-output, .jp-MarkdownOutput')]
  .filter(area => area.scrollWidth > area.clientWidth + 2)
  .map(area => `${area.scrollWidth} of ${area.clientWidth} pixels: ${area.innerText.trim().slice(0, 80)}`)
"""


def too_wide(page: Any) -> list[str]:
    """Texts and outputs that do not fit between the margins, so that one has to scroll sideways."""
    found: list[str] = page.evaluate(TOO_WIDE)
    return found


ILLEGIBLE = """
() => {
  const parse = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const alpha = c => c.length > 3 ? c[3] : 1;
  const over = (top, below) => top.slice(0, 3).map((v, i) => alpha(top) * v + (1 - alpha(top)) * below[i]);
  const luminance = c => {
    const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (alpha(colour) > 0) layers.push(colour);
      if (alpha(colour) === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [];
  const judge = (element, colour, least, words) => {
    const behind = ground(element), ratio = contrast(over(parse(colour), behind), behind);
    const facts = `${ratio.toFixed(2)} of ${least}, ${colour} on rgb(${behind.map(Math.round)})`;
    if (ratio < least) found.push(`${words}: ${facts}`);
  };
  for (const area of document.querySelectorAll('.jp-OutputArea-output, .jp-MarkdownOutput')) {
    const texts = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
      if (!text || !element.getClientRects().length || element.closest('script, style, mjx-container')) continue;
      const style = getComputedStyle(element), size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      judge(element, style.color, large ? 3 : 4.5, text.slice(0, 40));
    }
    for (const box of area.querySelectorAll('[style*="border-left"]'))
      judge(box.parentElement, getComputedStyle(box).borderLeftColor, 3, `the bar of “${box.innerText.slice(0, 30)}”`);
    for (const image of area.querySelectorAll('img')) {
      if (!image.complete || !image.naturalWidth) { found.push(`a picture that is not there: ${image.alt}`); continue; }
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const pen = canvas.getContext('2d');
      pen.drawImage(image, 0, 0);
      const corner = Array.from(pen.getImageData(0, 0, 1, 1).data);
      if (corner[3] < 255 || luminance(corner) < 0.9)
        found.push(`a picture not on light paper: ${image.alt || image.title}`);
    }
  }
  return [...new Set(found)];
}
"""
"""What a reader could not read well in the outputs and texts of the page: text of too little contrast with what is
behind it (WCAG 2 AA: 4.5, large text 3), bars beside boxes (3), and pictures without a light ground of their own."""


def illegible(page: Any) -> list[str]:
    """See `ILLEGIBLE`."""
    return list(page.evaluate(ILLEGIBLE))


TALL = 4000
"""Pixels of a window that a picture of it still shows legibly."""


def photograph(page: Any, path: Path) -> None:
    """The whole notebook, not only what fits the window: `path`, and for what is further down `…_2.png` and so on."""
    for old in [path, *path.parent.glob(f"{path.stem}_[0-9]*.png")]:
        old.unlink(missing_ok=True)
    size = page.viewport_size
    ends = "[...outer.querySelectorAll('.jp-Cell')].map(e => e.getBoundingClientRect().bottom - top + outer.scrollTop)"
    shown = "const outer = document.querySelector('.jp-WindowedPanel-outer'), top = outer.getBoundingClientRect().top"
    scroll = "top => document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => e.scrollTo(0, top))"
    page.set_viewport_size({"width": size["width"], "height": 300})
    bottom = int(page.evaluate(f"() => {{ {shown}; return Math.max(...{ends}) }}"))
    page.set_viewport_size({"width": size["width"], "height": min(bottom + 150, TALL)})
    page.evaluate(scroll, 0)
    page.wait_for_timeout(500)
    seen = int(page.evaluate("document.querySelector('.jp-WindowedPanel-outer').clientHeight"))
    for part, top in enumerate(range(0, bottom, seen), start=1):
        page.evaluate(scroll, top)
        page.wait_for_timeout(200)
        page.screenshot(path=path if part == 1 else path.with_stem(f"{path.stem}_{part}"))
    page.set_viewport_size(size)
