"""The artifact store: folders that come into being whole or not at all. Knows no stage, no recipe and no configuration.

    <root>/artifacts/<key>/           finished artifacts, record.json beside the outputs
    <root>/drafts/<key>/              what a running or killed stage has written so far
    <root>/recipes/<recipe>/<stage>.json   the last artifact of each stage, by name
    <root>/locks/<key>.lock           held while a stage runs
    <root>/cache/                     digests of large files and folders from outside; may be deleted at any time
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.ledger.digest import file_digest, folder_files, json_digest
from cairn.ledger.record import RECORD, RESUME, Record, outputs_digest, read_record, record_text

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class Artifact:
    """A finished artifact: a folder with a record."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: the artifact's folder.

        Raises:
            UserError: it has no record, or a damaged one.
        """
        self.folder = Path(folder)
        self.record: Record = read_record(self.folder / RECORD)

    @property
    def key(self) -> str:
        """Key of the artifact."""
        return self.record.key

    def path(self, relative: str = "") -> Path:
        """Path of a file or folder inside the artifact. It is not checked to exist."""
        return self.folder / relative if relative else self.folder

    def missing(self) -> list[dict[str, str]]:
        """Outputs that are gone or have another size: a quick look that hashes nothing."""
        found = []
        for path, output in self.record.outputs.items():
            try:
                size = (self.folder / path).stat().st_size
            except OSError:
                found.append({"path": path, "why": "the file is missing"})
                continue
            if size != output.bytes:
                found.append({"path": path, "why": f"{size} bytes instead of {output.bytes}"})
        return found

    def differs(self) -> list[dict[str, str]]:
        """Every file whose bytes are not those of the record, and every file that the record does not know."""
        found = []
        present = set(folder_files(self.folder, skip={RECORD}))
        known = {**self.record.outputs, **self.record.logs}
        if not self.record.whole() or self.record.digest != outputs_digest(self.record.outputs):
            found.append({"path": RECORD, "why": "the record does not fit its own seal"})
        for path, output in sorted(known.items()):
            if path not in present:
                found.append({"path": path, "why": "the file is missing"})
            elif file_digest(self.folder / path) != output.sha256:
                size = (self.folder / path).stat().st_size
                why = "other bytes" if size == output.bytes else f"{size} bytes instead of {output.bytes}"
                found.append({"path": path, "why": f"{why} (its SHA-256 is not the record's)"})
        return found + [{"path": path, "why": "the record does not know this file"} for path in sorted(present - set(known))]

    def __repr__(self) -> str:
        return f"Artifact({str(self.folder)!r})"


class Store:
    """A folder of artifacts. Several processes may use one store at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.artifacts, self.drafts = self.root / "artifacts", self.root / "drafts"
        self.names, self.locks, self.cache = self.root / "recipes", self.root / "locks", self.root / "cache"

    def get(self, key: str) -> Artifact | None:
        """The artifact under `key`, or None.

        Raises:
            UserError: it is there but damaged so that a quick look shows it.
        """
        folder = self.artifacts / key
        if not folder.is_dir():
            return None
        artifact = Artifact(folder)
        damaged = artifact.missing()
        if damaged:
            raise UserError(
                f"the artifact of stage '{artifact.record.name}' is damaged: {damaged[0]['why']}",
                where=str(folder / damaged[0]["path"]),
                remedy=f"delete {folder} and run the recipe again",
            )
        return artifact

    def keys(self, start: str = "") -> list[str]:
        """The keys of all finished artifacts that start with `start`, sorted."""
        try:
            return sorted(p.name for p in self.artifacts.iterdir() if p.is_dir() and p.name.startswith(start))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def lineage(self, artifact: Artifact) -> list[Artifact]:
        """All artifacts that `artifact` came out of, inputs before what they feed, `artifact` last; each once.

        Raises:
            UserError: one of them is not in the store.
        """
        found: dict[str, Artifact] = {}

        def visit(one: Artifact) -> None:
            for label, source in one.record.inputs.items():
                if source.key in found:
                    continue
                before = self.get(source.key)
                if before is None:
                    raise UserError(
                        f"the artifact '{label}' that '{one.record.name}' was made from is not in the store",
                        where=str(self.artifacts / source.key),
                        remedy="run the recipe again",
                    )
                visit(before)
            found[one.key] = one

        visit(artifact)
        return list(found.values())

    def named(self) -> dict[str, dict[str, str]]:
        """{recipe: {stage: key}} of the last runs."""
        found: dict[str, dict[str, str]] = {}
        for file in sorted(self.names.glob("*/*.json")):
            # A name file is rewritten by any run at any time; one that cannot be read is a name less, no more.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.setdefault(file.parent.name, {})[file.stem] = str(json.loads(file.read_text(encoding="utf-8"))["key"])
        return found

    def name(self, recipe: str, stage: str, key: str) -> None:
        """Say that `key` is now the artifact of `recipe/stage`; writes only if it was another."""
        file = self.names / recipe / f"{stage}.json"
        text = json.dumps({"key": key}) + "\n"
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8") == text:
                return
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)

    @contextlib.contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold `key` against other processes; it is let go even if this process is killed.

        Args:
            key: what to hold.
            on_wait: called once if another process holds it.
        """
        self.locks.mkdir(parents=True, exist_ok=True)
        # The file is never deleted: who opened it before and locks it after would hold a lock on nothing.
        handle = os.open(self.locks / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait:
                    on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def draft(self, key: str) -> Path:
        """The draft folder of `key`; what a killed run left in it is still there. Hold the lock of `key`."""
        folder = self.drafts / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard(self, key: str) -> None:
        """Delete the draft of `key`."""
        shutil.rmtree(self.drafts / key, ignore_errors=True)

    def commit(self, key: str, make_record: Callable[[Path], Record]) -> Artifact:
        """Make the draft of `key` an artifact. Hold the lock of `key`.

        Bytes and folders are synced before the record is written, the record before the folder is renamed: whatever
        instant the machine stops at, the artifact is there whole or the draft can be finished.

        Args:
            key: whose draft.
            make_record: given the draft's folder, hashes it and gives the record.
        """
        folder = self.drafts / key
        sync_tree(folder)
        write_atomically(folder / RECORD, record_text(make_record(folder).sealed()))
        return self._rename(key)

    def finish(self, key: str) -> Artifact | None:
        """Finish a commit that was interrupted between its record and its renaming; None if there is none to finish."""
        folder = self.drafts / key
        if not (folder / RECORD).is_file():
            return None
        try:
            record = read_record(folder / RECORD)
            differs = [d for d in Artifact(folder).differs() if not d["path"].startswith(f"{RESUME}/")]
            whole = record.key == key and not differs
        except UserError:
            whole = False
        if whole:
            return self._rename(key)
        (folder / RECORD).unlink()
        return None

    def _rename(self, key: str) -> Artifact:
        # Only now: a kill before the record would find neither a whole artifact nor what to resume from.
        shutil.rmtree(self.drafts / key / RESUME, ignore_errors=True)
        self.artifacts.mkdir(parents=True, exist_ok=True)
        os.rename(self.drafts / key, self.artifacts / key)
        sync_folder(self.artifacts)
        sync_folder(self.drafts)
        return Artifact(self.artifacts / key)

    def content_digest(self, path: Path) -> str:
        """Digest of a file or folder from outside. Of unchanged files, large or in a folder, it is remembered in the cache."""
        if not path.is_dir() and path.stat().st_size < 1 << 22:
            return file_digest(path)
        memory = self.cache / f"{json_digest(str(path.resolve()))}.json"
        known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = dict(json.loads(memory.read_text(encoding="utf-8")))
        files = {name: path / name for name in (folder_files(path) if path.is_dir() else [""])}
        found = {name: _remembered(file, known.get(name)) for name, file in files.items()}
        now = time.time_ns()
        # Clocks of file systems are coarse: a file changed just now could change again under the same stamp.
        kept = {name: [stamp, digest] for name, (stamp, digest) in found.items() if now - max(stamp[2:4]) > 2_000_000_000}
        if kept != known:
            with contextlib.suppress(OSError):
                self.cache.mkdir(parents=True, exist_ok=True)
                write_atomically(memory, json.dumps(kept))
        return json_digest({name: digest for name, (_, digest) in found.items()}) if path.is_dir() else found[""][1]

    def test_save(self, need_bytes: int = 0) -> None:
        """Write, sync, rename and delete a small file, and see that `need_bytes` are free: before any long work.

        Raises:
            UserError: the store cannot be written, or the disk is too full.
        """
        with self.guard():
            for folder in (self.drafts, self.artifacts):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    remedy = "move the file away, or choose another store with --store"
                    raise UserError("a file stands where the store needs a folder", where=str(folder), remedy=remedy) from None
            handle, name = tempfile.mkstemp(prefix=".test-save-", dir=self.drafts)
            moved = self.artifacts / Path(name).name
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(b"\0" * 65536)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(name, moved)
            finally:
                for path in (Path(name), moved):
                    path.unlink(missing_ok=True)
        free = self.free_bytes()
        if need_bytes > free:
            raise UserError(
                f"the disk has too little room: {show_bytes(need_bytes)} are needed, {show_bytes(free)} are free",
                where=str(self.root),
                remedy="free some space, keep fewer checkpoints, or choose another disk with --store",
            )

    def free_bytes(self) -> int:
        """Bytes that may still be written on the store's disk."""
        folder = self.root
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn a full, read-only or forbidden store into a `UserError`, whichever library met it first."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            found = self._disk_error(error)
            if found is None:
                raise
            raise found from error

    def _disk_error(self, error: BaseException) -> UserError | None:
        code, name = _os_error(error)
        if code is None:
            return None
        path = Path(os.path.abspath(name)) if name is not None else self.root
        outside = not path.is_relative_to(self.root) and not self.root.is_relative_to(path)
        if code in _FULL:
            where = str(name) if outside else str(self.root)
            what = "the file grew past the limit on file sizes" if code == errno.EFBIG else "the disk is full"
            return UserError(
                f"{what}: {show_bytes(self.free_bytes())} are free",
                where=where,
                remedy="free some space (or choose another disk with --store) and run again: what was done so far is kept",
            )
        if code in _REFUSED and (name is not None or code == errno.EROFS):
            if outside:
                return UserError(f"cannot use the file: {os.strerror(code)}", where=str(name), remedy="check the path and its permissions")
            return UserError(
                f"the store cannot be written: {os.strerror(code)} ({show_bytes(self.free_bytes())} are free)",
                where=str(name or self.root),
                remedy="choose a folder that you may write with --store or the variable CAIRN_STORE",
            )
        return None


def _remembered(file: Path, known: Any) -> tuple[list[Any], str]:
    """(stamp, digest) of a file: out of what is `known` of it if its stamp is still the same."""
    state = file.stat()
    # ctime cannot be set by hand, so a file of old date with new bytes is not taken for the old one.
    stamp = [str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    if isinstance(known, list) and len(known) == 2 and known[0] == stamp:
        return stamp, str(known[1])
    return stamp, file_digest(file)


def default_root() -> Path:
    """Where the store lies unless told otherwise: the variable CAIRN_STORE, or ./cairn-store."""
    return Path(os.environ.get("CAIRN_STORE") or "cairn-store")


def show_bytes(count: float) -> str:
    """A byte count for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never half: aside, synced, renamed."""
    raw = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a renaming in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder beneath `folder` to disk."""
    for base, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = os.path.join(base, name)
            if os.path.islink(path):
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(base))


_TEXTS = {"os error 28": errno.ENOSPC, "No space left on device": errno.ENOSPC, "os error 27": errno.EFBIG, "File too large": errno.EFBIG,
          "os error 30": errno.EROFS, "Read-only file system": errno.EROFS}  # fmt: skip


def _os_error(error: BaseException | None) -> tuple[int | None, Any]:
    """(errno, file) of the disk's refusal behind an exception, following its causes; libraries in Rust tell it in words."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL | _REFUSED:
            return error.errno, error.filename if isinstance(error.filename, str | os.PathLike) else None
        for words, code in _TEXTS.items():
            if words in str(error):
                return code, None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None, None
