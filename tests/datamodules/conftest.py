import os
import urllib.request
from pathlib import Path

import pytest


def real_files(benchmark: str, name: str) -> Path:
    """The folder of a benchmark's real files: in $ALGORNN_DATA, or in shared/data beside the checkout."""
    roots = [Path(os.environ["ALGORNN_DATA"])] if "ALGORNN_DATA" in os.environ else []
    roots.append(Path(__file__).resolve().parents[3] / "shared" / "data")
    for root in roots:
        if (root / benchmark / name).exists():
            return root / benchmark
    pytest.skip(f"{benchmark}/{name} is in none of {', '.join(map(str, roots))}; set ALGORNN_DATA to the parent folder")


@pytest.fixture(scope="session")
def babi_dir() -> Path:
    """The real bAbI files."""
    return real_files("babi", "en-valid-10k")


@pytest.fixture(scope="session")
def scan_dir() -> Path:
    """The real SCAN files."""
    return real_files("scan", "tasks.txt.gz")


@pytest.fixture(scope="session")
def cogs_dir() -> Path:
    """The real COGS files."""
    return real_files("cogs", "train.tsv.gz")


@pytest.fixture(scope="session")
def pcfgset_dir() -> Path:
    """The real PCFG SET files."""
    return real_files("pcfgset", "pcfgset/test.src.gz")


@pytest.fixture(scope="session")
def listops_dir() -> Path:
    """The real test set of ListOps."""
    return real_files("listops", "test_d20s.tsv.gz")


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """No file can be found by accident and nothing is downloaded: an empty cache, no ALGORNN_DATA, no server."""
    open_url = urllib.request.urlopen

    def only_files(url, **options):
        if not url.startswith("file:"):
            raise OSError("no server in tests")
        return open_url(url, **options)

    monkeypatch.delenv("ALGORNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", only_files)
    for module in ("babi", "listops"):
        monkeypatch.setattr(f"algornn.datamodules.{module}.URLS", ((tmp_path / "no_server").as_uri(),))
    return tmp_path
