"""SLOG: the reader and its closed archive, on tiny files in the release's format."""

import binascii
import struct
import zipfile

import pytest

from algornn.datamodules import SLOG
from algornn.datamodules.slog import CATEGORIES, SIZES

GOOD = (
    "A cat ran .\trun ( agent = cat )\tin_distribution\nthe cat in a car\t* cat ( nmod . in = car )\tstandalone_NP_PP\n"
)
GEN = "".join(f"A cat {name} .\trun ( agent = {name} )\t{name}\n" for name in CATEGORIES)


@pytest.fixture
def tiny(nowhere, monkeypatch):
    """Training, development and test files of two lines, and a closed archive of one line a category."""
    monkeypatch.setattr("algornn.datamodules.slog.SIZES", dict.fromkeys(SIZES, 2))
    monkeypatch.setattr("algornn.datamodules.slog.CATEGORY_SIZE", 1)
    for split in SLOG.splits:
        (nowhere / split).mkdir()
        for name in SIZES:
            (nowhere / split / f"{name}.tsv").write_text(GOOD)
    close(nowhere / "generalization_sets.zip", {"sets/gen_varfreeLF.tsv": GEN, "sets/gen_cogsLF.tsv": GEN}, b"secret")
    return nowhere


def encrypted(content, password):
    """ZIP's traditional encryption, as in APPNOTE 6.1, with a header of eleven zeros and the check byte."""
    table = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (0xEDB88320 if i & 1 else 0)
        table.append(i)
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte):
        keys[0] = (keys[0] >> 8) ^ table[(keys[0] ^ byte) & 255]
        keys[1] = ((keys[1] + (keys[0] & 255)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = (keys[2] >> 8) ^ table[(keys[2] ^ (keys[1] >> 24)) & 255]

    for byte in password:
        update(byte)
    out = bytearray()
    for byte in bytes(11) + bytes([binascii.crc32(content) >> 24]) + content:
        mixed = keys[2] | 2
        out.append(byte ^ ((mixed * (mixed ^ 1) >> 8) & 255))
        update(byte)
    return bytes(out)


def close(path, files, password):
    """Write a ZIP archive whose files are stored and encrypted, which the standard library only reads."""
    body, directory = b"", b""
    for name, text in files.items():
        content = text.encode()
        data = encrypted(content, password)
        common = struct.pack(
            "<HHHHHLLLHH", 20, 1, 0, 0, 33, binascii.crc32(content), len(data), len(content), len(name), 0
        )
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + common + name.encode() + data
    end = struct.pack("<HHHHLLH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)


@pytest.mark.parametrize("split", SLOG.splits)
def test_stages_and_categories(tiny, split):
    data = SLOG(split, tiny, password="secret")
    assert (data.stages, data.ood) == (("train", "val", "test", "gen"), ("gen",))
    assert [len(data.examples(stage)) for stage in data.stages] == [2, 2, 2, 17]
    assert [e.group for e in data.examples("train")] == ["in_distribution"] * 2
    assert [e.group for e in data.examples("gen")] == list(CATEGORIES)
    assert data.examples("train")[1].source == ("the", "cat", "in", "a", "car")
    assert (data.vocab_size, data.output_size) == (len(data.vocabulary), len(data.outputs)) == (1026, 1026)
    assert not list(tiny.rglob("gen*.tsv"))  # the archive stays closed


def test_unpacked_file_is_preferred(tiny):
    (tiny / "varfree_LF" / "gen.tsv").write_text(GEN)
    assert len(SLOG(data_dir=tiny).examples("gen")) == 17


@pytest.mark.parametrize(
    ("password", "message"), [(None, "is closed, expected a password"), ("wrong", "does not open")]
)
def test_archive_needs_its_password(tiny, password, message):
    with pytest.raises(ValueError, match=rf"generalization_sets\.zip {message}"):
        SLOG(data_dir=tiny, password=password).dataset("train")


def test_damaged_archive_is_named(tiny):
    (tiny / "generalization_sets.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"generalization_sets\.zip does not open: expected a ZIP archive"):
        SLOG(data_dir=tiny, password="secret").dataset("gen")
    with zipfile.ZipFile(tiny / "generalization_sets.zip", "w") as archive:
        archive.writestr("gen.tsv", GEN)
    with pytest.raises(ValueError, match=r"expected one \.tsv file with 'varfree' in its path, found \['gen\.tsv'\]"):
        SLOG(data_dir=tiny, password="secret").dataset("gen")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dev", f"{GOOD}A cat ran .\trun\n", r"dev\.tsv, line 3: expected '<sentence><TAB><logical form><TAB><type>'"),
        ("dev", GOOD.replace("\n", "\r\n"), r"dev\.tsv, line 1: expected no carriage return .* found '\\r' in"),
        ("dev", f"\ufeff{GOOD}", r"dev\.tsv, line 1: expected no carriage .* byte order mark, found '\\ufeff' in"),
        ("gen", f"{GEN}A cat ran .\trun\tin_distribution\n", r"gen\.tsv, line 18: expected .* and a known type"),
        ("test", GOOD * 2, r"test\.tsv has {'in_distribution': 4} lines, expected {'in_distribution': 2}"),
        ("gen", GEN.replace("PP_5-12", "PP_3"), r"gen\.tsv has {'PP_3': 2, 'CP_3': 1.* lines, expected {'PP_3': 1"),
    ],
)
def test_wrong_file_is_named(tiny, name, text, message):
    (tiny / "varfree_LF" / f"{name}.tsv").write_bytes(text.encode())
    with pytest.raises(ValueError, match=message):
        SLOG(data_dir=tiny, password="secret").dataset("train")


def test_missing_file_and_unknown_split(nowhere):
    with pytest.raises(FileNotFoundError, match=r"varfree_LF/train\.tsv is in none of .*; fetch https://github"):
        SLOG().dataset("test")
    with pytest.raises(ValueError, match="did you mean 'cogs_LF'"):
        SLOG("cogs")
