"""Indexes of a vector field in the store: each build is files that one journal entry names, so a kill leaves the one before."""

import hashlib
import shutil
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.fields import Metric, VectorIndex
from toque.featurestore.definitions.views import FeatureView, digest
from toque.featurestore.vectors.nearest import LISTS_FILE, InvertedLists
from toque.featurestore.vectors.rows import PRESENT, Bools, Ints, VectorRows
from toque.registry.errors import Damaged
from toque.registry.journal import Entry, Fold, Journal
from toque.registry.store import ObjectStore, temporary_folder
from toque.registry.store.blobs import Blob, Blobs, scan
from toque.registry.times import Clock

_BUILT, _DROPPED = "built", "dropped"
VECTORS = "vectors.npy"
_KEPT = 2  # the newest build, and the one before for a reader that has begun to load it


class IndexBuild(BaseModel):
    """Build of an index, as its journal has it.

    number: of its journal entry, from 0. files: by name. semantics: digest of the view's definition. paths: of the offline files whose rows it has. rows: all, and indexed: of
    them in the lists, which have those that were visible at `built_at` or later. probes: lists to scan, with which it was
    measured to find `recall` of the ten nearest, among `sampled` stored vectors.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    token: str
    files: dict[str, Blob]
    metric: Metric
    semantics: str
    table_version: int
    paths: list[str]
    rows: int
    indexed: int
    built_at: datetime
    probes: int
    recall: float
    sampled: int


def _step(state: tuple[IndexBuild, ...], entry: Entry) -> tuple[IndexBuild, ...]:
    if _DROPPED in entry.body or LISTS_FILE not in entry.body[_BUILT]["files"]:
        return ()  # dropped, or a graph, as indexes were before: the next refresh makes lists
    return (*state, IndexBuild.model_validate(entry.body[_BUILT]))[-_KEPT:]


@dataclass(frozen=True, slots=True)
class LoadedIndex:
    """An index on this machine: its rows, mapped from files, and the lists of them.

    places: position among the rows of each vector in the file; positions: of each entry of the lists.
    """

    build: IndexBuild
    rows: VectorRows
    lists: InvertedLists
    places: Ints
    positions: Ints
    _allowed: list[tuple[Bools, Bools]] = field(default_factory=list, compare=False, repr=False)

    def allowed(self, chosen: Bools) -> Bools:
        """Tell which entries of the lists are of chosen rows; kept for the last array, as most searches choose all that is visible."""
        for of, entries in self._allowed[:1]:
            if of is chosen:
                return entries
        entries = chosen[self.positions]
        self._allowed[:] = [(chosen, entries)]
        return entries


class IndexBuilds:
    """Builds of the index of one vector field."""

    def __init__(
        self, store: ObjectStore, project: str, view: str, field: str, *, actor: str, clock: Clock
    ) -> None:
        self._store = store
        self._path = f"features/{project}/indexes/{view}/{field}"
        self._local = hashlib.sha256(store.url.encode()).hexdigest()[:16]
        journal = Journal(store, self._path, actor=actor, clock=clock)
        self._fold: Fold[tuple[IndexBuild, ...]] = Fold(
            journal,
            (),
            _step,
            encode=lambda state: [build.model_dump(mode="json") for build in state],
            decode=lambda kept: tuple(IndexBuild.model_validate(each) for each in kept),
            schema="2",
        )

    def follow(self) -> Fold[tuple[IndexBuild, ...]]:
        """Follow the builds that are kept, oldest first."""
        return self._fold

    def newest(self) -> IndexBuild | None:
        """Read the newest build, None before the first and after it was dropped; one request."""
        state = self._fold.refresh()
        return state[-1] if state else None

    def add(self, folder: Path, described: dict[str, object]) -> IndexBuild | None:
        """Store the files of a folder as the next build; None if another build came first.

        described: the fields of `IndexBuild` that its files do not give.
        """
        self._fold.refresh()
        number, token = self._fold.next, uuid.uuid4().hex[:12]
        blobs, files = Blobs(self._store, self._prefix(number, token)), scan(folder)
        stored = blobs.upload(files.values(), generation=0)
        named = {name: stored[file.sha256] for name, file in files.items()}
        build = IndexBuild.model_validate({"number": number, "token": token, "files": named, **described})
        body = {_BUILT: build.model_dump(mode="json")}
        entry = self._fold.transact(lambda _: body if self._fold.next == number else None)
        if entry is None:
            self._delete_before(number + 1, only=number, token=token)
            return None
        self._delete_before(number - 1)
        return build

    def drop(self) -> bool:
        """Forget every build and delete its files, as after an erasure; returns whether there was one."""
        there = bool(self._fold.refresh())
        if there:
            self._fold.transact(lambda state: {_DROPPED: True} if state else None)
        self._delete_before(self._fold.next)
        self.clear()
        return there

    def clear(self) -> None:
        """Delete the copies on this machine."""
        shutil.rmtree(self.folder(), ignore_errors=True)

    def load(self, build: IndexBuild, view: FeatureView, field: str) -> LoadedIndex:
        """Copy a build to this machine, unless it is there, and open it. Raises: Damaged if its files are gone or changed."""
        folder = self.folder() / build.token
        Blobs(self._store, self._prefix(build.number, build.token)).download(build.files, folder)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)  # a process that has it mapped keeps its pages
        return open_index(folder, build, view, field)

    def folder(self) -> Path:
        """Folder of the copies on this machine."""
        return temporary_folder("vectors") / self._local / self._path.replace("/", ".")

    def _prefix(self, number: int, token: str) -> str:
        return f"{self._path}/files/{number:08d}-{token}"

    def _delete_before(self, number: int, *, only: int | None = None, token: str = "") -> None:
        """Delete the files of builds before a number; a later one may be under way elsewhere."""
        for key in list(self._store.list(f"{self._path}/files/")):
            of, _, rest = key.removeprefix(f"{self._path}/files/").partition("-")
            mine = only is None or (int(of) == only and rest.startswith(token))
            if int(of) < number and mine:
                self._store.delete(key)


def indexed_fields(store: ObjectStore, project: str, view: str) -> list[str]:
    """List the fields of a view that ever had an index."""
    prefix = f"features/{project}/indexes/{view}/"
    return list(dict.fromkeys(key.removeprefix(prefix).partition("/")[0] for key in store.list(prefix)))


def write_index(folder: Path, rows: VectorRows, lists: InvertedLists) -> None:
    """Write rows and lists to a folder that has the rows' vectors as `VECTORS`: what `open_index` reads."""
    table = rows.added()
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    np.save(folder / "order.npy", rows.ids)
    lists.save(folder)


def open_index(folder: Path, build: IndexBuild, view: FeatureView, field: str) -> LoadedIndex:
    """Open a folder that `write_index` wrote; its vectors stay in the file until they are used."""
    with pa.memory_map(str(folder / "rows.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    vectors, order = np.load(folder / VECTORS, mmap_mode="r"), np.load(folder / "order.npy")
    rows = VectorRows.placed(view, field, table.drop_columns(PRESENT), vectors, order, table.column(PRESENT))
    lists = InvertedLists.load(folder, build.metric)
    places = rows.places()
    return LoadedIndex(build, rows, lists, places, places[lists.rows])


class Loader:
    """Keeps the newest index of a field in memory. Safe for threads."""

    def __init__(self) -> None:
        self._loaded: LoadedIndex | None = None
        self._lock = threading.Lock()

    def newest(self, builds: IndexBuilds, view: FeatureView, index: VectorIndex) -> LoadedIndex | None:
        """Load the newest build, None where there is none for this definition."""
        with self._lock:
            build, field = builds.newest(), index.field
            if build is None or (build.metric, build.semantics) != (index.metric, digest(view.semantics())):
                if self._loaded is not None:
                    builds.clear()
                self._loaded = None
            elif self._loaded is None or self._loaded.build.number != build.number:
                with suppress(Damaged):  # deleted by a later build, which the next look finds
                    self._loaded = builds.load(build, view, field)
            return self._loaded
