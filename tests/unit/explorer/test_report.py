"""The report's parts: bundling, payloads, one page with nothing outside."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from convlens.explorer import bundle as bundling
from convlens.explorer.bundle import bundle, static_file
from convlens.explorer.payload import plain, quantised, thumbnail
from convlens.explorer.report import page

RECORD = {"title": "</title><script>alert(1)</script>", "model": {"classes": ["<img src=x onerror=alert(1)>"]}}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "js").mkdir()
    monkeypatch.setattr(bundling, "static_file", lambda name: tmp_path / name)

    def write(name: str, text: str) -> None:
        (tmp_path / "js" / f"{name}.js").write_text(text)

    bundle.cache_clear()
    yield write
    bundle.cache_clear()


def test_modules_come_once_and_after_what_they_import(modules):
    modules("low", "export const one = 1;\n")
    modules("mid", 'import { one } from "./low.js";\nexport function two() { return one + one; }\n')
    modules("top", 'import { one } from "./low.js";\nimport { two } from "./mid.js";\ntwo(one);\n')
    text = bundle("top")
    assert text.count("const one = 1;") == 1
    assert text.index("const one = 1;") < text.index("function two()") < text.index("two(one);")
    assert not re.search(r"^\s*(import|export)\b", text, re.M)


def test_other_forms_and_circles_are_refused(modules):
    modules("default", "export default 3;\n")
    with pytest.raises(ValueError, match="cannot be bundled: export default"):
        bundle("default")
    modules("a", 'import { b } from "./b.js";\nexport const a = 1;\n')
    modules("b", 'import { a } from "./a.js";\nexport const b = 1;\n')
    with pytest.raises(ValueError, match="a → b → a"):
        bundle("a")


def test_a_page_admits_its_own_scripts_only():
    pytest.importorskip("plotly")
    html = page(RECORD)
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    record = re.search(r'<script type="application/json" id="record">(.*?)</script>', html, re.S)[1]
    assert json.loads(record) == RECORD


def test_quantised_keeps_shape_and_range():
    values = np.array([[0.0, 0.5], [1.0, np.nan]], dtype=np.float32)
    record = quantised(values)
    assert record["shape"] == [2, 2]
    assert (record["low"], record["high"]) == (0.0, 1.0)
    assert list(base64.b64decode(record["data"])) == [0, 128, 255, 0]
    assert quantised(np.zeros((0, 3)))["data"] == ""


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((1, 8, 9), np.uint8, "image"),
        ((3, 8, 9), np.uint8, "image"),
        ((156, 5, 5), np.float32, "spectral"),
        ((2, 8, 9), np.float32, "image"),
        ((1, 6, 7, 8), np.float32, "volume"),
    ],
)
def test_thumbnails_of_every_kind(shape, dtype, kind):
    values = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    record = thumbnail(values, kind)
    assert record["kind"] == "picture"
    assert record["uri"].startswith("data:image/png;base64,")


def test_signals_are_curves():
    record = thumbnail(np.zeros((2, 5), np.float32), "signal")
    assert record["kind"] == "curve"
    assert np.shape(record["values"]) == (2, 5)


def test_plain_values():
    assert plain({"a": (np.float32(1.5), float("nan"), np.arange(2))}) == {"a": [1.5, None, [0, 1]]}


def test_every_colour_of_text_stands_out_in_light_and_dark():
    """WCAG AA: 4.5 to 1 against the page and against a card, for every colour that text is written in."""
    style = static_file("style.css").read_text(encoding="utf-8")
    themes = re.findall(r":root \{([^}]*)\}", style)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", theme))
        for name in ("text", "soft", "blue", "orange", "green", "red", "focus"):
            for ground in ("back", "card"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground, theme)


def contrast(a: str, b: str) -> float:
    """Ratio of relative luminances, as WCAG 2.1 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_wcag_does():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
