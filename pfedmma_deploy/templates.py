"""HTML and Markdown from the templates in `assets/`: no value can become markup.

jinja2 escapes for HTML by itself. For Markdown every value passes `escape_markdown`, unless the
template says with `| code` that it stands in a code span, where nothing else may be escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_INLINE = re.compile(r"[\\`*#~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""Means something anywhere in a line: brackets do where they make a link, underscores except within
a word."""
_LEADING = re.compile(r"^(\d*)([-+=.)])(?=[-=\s]|$)")
"""Makes a list, a rule or a heading at the beginning of a line."""


def environment(folder: str, **options: Any) -> Environment:
    """The templates of folder `assets/<folder>`; an unknown name in one of them is an error.

    jinja2 is imported here and not before: few commands need it, and it takes a while.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("pfedmma_deploy", f"assets/{folder}"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def render_markdown(folder: str, name: str, **values: Any) -> str:
    """Template `name` of `assets/<folder>` with these values, each of them escaped."""
    return _markdown(folder).get_template(name).render(values)


@cache
def _markdown(folder: str) -> Environment:
    from markupsafe import Markup

    def finish(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return escape_markdown(value) if plain else value

    found = environment(folder, finalize=finish, keep_trailing_newline=True)
    found.filters["code"] = code
    # For indented blocks of code, which only the end of a line could leave.
    found.filters["shell"] = lambda text: Markup(shlex.quote(" ".join(text.splitlines())))
    found.filters["python"] = lambda text: Markup(json.dumps(text, ensure_ascii=False))
    return found


def escape_markdown(text: str) -> str:
    """`text` as Markdown on one line that reads as `text`, in a paragraph or a cell of a table."""
    text = " ".join(text.splitlines())
    text = _LEADING.sub(r"\1\\\2", _INLINE.sub(r"\\\g<0>", text))
    # As entities, because not every renderer takes a backslash before these.
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(letter, entity)
    return text


def code(text: str) -> Markup:
    """`text` as a code span of Markdown, whatever it holds; not for cells of a table."""
    from markupsafe import Markup

    text = " ".join(text.splitlines())
    # A span ends at as many backticks as it began with.
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")
