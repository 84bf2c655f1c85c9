import os
from pathlib import Path

import pytest


def real_data(benchmark: str, inside: str) -> Path:
    """The folder of a benchmark's real files: in $ALGORNN_DATA, or in shared/data beside the checkout."""
    roots = [Path(os.environ["ALGORNN_DATA"])] if "ALGORNN_DATA" in os.environ else []
    roots.append(Path(__file__).resolve().parents[3] / "shared" / "data")
    for root in roots:
        if (root / benchmark / inside).exists():
            return root / benchmark
    pytest.skip(f"the {benchmark} files are in none of {', '.join(map(str, roots))}; set ALGORNN_DATA to their parent")


@pytest.fixture(scope="session")
def babi_dir() -> Path:
    """The real bAbI files."""
    return real_data("babi", "en-valid-10k")


@pytest.fixture(scope="session")
def listops_dir() -> Path:
    """The real test set of ListOps."""
    return real_data("listops", "test_d20s.tsv.gz")


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """No file can be found by accident and nothing is downloaded: an empty cache, no ALGORNN_DATA, no server."""
    monkeypatch.delenv("ALGORNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("babi", "listops"):
        monkeypatch.setattr(f"algornn.datamodules.{module}.URLS", ((tmp_path / "no_server").as_uri(),))
    return tmp_path
