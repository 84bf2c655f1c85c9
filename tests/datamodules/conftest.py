import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def babi_dir() -> Path:
    """The real bAbI files: $ALGORNN_DATA/babi, or shared/data/babi beside the checkout."""
    roots = [Path(os.environ["ALGORNN_DATA"])] if "ALGORNN_DATA" in os.environ else []
    roots.append(Path(__file__).resolve().parents[3] / "shared" / "data")
    for root in roots:
        if (root / "babi" / "en-valid-10k").is_dir():
            return root / "babi"
    pytest.skip(f"the bAbI files are in none of {', '.join(map(str, roots))}; set ALGORNN_DATA to their parent folder")


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """No file can be found by accident and nothing is downloaded: an empty cache, no ALGORNN_DATA, no server."""
    monkeypatch.delenv("ALGORNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("algornn.datamodules.babi.URLS", ((tmp_path / "no_server.tar.gz").as_uri(),))
    return tmp_path
