"""Results on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import sys

import pytest

from pfedmma_deploy.cli.output import Output, open_output, print_accuracies
from tests.cli.terminal import Terminal


def test_tables_are_aligned_in_a_pipe() -> None:
    stream = io.StringIO()
    output = Output(stream, as_json=False, quiet=False)
    output.table(["Name", "Images", "Accuracy"], [["a", 10, 1.25], ["long name", 9, None]], "Title")
    assert stream.getvalue() == (
        "Title\n"
        "Name       Images  Accuracy\n"
        "a              10       1.2\n"
        "long name       9         -\n"
    )


def test_tables_have_frames_on_a_terminal() -> None:
    stream = Terminal()
    Output(stream, as_json=False, quiet=False).table(["A"], [["[red]x"]])
    assert "┃" in stream.getvalue() and "[red]x" in stream.getvalue()


def test_a_title_stands_whole_above_a_narrow_table() -> None:
    stream = Terminal()
    Output(stream, as_json=False, quiet=False).table(["A"], [["x"]], "wards: training")
    assert "wards: training" in stream.getvalue().splitlines()[0]


def test_a_table_without_rows_is_its_heading() -> None:
    stream = io.StringIO()
    Output(stream, as_json=False, quiet=False).table(["A", "B"], [])
    assert stream.getvalue() == "A  B\n"


def test_gain_is_the_last_row_minus_the_first() -> None:
    stream = io.StringIO()
    known = {"local": 60.0, "base": 70.0, "novel": None, "all": 65.0, "hm2": None, "hm3": None}
    better = {**known, "local": 72.5, "base": 69.0}
    rows = {"zero-shot": known, "personalized": better}
    print_accuracies(Output(stream, as_json=False, quiet=False), rows, "T")
    assert stream.getvalue().splitlines()[-1].split() == [
        "gain",
        "+12.5",
        "-1.0",
        "-",
        "+0.0",
        "-",
        "-",
    ]


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with open_output(as_json=True, quiet=False) as output:
        print("a library prints")
        output.say("for people")
        output.table(["A"], [["b"]])
        output.note("a note")
        output.progress.note("progress")
        output.result({"café": 1})
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"café": 1}
    assert printed.err == "a library prints\na note\nprogress\n"


def test_quiet_leaves_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    with open_output(as_json=False, quiet=True) as output:
        output.note("a note")
        output.progress.note("progress")
        assert list(output.progress.track("ab", "letters", 2)) == ["a", "b"]
        output.say("result")
    assert capsys.readouterr() == ("result\n", "")


def test_bars_are_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with open_output(as_json=False, quiet=False) as output:
        for outer in output.progress.track([1, 2], "rounds", 2):
            inner = list(output.progress.track("abc", f"clients of round {outer}", 3))
            assert inner == ["a", "b", "c"]
            output.progress.note(f"[round {outer}] done")
    assert "[round 2] done" in terminal.getvalue()
