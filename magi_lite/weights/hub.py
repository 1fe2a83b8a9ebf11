"""Fetch the published weights: only what a model needs, resumed where it was cut, checked against its published hash.

Listing, addresses and the bytes' way are huggingface_hub's. Its own file cache is not used: recent versions throw a
partial file away when the process dies, and these files are tens of gigabytes. See `transfer` for how one is kept.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from magi_lite.errors import CheckpointError, DownloadError, InputError
from magi_lite.files import storage_errors
from magi_lite.models import MODELS, ModelSpec
from magi_lite.weights.contents import check_contents
from magi_lite.weights.layout import (
    DEFAULT_MODELS_FOLDER,
    SPECIAL_TOKEN_FILES,
    SPECIAL_TOKENS_SHA256,
    ModelFiles,
    family_weights,
    find_model,
    model_root,
    special_tokens_file,
    text_folder,
    vae_folder,
)
from magi_lite.weights.text_files import CONVERTED, check_text_files, missing_text_files
from magi_lite.weights.transfer import (
    Counter,
    DownloadCancelled,
    Progress,
    RemoteFile,
    Source,
    bring,
    check_space,
    network,
    writing,
)
from quant.errors import WeightsError
from quant.storage.files import sha256
from quant.storage.headers import check_start_of
from quant.storage.shards import Checkpoint, has_weights
from quant.storage.shards import missing_files as missing_weights

REPOSITORY_ID = "sand-ai/MAGI-1"
SPECIAL_TOKENS_BYTES = 3_343_124
SPECIAL_TOKENS_URLS = tuple(
    f"https://raw.githubusercontent.com/SandAI-org/MAGI-1/{revision}/example/assets/special_tokens.npz"
    for revision in ("6ff822e", "main")
)
"""The published file, by commit and as a second try by branch; whichever answers, the hash decides."""
APPROXIMATE_GB = {
    "4.5B-base": 30,
    "4.5B-distill": 30,
    "4.5B-distill-fp8": 26,
    "24B-base": 69,
    "24B-distill": 69,
    "24B-distill-fp8": 47,
}
"""For a sentence before the size is known: transformer, T5 in float32 (19 GB), autoencoder."""

_SUFFIXES = (".safetensors", ".safetensors.zst", ".json", ".model", ".txt", ".bin")
_PLAIN = re.compile(r"[A-Za-z0-9_.+/-]{1,240}")
"""Names that every disk takes; the published ones are."""
_NAMED = 12
"""Missing files that are named."""
_COMMON_FOLDERS = ("vae", "t5")


def _is_described(file: RemoteFile) -> bool:
    """Whether a listing says of a file what a download is checked by."""
    size = isinstance(file.size, int) and 0 <= file.size < 1 << 50
    hashes = [file.blob_id if file.sha256 is None else file.sha256]
    return size and isinstance(file.path, str) and all(re.fullmatch("[0-9a-f]{40,64}", str(one)) for one in hashes)


class HuggingFace:
    """The published repository through huggingface_hub.

    Args:
        endpoint: another server of the same interface; None: the public one.
        revision: branch, tag or commit.
    """

    def __init__(self, repository: str = REPOSITORY_ID, endpoint: str | None = None, revision: str = "main") -> None:
        self.repository, self.endpoint, self.revision = repository, endpoint, revision

    def files(self) -> list[RemoteFile]:
        """Every file of the repository."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        try:
            tree = HfApi(endpoint=self.endpoint).list_repo_tree(self.repository, recursive=True, revision=self.revision)
            found = [
                RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
                for entry in tree
                if isinstance(entry, RepoFile)
            ]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, OSError):  # of the connection
                raise
            found = []
        if not all(map(_is_described, found)) or not found:
            raise DownloadError(
                f"{self.repository} cannot be listed (what came is no list of files); "
                "if this network wants a login, log in with a browser, then try again."
            )
        return found

    def address(self, path: str) -> str:
        """Where a file of the repository is served."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, path, revision=self.revision, endpoint=self.endpoint)

    def fetch(self, url: str, file: io.FileIO, done: int, size: int) -> None:
        """Transfer, continuing by itself through short interruptions.

        The library goes on where an answer breaks off, but not where none begins, as on a kept connection that the
        server has closed meanwhile.
        """
        import huggingface_hub.utils
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its versions differ in whose it is
        from huggingface_hub.file_download import http_get

        utils: Any = huggingface_hub.utils  # re-exports these without saying so
        utils.disable_progress_bars("huggingface_hub.http_get")  # ours is shown instead
        headers = utils.build_hf_headers() if url.startswith(self.address("").rstrip("/")) else {}
        try:
            http_get(url, file, resume_size=done, headers=headers, expected_size=size)
        except HTTPError as error:
            if getattr(error, "response", None) is not None or file.tell() != done:  # it was refused, or had begun
                raise
            http_get(url, file, resume_size=done, headers=headers, expected_size=size)


def download(
    name: str,
    folder: Path | None = None,
    *,
    progress: Progress | None = None,
    offline: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    special_tokens: Path | None = None,
    verify: bool = False,
    source: Source | None = None,
) -> ModelFiles:
    """Bring a published model into a folder; files that are there already are kept.

    Args:
        name: a name in `models.MODELS`.
        folder: root of the published layout; None: the default models folder.
        offline: touch no network; fail with the names of what is missing.
        cancelled: asked while bytes arrive; True ends the download, to be continued another time.
        special_tokens: a local copy of special_tokens.npz to use instead of downloading it.
        verify: hash the files that are there already, too, and fetch the damaged ones again.
        source: None: the public repository.

    Returns:
        The complete model's files.

    Raises:
        InputError: no such model.
        DownloadError: offline and incomplete, no connection, or contents that do not match their hash.
        OutputError: no space, or the folder cannot be written.
    """
    family = _family(name)
    root = Path(folder) if folder is not None else DEFAULT_MODELS_FOLDER
    if offline:
        missing = missing_files(name, root)
        if missing:
            named = ", ".join(missing[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise DownloadError(
                f"Offline, and {root} lacks {named}{more}; download {name} once with a connection."
            )
        return find_model(name, root)
    source = source or HuggingFace()
    if special_tokens is None and not verify and missing_files(name, root) == [SPECIAL_TOKEN_FILES[0]]:
        download_special_tokens(root, progress=progress, source=source)  # what other tools' downloads do not bring
        return find_model(name, root)
    with network(lambda: f"{REPOSITORY_ID} cannot be listed; check the connection"):
        files = source.files()
    wanted = needed_files(files, family)
    pickles = [file for file in wanted if _is_text_pickle(file.path)]
    to_convert = sum(file.size for file in pickles) // 2
    check_space(root, wanted, to_convert if pickles and not _is_converted(root / pickles[0].path) else 0)
    counter = Counter(
        progress or (lambda done, total, file: None),
        cancelled,
        sum(file.size for file in wanted) + SPECIAL_TOKENS_BYTES + to_convert,
    )
    for file in wanted:
        bring(source, source.address(file.path), file, root / file.path, counter, verify)
    _bring_special_tokens(source, root, special_tokens, counter, verify)
    if pickles:
        _convert(root / Path(pickles[0].path).parent, counter, to_convert)
    return find_model(name, root)


def download_special_tokens(
    folder: Path | None = None, *, progress: Progress | None = None, source: Source | None = None
) -> Path:
    """Bring the one small file that is not among the published weights; returns where it lies.

    Raises:
        DownloadError: no connection, or contents that do not match their hash.
        OutputError: the folder cannot be written.
    """
    root = model_root(Path(folder) if folder is not None else DEFAULT_MODELS_FOLDER)
    counter = Counter(progress or (lambda done, total, file: None), lambda: False, SPECIAL_TOKENS_BYTES)
    _bring_special_tokens(source or HuggingFace(), root, None, counter, verify=True)
    return root / SPECIAL_TOKEN_FILES[0]


def _is_text_pickle(path: str) -> bool:
    return path.startswith("ckpt/t5/") and path.endswith(".bin")


def _is_converted(pickle: Path) -> bool:
    return has_weights(pickle.parent / CONVERTED[0])


@storage_errors()
def _convert(folder: Path, counter: Counter, size: int) -> None:
    """The 16-bit copy of a pickled text encoder, now rather than with the first prompt."""
    from magi_lite.weights.pickles import converted

    def progress(done: int, total: int) -> None:
        counter.at(int(size * done / max(1, total)), "converting the text encoder")

    converted(folder, progress)
    counter.at(size, "converting the text encoder")
    counter.before += size


def needed_files(files: Iterable[RemoteFile], family: ModelSpec) -> list[RemoteFile]:
    """Of the repository's files, those of one family with autoencoder and text encoder.

    Pickled text encoder weights are left out where safetensors are offered.

    Raises:
        DownloadError: a part is not in the repository.
    """
    places = {family.folder: ("ckpt", "magi", family.folder), **{part: ("ckpt", part) for part in _COMMON_FOLDERS}}
    chosen: dict[str, list[RemoteFile]] = {part: [] for part in places}
    for file in files:
        parts = Path(file.path).parts
        if file.path.endswith(_SUFFIXES) and ".." not in parts and _PLAIN.fullmatch(file.path):
            for part, place in places.items():
                if parts[: len(place)] == place:
                    chosen[part].append(file)
    absent = [part for part, found in chosen.items() if not any(_is_weights(file.path) for file in found)]
    if absent:
        raise DownloadError(
            f"{REPOSITORY_ID} holds no weights below ckpt/ in a folder named {absent[0]}; it was rearranged."
        )
    text = chosen["t5"]
    if any(file.path.endswith(".safetensors") for file in text):
        chosen["t5"] = [file for file in text if not file.path.endswith((".bin", ".bin.index.json"))]
    return sorted({file.path: file for found in chosen.values() for file in found}.values(), key=lambda file: file.path)


@storage_errors()
def missing_files(name: str, folder: Path | None = None) -> list[str]:
    """What of a model a folder lacks, relative to it, as far as is known without a connection; empty: complete."""
    root = model_root(Path(folder) if folder is not None else DEFAULT_MODELS_FOLDER)
    family = _family(name)
    parts: tuple[tuple[Callable[[], Path], str], ...] = (
        (lambda: family_weights(root, family), f"ckpt/magi/{family.folder}/{family.weights_folder}/*.safetensors"),
        (lambda: vae_folder(root), "ckpt/vae/config.json"),
        (lambda: text_folder(root), "ckpt/t5/t5-v1_1-xxl/config.json"),
        (lambda: special_tokens_file(root), SPECIAL_TOKEN_FILES[0]),
    )
    missing = []
    for find, pattern in parts:
        try:
            place = find()
        except CheckpointError:
            missing.append(pattern)
            continue
        try:
            missing += [_relative(file, root) for file in _absent(place)] or _damaged(place)
        except (CheckpointError, WeightsError) as error:  # nothing there, or an index that cannot be read
            missing.append(f"{_relative(place, root)} ({str(error).rstrip('.')})")
    if not missing:
        try:
            check_contents(find_model(name, folder))
        except CheckpointError as error:
            missing.append(str(error).rstrip("."))
    return missing


def _absent(place: Path) -> list[Path]:
    """Weight files that a part of a model lacks; `place` is a folder, or the special-token file."""
    if place.is_file():
        return []
    if _is_text(place):
        return missing_text_files(place)
    return missing_weights(place) if has_weights(place) else [place / "*.safetensors"]


def _damaged(place: Path) -> list[str]:
    """What is wrong with a part of a model of which all files are there, as far as headers tell."""
    try:
        if _is_text(place):
            check_text_files(place)
        elif place.is_dir():
            Checkpoint.open(place)
        else:
            check_start_of(place)
    except (CheckpointError, WeightsError) as error:
        return [str(error).rstrip(".")]
    return []


def _is_text(place: Path) -> bool:
    return any(part in ("t5", "t5_pretrained") for part in (place.name, place.parent.name))


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _family(name: str) -> ModelSpec:
    if name not in MODELS:
        raise InputError(f"There is no model '{name}' to download; choose from {', '.join(MODELS)}.")
    return MODELS[name]


def _bring_special_tokens(source: Source, root: Path, local: Path | None, counter: Counter, verify: bool) -> None:
    """The special-token file: the one that is there, a local copy, or the official repository's."""
    target = root / SPECIAL_TOKEN_FILES[0]
    file = RemoteFile(SPECIAL_TOKEN_FILES[0], SPECIAL_TOKENS_BYTES, SPECIAL_TOKENS_SHA256, "")
    if local is not None:
        if not local.is_file() or sha256(local) != SPECIAL_TOKENS_SHA256:
            raise InputError(f"{local} is not the published special_tokens.npz; leave it out to download the file.")
        with writing(target):
            root.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, target)
    for number, url in enumerate(SPECIAL_TOKENS_URLS, 1):
        try:
            return bring(source, url, file, target, counter, verify)
        except DownloadCancelled:
            raise
        except DownloadError:
            if number == len(SPECIAL_TOKENS_URLS):
                raise
    return None


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".safetensors.zst", ".bin"))
