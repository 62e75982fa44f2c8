"""Every ```python block of the documentation runs, page by page in order; what follows a `>>>` must come out."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

from convlens.training import Recipe, train

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if "_build" not in path.parts and "```python\n" in path.read_text("utf-8")
)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `convlens train digits` has run, for one epoch."""
    folder = tmp_path_factory.mktemp("docs")
    train(Recipe(data="digits", epochs=1, seed=0), out=folder / "runs" / "digits-lenet5-1")
    return folder


def blocks(page: Path) -> list[tuple[int, str]]:
    """The examples of a page with the number of the line before each."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(DOCS)) for path in PAGES])
def test_page(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "class_evidence" in page.read_text(encoding="utf-8"):
        pytest.importorskip("captum")
    monkeypatch.chdir(workplace)
    torch.manual_seed(0)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    names: dict[str, object] = {}
    told: list[str] = []
    for line, source in blocks(page):
        if source.startswith(">>>"):
            test = parser.get_doctest(source, names, page.name, str(page), line)
            failed = runner.run(test, out=told.append, clear_globs=False).failed
            names = test.globs
            assert not failed, "".join(told)
        else:
            exec(compile("\n" * line + source, str(page), "exec"), names)
