"""Finding, reading and downloading files."""

import gzip
import hashlib
import io
import tarfile

import pytest

from algornn.datamodules.files import (
    cache_dir,
    check_sha256,
    download,
    find,
    obtain,
    read_text,
    search_dirs,
    unpack,
)


def put(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_are_searched_in_the_documented_order(nowhere, monkeypatch):
    monkeypatch.setenv("ALGORNN_DATA", str(nowhere / "all"))
    given, environment, cache = nowhere / "given", nowhere / "all" / "babi", cache_dir("babi")
    given.mkdir()
    assert cache == nowhere / "cache" / "algornn" / "babi"
    assert search_dirs("babi", given) == [given, given / "babi", environment, cache]
    assert search_dirs("babi") == [environment, cache]
    for folder in (cache, environment, given / "babi", given):
        expected = put(folder / "a" / "b.txt")
        assert find(search_dirs("babi", given), "a/b.txt") == expected
    assert find(search_dirs("babi", given), "a/c.txt") is None


def test_data_dir_must_be_a_folder(nowhere):
    with pytest.raises(
        FileNotFoundError, match=r"data_dir='.*nothing' is not a folder; give the folder that holds the babi"
    ):
        search_dirs("babi", nowhere / "nothing")


def test_gz_beside_plain(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    assert read_text(find([tmp_path], "a.txt")) == "packed\n"
    put(tmp_path / "a.txt", "plain\n")
    assert read_text(find([tmp_path], "a.txt")) == "plain\n"


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip", "bad checksum", "empty"])
def test_damaged_gz_is_named(tmp_path, damage):
    raw = bytearray(gzip.compress(b"Mary moved to the garden.\n" * 100))
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "flipped":
        raw[15:25] = b"\xff" * 10
    elif damage == "not gzip":
        raw = bytearray(b"1 Mary moved to the garden.\n")
    elif damage == "bad checksum":
        raw[-8] ^= 1
    else:
        raw = raw[:5]
    path = tmp_path / "a.txt.gz"
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"a\.txt\.gz is damaged: expected a complete gzip file .*; delete it and fetch it"
    ):
        read_text(path)


def test_binary_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is damaged: expected UTF-8 text"):
        read_text(tmp_path / "a.txt")


def test_download_takes_the_first_good_address(tmp_path):
    good, bad = put(tmp_path / "good", "good"), put(tmp_path / "bad", "bad")
    sha256 = hashlib.sha256(b"good").hexdigest()
    urls = [(tmp_path / "missing").as_uri(), bad.as_uri(), good.as_uri()]
    target = tmp_path / "new" / "file"
    assert download(urls, sha256, target) == target
    assert target.read_text() == "good"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_download_keeps_nothing_of_a_wrong_file(tmp_path):
    bad = put(tmp_path / "bad", "bad")
    target = put(tmp_path / "new" / "file", "what was there")
    with pytest.raises(
        ValueError, match=r"file with sha256 abc could not be downloaded: .*bad gave sha256 .*nothing was kept"
    ):
        download([bad.as_uri()], "abc", target)
    assert target.read_text() == "what was there"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_download_without_a_server(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing could not be reached"):
        download([(tmp_path / "missing").as_uri()], "abc", tmp_path / "file")


def test_unpack_takes_the_inner_folder_and_nothing_outside(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("top/en/a.txt", "top/../../evil.txt", "elsewhere/b.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    unpack(archive, "top", tmp_path / "out" / "deep")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.txt")]
    assert [str(path) for path in files] == ["out/deep/en/a.txt"]


def test_obtain_finds_a_file_or_downloads_it_once(nowhere):
    source = put(nowhere / "source.txt", "content")
    digest = hashlib.sha256(b"content").hexdigest()
    path = obtain("babi", "a/b.txt", source.as_uri(), digest)
    assert path == cache_dir("babi") / "a" / "b.txt"
    source.unlink()
    assert obtain("babi", "a/b.txt", source.as_uri(), digest) == path
    own = put(nowhere / "own" / "a" / "b.txt", "my own")
    assert obtain("babi", "a/b.txt", source.as_uri(), digest, nowhere / "own") == own


def test_obtain_says_where_it_looked(nowhere):
    with pytest.raises(
        FileNotFoundError, match=r"b\.txt \(or b\.txt\.gz\) is in none of .*; nothing was kept\. Put it"
    ):
        obtain("babi", "b.txt", (nowhere / "source.txt").as_uri(), "0" * 64)
    source = put(nowhere / "source.txt")
    with pytest.raises(
        ValueError, match=r"b\.txt \(or b\.txt\.gz\) is in none of .* gave sha256 .* Put it into one of"
    ):
        obtain("babi", "b.txt", source.as_uri(), "0" * 64)


def test_another_content_is_named(nowhere):
    check_sha256(nowhere / "b.txt", "content", hashlib.sha256(b"content").hexdigest())
    with pytest.raises(ValueError, match=r"b\.txt is not the published file: expected sha256 0000.*, found ed7002"):
        check_sha256(nowhere / "b.txt", "content", "0" * 64)
