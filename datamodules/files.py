"""Where benchmark files come from: a folder, the user's cache, or a checked download.

A file `name` of a benchmark is looked for in `data_dir`, then in `$ALGORNN_DATA/<benchmark>`, then in the user cache
(`$XDG_CACHE_HOME/algornn/<benchmark>`, usually `~/.cache/algornn/<benchmark>`). `name.gz` beside `name` is as good.
Only when it is in none of these is it downloaded, into the cache, and kept only if its sha256 is the expected one.
"""

import gzip
import hashlib
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without an answer from a server
DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError)  # what reading a damaged file raises


def cache_dir(benchmark: str) -> Path:
    """The folder of `benchmark` in the user cache (it need not exist)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "algornn" / benchmark


def search_dirs(benchmark: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders in which files of `benchmark` are looked for, first come first served.

    Args:
        benchmark: Name of the benchmark's folder, lower case ("babi").
        data_dir: The benchmark's folder, or the folder that holds it.

    Raises:
        FileNotFoundError: `data_dir` is not a folder.
    """
    folders = []
    if data_dir is not None:
        given = Path(data_dir).expanduser()
        if not given.is_dir():
            raise FileNotFoundError(
                f"data_dir={str(given)!r} is not a folder; give the folder that holds the {benchmark} files."
            )
        folders += [given, given / benchmark]
    if environment := os.environ.get("ALGORNN_DATA"):
        folders.append(Path(environment).expanduser() / benchmark)
    return [*folders, cache_dir(benchmark)]


def find(folders: Sequence[Path], name: str) -> Path | None:
    """The first `folder/name` or `folder/name.gz` that exists, or None."""
    candidates = (path for folder in folders for path in (folder / name, folder / f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_text(path: Path) -> str:
    """The text of a plain or gzip-compressed UTF-8 file.

    Raises:
        ValueError: The file is damaged (not gzip, cut short, wrong checksum, or not text).
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """What to raise where reading a plain or gzip-compressed UTF-8 file raised one of `DAMAGE`."""
    kind = "a complete gzip file" if path.suffix == ".gz" and not isinstance(error, UnicodeError) else "UTF-8 text"
    return ValueError(f"{path} is damaged: expected {kind} ({error}); delete it and fetch it again.")


def download(urls: Sequence[str], sha256: str, target: Path) -> Path:
    """Fetch the first URL whose bytes have the expected sha256 into `target`; nothing else is left behind.

    Args:
        urls: Addresses of the same file, tried in order.
        sha256: Hexadecimal digest of the file.
        target: Where the file goes; its folder is made if need be.

    Returns:
        `target`.

    Raises:
        ValueError: A server answered, but no answer had the expected digest.
        FileNotFoundError: No server answered.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    failures, wrong = [], False
    try:
        for url in urls:
            try:
                digest = _stream(url, partial)
            except OSError as error:  # urllib's errors are OSErrors
                failures.append(f"{url} could not be reached ({error})")
                continue
            if digest == sha256:
                return partial.replace(target)
            wrong = True
            failures.append(f"{url} gave sha256 {digest}")
    finally:
        partial.unlink(missing_ok=True)
    kind = ValueError if wrong else FileNotFoundError
    raise kind(f"{target.name} with sha256 {sha256} could not be downloaded: {'; '.join(failures)}; nothing was kept.")


def obtain(benchmark: str, name: str, url: str, sha256: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file `name` of a benchmark: the first that is found, or else downloaded to the user cache.

    Args:
        benchmark: Name of the benchmark's folder, lower case ("scan").
        name: The file's path inside that folder; with `.gz` where it is downloaded compressed.
        url: Where the file of that name is.
        sha256: Hexadecimal digest of that file.
        data_dir: The benchmark's folder, or the folder that holds it.

    Raises:
        FileNotFoundError: It is nowhere and no server answered; the message says where it was looked for.
        ValueError: It is nowhere and the server's file had another digest.
    """
    folders, plain = search_dirs(benchmark, data_dir), name.removesuffix(".gz")
    if path := find(folders, plain):
        return path
    try:
        return download([url], sha256, cache_dir(benchmark) / name)
    except (FileNotFoundError, ValueError) as error:
        looked = ", ".join(map(str, folders))
        raise type(error)(
            f"{plain} (or {plain}.gz) is in none of {looked}, and {error} "
            "Put it into one of these folders or set data_dir to the folder that holds it."
        ) from error


def check_sha256(path: Path, text: str, sha256: str) -> None:
    """Raise a ValueError unless `text`, the content of `path`, has the expected sha256."""
    found = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the published file: expected sha256 {sha256}, found {found}; delete it and fetch it again."
        )


def _stream(url: str, target: Path) -> str:
    """Write the bytes of `url` to `target`; return their sha256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as source, target.open("wb") as sink:
        while block := source.read(_BLOCK):
            digest.update(block)
            sink.write(block)
    return digest.hexdigest()


def unpack(archive: Path, inside: str, folder: Path) -> None:
    """Write the regular files below `inside/` of a .tar.gz to `folder`, each complete or not at all.

    Members that would land outside `folder` are refused.
    """
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not (member.isfile() and path.is_relative_to(inside)) or ".." in path.parts:
                continue
            target = folder / path.relative_to(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            content = tar.extractfile(member)
            if content is not None:
                partial.write_bytes(content.read())
                partial.replace(target)
