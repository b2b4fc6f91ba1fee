"""Values stay values in HTML and Markdown, whatever they hold."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pfedmma_deploy.templates import code, environment, escape_markdown


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("cat", "cat"),
        ("fire_truck 4 - 1.5 %", "fire_truck 4 - 1.5 %"),
        ("a [b] c", "a [b] c"),
        ("[a](http://b)", r"[a\](http://b)"),
        ("[a]: http://b", r"[a\]: http://b"),
        ("_a_ *b* `c` ~d~", r"\_a\_ \*b\* \`c\` \~d\~"),
        ("<b>|&amp;", "&lt;b&gt;&#124;&amp;amp;"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("---", r"\---"),
        ("a\n\n- b\r\nc", "a  - b c"),
        (r"a\b", r"a\\b"),
    ],
)
def test_markdown(text: str, markdown: str) -> None:
    assert escape_markdown(text) == markdown


def test_code_spans() -> None:
    assert code("a *b*\n") == "`a *b*`"
    assert code("`x` and ``y``") == "``` `x` and ``y`` ```"


def test_html_and_unknown_names() -> None:
    from jinja2 import UndefinedError

    page = environment("demo", autoescape=True).from_string("<b>{{ name }}</b>")
    assert page.render(name="<i>'") == "<b>&lt;i&gt;&#39;</b>"
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        page.render()


def test_jinja_waits_until_it_is_needed() -> None:
    program = "import sys, pfedmma_deploy.templates; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
