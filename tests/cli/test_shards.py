"""Shards: together they are the whole, whoever makes them, and a finished one is not made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.cli.shards import Shard
from tests.serve.calling import QUICKSTART, photo

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photos/` of eleven images, of which one is broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(11):
        (tmp_path / "photos" / f"{number:02}.png").write_bytes(photo(number))
    (tmp_path / "photos" / "04.png").write_bytes(b"nothing")
    return tmp_path


def predict(arguments: str) -> int:
    fixed = ["predict", "photos", "--model", str(QUICKSTART), "--client", "3", "--device", "cpu"]
    return int(run([*fixed, "--batch-size", "2", "--threads", "1", *arguments.split()]))


def rows(*files: Path) -> list[dict[str, Any]]:
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def test_shards_are_runs_of_whole_batches() -> None:
    images = [Path(str(n)) for n in range(11)]
    parts = [list(Shard(n, 4).of(images, 11, 2)) for n in (1, 2, 3, 4)]
    # Six batches among four: 1, 2, 1, 2.
    assert [len(part) for part in parts] == [2, 4, 2, 3]
    assert [path for part in parts for path in part] == images
    assert [Shard(n, 4).size(11, 2) for n in (1, 2, 3, 4)] == [2, 4, 2, 3]
    assert [Shard(n, 9).size(3, 2) for n in range(1, 10)] == [0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert Shard(3, 16).file(Path("a/answers.parquet")) == Path("a/answers-00003-of-00016.parquet")


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "3/0", "-1/4", "1/4/2"])
def test_no_shards(text: str, photos: Path, capsys: Printed) -> None:
    assert predict(f"--out a.parquet --shard {text}") == 2
    error = capsys.readouterr().err
    assert f"--shard is a number of how many, such as 3/16, not '{text}'." in error


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_together_are_the_whole(photos: Path, count: int) -> None:
    assert predict("--out all.parquet --compare") == 3
    for number in range(count, 0, -1):
        assert predict(f"--out some.parquet --compare --shard {number}/{count}") in {0, 3}
    whole = rows(photos / "all.parquet")
    assert rows(*sorted(photos.glob("some-*.parquet"))) == whole
    assert len(whole) == 11
    verdict = ["answer", "known", "threshold", "negative", "likely"]
    compared = ["zero_shot", "zero_shot_verdict", "skipped"]
    assert list(whole[0]) == ["path", "client", "strength", "top", *verdict, *compared]
    assert list(whole[0]["zero_shot_verdict"]) == verdict
    assert [row["skipped"] is None for row in whole].index(False) == 4
    assert whole[0]["client"] == "3"
    assert sum(score["probability"] for score in whole[0]["top"]) <= 1


def test_all_parts_one_after_the_other(photos: Path, capsys: Printed) -> None:
    """The second of three was made before; the options that were typed go on to each."""
    assert predict("--out a.parquet --compare --top 1 --shard 3/3") == 0
    assert predict("--out a.parquet --compare --top 1 --shard all/3") == 3
    assert "a-00003-of-00003.parquet is done already" in capsys.readouterr().err
    assert predict("--out all.parquet --compare --top 1") == 3
    assert rows(*sorted(photos.glob("a-*.parquet"))) == rows(photos / "all.parquet")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_on_ray(photos: Path) -> None:
    ray = pytest.importorskip("ray")
    try:
        assert predict("--out a.parquet --shard all/3 --ray") == 3
    finally:
        ray.shutdown()
    assert predict("--out all.parquet") == 3
    assert rows(*sorted(photos.glob("a-*.parquet"))) == rows(photos / "all.parquet")


def test_ray_takes_all_parts(photos: Path, capsys: Printed) -> None:
    assert predict("--out a.parquet --shard 1/3 --ray") == 2
    assert "--ray runs many parts: say how many with --shard all/COUNT" in capsys.readouterr().err
    assert predict("--out a.parquet --shard all/0") == 2


def test_a_finished_shard_is_not_made_again(photos: Path, capsys: Printed) -> None:
    assert predict("--out a.parquet --shard 1/3") == 0
    file = photos / "a-00001-of-00003.parquet"
    before = file.stat().st_mtime_ns
    assert predict("--out a.parquet --shard 1/3") == 0
    assert "a-00001-of-00003.parquet is done already" in capsys.readouterr().err
    assert file.stat().st_mtime_ns == before
    assert predict("--out a.parquet --shard 1/3 --top 1") == 2
    assert "was made with other settings (top was 3, is now 1)" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(photos / "photos" / "99.png")
    assert predict("--out a.parquet --shard 1/3") == 2
    assert "was made with other settings (images was 11, is now 12)" in capsys.readouterr().err
    file.write_bytes(b"something else")
    assert predict("--out a.parquet --shard 1/3") == 2
    assert "is no shard of answers: remove it" in capsys.readouterr().err


def test_a_killed_shard_leaves_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pfedmma_deploy.cli.predict.write_parquet", killed)
        assert predict("--out a.parquet --shard 1/3") == 130
    assert [path.name for path in photos.iterdir()] == ["photos"]


def test_parquet_goes_to_a_file(photos: Path, capsys: Printed) -> None:
    assert predict("--format parquet") == 2
    assert "name a file with --out answers.parquet" in capsys.readouterr().err
    assert predict("--out a.csv --shard 1/3") == 2
    assert "--shard writes a Parquet file of its own" in capsys.readouterr().err
    assert predict("--out a.parquet --shard 1/3 --log record.jsonl") == 2
    assert "--log records one run in order: leave it out, or --shard" in capsys.readouterr().err
