"""Files, folders and the hub as rows."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from prefloop.containers import Broken, content_digest, raw_rows
from prefloop.interfaces import InputError, Unavailable

ROWS = [{"prompt": "one, two"}, {"prompt": "naïve\u2028line"}]


def values(path: Path) -> list[object]:
    return [row.value for row in raw_rows(str(path), "train")]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_text(path: Path) -> bytes:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path.read_bytes()


def parquet(path: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path.read_bytes()


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "data", "instances", "csv", "parquet"])
def test_every_container_gives_the_same_rows(tmp_path: Path, kind: str, packed: str):
    data = {
        "jsonl": lambda: jsonl(ROWS),
        "json": lambda: json.dumps(ROWS).encode(),
        "data": lambda: json.dumps({"data": ROWS}).encode(),
        "instances": lambda: json.dumps({"type": "text_only", "instances": ROWS}).encode(),
        "csv": lambda: csv_text(tmp_path / "plain"),
        "parquet": lambda: parquet(tmp_path / "plain"),
    }[kind]()
    suffix = kind if kind in ("jsonl", "csv", "parquet") else "json"
    assert values(write(tmp_path / f"rows.{suffix}{packed}", data)) == ROWS


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_text_file_has_a_row_a_line(tmp_path: Path, packed: str):
    path = write(tmp_path / f"tales.txt{packed}", b"Once.\n\nTwice.\n")
    assert values(path) == [{"text": "Once."}, {"text": "Twice."}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_byte_order_mark_and_crlf_are_not_part_of_the_text(tmp_path: Path, kind: str):
    text = {
        "jsonl": '{"text": "a"}\r\n{"text": "b"}\r\n',
        "json": '[{"text": "a"},\r\n{"text": "b"}]\r\n',
        "csv": "text\r\na\r\nb\r\n",
        "txt": "a\r\nb\r\n",
    }[kind]
    path = write(tmp_path / f"rows.{kind}", b"\xef\xbb\xbf" + text.encode())
    assert values(path) == [{"text": "a"}, {"text": "b"}]


def test_json_lines_under_the_name_json_are_read(tmp_path: Path):
    assert values(write(tmp_path / "shard.json", jsonl(ROWS))) == ROWS
    assert values(write(tmp_path / "one.json", jsonl(ROWS[:1]))) == ROWS[:1]


def test_rows_of_lines_are_numbered_by_line_and_others_by_place(tmp_path: Path):
    lines = write(tmp_path / "a.jsonl", b'\n{"text": "a"}\n\n{"text": "b"}\n')
    table = write(tmp_path / "b.csv", b"text\na\nb\n")
    assert [(row.file, row.number) for row in raw_rows(str(lines), "train")] == [
        ("a.jsonl", 2),
        ("a.jsonl", 4),
    ]
    assert [row.number for row in raw_rows(str(table), "train")] == [1, 2]


def test_a_folder_is_read_by_name_and_leaves_other_files_alone(tmp_path: Path):
    write(tmp_path / "b.jsonl", b'{"text": "third"}\n')
    write(tmp_path / "a.txt.gz", b"first\nsecond\n")
    write(tmp_path / "README.md", b"# not data\n")
    write(tmp_path / ".hidden.jsonl", b"not data")
    assert values(tmp_path) == [{"text": "first"}, {"text": "second"}, {"text": "third"}]


def test_a_long_csv_cell_with_line_ends_is_one_text(tmp_path: Path):
    long = "line\n" * 100_000
    path = write(tmp_path / "long.csv", f'prompt\n"{long}"\n'.encode())
    assert values(path) == [{"prompt": long}]


@pytest.mark.parametrize(
    "line", ['{"prompt": "x"', "{'prompt': 1}", "[" * 100_000, '{"n": ' + "9" * 5000 + "}"]
)
def test_a_broken_line_does_not_hide_the_next(tmp_path: Path, line: str):
    broken, whole = values(write(tmp_path / "rows.jsonl", f'{line}\n{{"prompt": "y"}}\n'.encode()))
    assert isinstance(broken, Broken)
    assert broken.reason == "broken_json"
    assert whole == {"prompt": "y"}


def test_a_csv_row_with_too_many_cells_is_broken(tmp_path: Path):
    (row,) = values(write(tmp_path / "rows.csv", b"prompt\nHello, you\n"))
    assert isinstance(row, Broken)
    assert row.message == "more cells than the header has names; quote cells that contain commas"


def truncated(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)[:-12]  # no time of day: the bytes are part of a test's id


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cut.jsonl.gz", truncated(jsonl(ROWS * 50)), "cut.jsonl.gz: the gzip file is cut off"),
        ("cut.csv.gz", truncated(b"prompt\na\n"), "cut.csv.gz: the gzip file is cut off"),
        ("cut.parquet.gz", truncated(b"PAR1"), "cut.parquet.gz: the gzip file is cut off"),
        ("plain.jsonl.gz", jsonl(ROWS), "plain.jsonl.gz: not a gzip file"),
        ("binary.jsonl", b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "binary.jsonl: not UTF-8 text"),
        ("latin.txt", "naïve".encode("latin-1"), "latin.txt: not UTF-8 text"),
        ("sixteen.csv", "prompt\n".encode("utf-16"), "sixteen.csv: not UTF-8 text"),
        ("text.parquet", b"prompt\nHello\n", "text.parquet: not a readable parquet file"),
        ("broken.json", b'[{"prompt": "a"},\n{"prompt" "b"}]', "broken.json line 2: broken JSON"),
        ("number.json", b"17", "number.json: holds a single int; a .json file is a list of rows"),
        (
            "rows.xlsx",
            b"PK",
            "unknown kind of file; prefloop reads .jsonl, .json, .csv, .parquet, .txt, each",
        ),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, data: bytes, message: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        values(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_paths_and_folders_without_data_are_errors(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file or folder"):
        values(tmp_path / "nowhere.jsonl")
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "rows.jsonl", jsonl(ROWS))
    with pytest.raises(InputError, match=r"no data files directly in this folder; prefloop reads \.jsonl, "):
        values(tmp_path)


def test_the_digest_follows_the_content_and_not_the_name(tmp_path: Path):
    a, b, c = (
        write(tmp_path / name, data) for name, data in (("a.txt", b"x"), ("b.txt", b"x"), ("c.txt", b"y"))
    )
    assert content_digest(str(a)) == content_digest(str(b)) != content_digest(str(c))


def test_hub_rows_come_from_the_commit_that_the_digest_names(monkeypatch: pytest.MonkeyPatch):
    import datasets
    import huggingface_hub

    class Info:
        sha = "c0ffee"

    def load(name: str, configuration: str | None, *, split: str, revision: str) -> list[dict[str, object]]:
        return [{"asked": [name, configuration, split, revision]}]

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name, **_: Info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert content_digest("hub:openai/gsm8k/main") == "hub:openai/gsm8k/main@c0ffee"
    (row,) = raw_rows("hub:openai/gsm8k/main", "test")
    assert row == ("openai/gsm8k", 1, {"asked": ["openai/gsm8k", "main", "test", "c0ffee"]})


@pytest.mark.parametrize("use", [content_digest, lambda path: list(raw_rows(path, "train"))])
def test_an_unreachable_hub_is_unavailable_and_a_wrong_name_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, use: object
):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*_, **__) -> None:
        raise OfflineModeIsEnabled("offline")

    assert callable(use)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", offline)
    with pytest.raises(Unavailable, match="owner/name: the hub does not answer; run again later"):
        use("hub:owner/name")
    with pytest.raises(InputError, match="hub:name: a data set of the hub is written hub:owner/name"):
        use("hub:name")


def test_a_split_that_the_data_set_does_not_have_is_an_input_error(monkeypatch: pytest.MonkeyPatch):
    import datasets
    import huggingface_hub

    class Info:
        sha = "c0ffee"

    def load(name: str, configuration: str | None, *, split: str, revision: str) -> None:
        raise ValueError('Unknown split "tset". Should be one of [test].\nmore')

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name, **_: Info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"^hub:owner/name: cannot load split 'tset': Unknown split [^\n]*$"):
        list(raw_rows("hub:owner/name", "tset"))
