"""Models of the hub on this disk: fetched at one revision, checked, found again, removed.

They lie in the hub's own cache, where other programs find them, too. Beside each stands a manifest
of what was fetched. Only `fluxline models` reaches out: who serves opens what is there.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
import msgspec
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from fluxline.errors import LoadError

MANIFEST = "fluxline.json"
CHUNK_BYTES = 2**20


class Kept(msgspec.Struct, frozen=True):
    """A file as it was fetched. sha256: hex."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What was fetched of a repository. revision: the commit, whatever name was asked for."""

    repo: str
    revision: str
    files: Mapping[str, Kept]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(kept.size for kept in self.files.values())


def pull(repo: str, patterns: Sequence[str], revision: str | None = None) -> Manifest:
    """Fetch a repository's files of these patterns, going on where an earlier pull was cut off.

    Each is held against the checksum that the hub gives. Raises LoadError.
    """
    with _translated(repo):
        told = HfApi().model_info(repo, revision=revision, files_metadata=True)
        commit, siblings = told.sha or "", told.siblings or []
        hashes = {one.rfilename: one.lfs.sha256 if one.lfs else None for one in siblings}
        wanted = [name for name in hashes if any(fnmatchcase(name, p) for p in patterns)]
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=list(patterns)))
    files = {name: _kept(folder / name) for name in wanted}
    for name, kept in files.items():
        if hashes[name] not in (None, kept.sha256):
            (folder / name).resolve().unlink()  # or the next pull would take it for whole
            message = f"{name} of {repo} is not what the hub says it is: pull it again"
            raise LoadError(message)
    manifest = Manifest(repo=repo, revision=commit, files=files)
    (_home(repo) / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return manifest


def manifest_of(repo: str) -> Manifest | None:
    """What was fetched of a repository by `pull`; None: nothing. Raises LoadError."""
    try:
        return msgspec.json.decode((_home(repo) / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as exc:
        raise LoadError(f"the manifest of {repo} cannot be read: pull it again") from exc


def held(repo: str) -> Path | None:
    """The folder of a repository on this disk, pulled or left there by another program."""
    if manifest := manifest_of(repo):
        return _folder(manifest)
    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def verify(repo: str) -> list[str]:
    """Hold what was pulled against its manifest; say what differs. Raises LoadError."""
    manifest = _pulled(repo)
    folder, wrong = _folder(manifest), []
    for name, kept in manifest.files.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif _kept(folder / name) != kept:
            wrong.append(f"{name} was changed")
    return wrong


def remove(repo: str) -> int:
    """Delete what is on this disk of a repository; return how many bytes. Raises LoadError."""
    home = _home(repo)
    if not home.is_dir():
        raise LoadError(f"{repo} is not on this disk")
    size = size_of(home)
    shutil.rmtree(home)
    return size


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's files; what lies twice by a link counts once."""
    if path.is_file():
        return path.stat().st_size
    files = {file.resolve() for file in path.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files)


def _pulled(repo: str) -> Manifest:
    if (manifest := manifest_of(repo)) is None:
        raise LoadError(f"{repo} was not pulled: there is nothing to hold it against")
    return manifest


def _home(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _folder(manifest: Manifest) -> Path:
    return _home(manifest.repo) / "snapshots" / manifest.revision


def _kept(path: Path) -> Kept:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return Kept(size=path.stat().st_size, sha256=digest.hexdigest())


@contextmanager
def _translated(repo: str) -> Iterator[None]:
    """Say in our words that the hub is away, or does not give a repository."""
    try:
        yield
    except HfHubHTTPError as exc:
        status = exc.response.status_code if exc.response is not None else "no answer"
        raise LoadError(
            f"the hub does not give {repo} ({status}): is its name right? For a gated model, "
            "accept its licence and set HF_TOKEN"
        ) from exc
    except (LocalEntryNotFoundError, httpx2.HTTPError, OSError) as exc:
        raise LoadError(
            f"the hub cannot be reached for {repo} ({type(exc).__name__}): what came so far is "
            "kept; pull again to go on"
        ) from exc
