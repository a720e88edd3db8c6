"""The index: passages with their vectors in a LanceDB table on disk, and a full-text (BM25) index beside them.

The folder holds `index.json` (the encoder's name and fingerprint, and how documents are cut) and the table. One
document's passages, or those of a batch of documents, are replaced by one commit of the table: a reader, or whoever
opens the folder after a kill, sees a document as it was or as it is, and nothing between. Rows that the full-text index
has not taken up yet are searched without it, so both searches are always current.

The vector search compares the question with every vector, so it is exact. It leaves out approximate search, which pays
from about a million passages on.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kamerton.files import refusals, write_json
from kamerton.locks import LOCK, take
from kamerton.retrieval.documents import Document, DocumentError
from kamerton.retrieval.encoder import MINILM, Encoder, load_encoder
from kamerton.retrieval.hits import COLUMNS, Hit, fuse, hit_of
from kamerton.retrieval.passages import Cutting, Passage, cut
from kamerton.retrieval.table import LANGUAGES, lancedb_or_refuse, open_table, quoted, reading, schema
from kamerton.tasks.example import fingerprint

How = Literal["vector", "full-text", "hybrid"]
HOWS: tuple[How, ...] = get_args(How)
FORMAT = 1
FLUSH = 128
"""Passages that are embedded and committed together."""
WAIT = 10.0
"""Seconds to wait for another process that writes."""
OLD_VERSIONS = timedelta(days=1)
"""How long versions of the table that a reader may still hold are kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document in the index."""

    source: str
    title: str
    hash: str
    passages: int


@dataclass
class Changes:
    """What was done to documents of the index."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    passages: int = 0


class PassageIndex:
    """An index in a folder; `create` and `open` make one.

    Args:
        folder: where it is.
        about: what `index.json` says.
        table: the LanceDB table.
        encoder: the encoder, if it is loaded already; default: the one that `about` names, loaded when it is needed.
    """

    def __init__(self, folder: Path, about: dict[str, Any], table: Any, encoder: Encoder | None = None) -> None:
        self.folder, self.about, self._table = folder, about, table
        self.cutting = Cutting(**about["cutting"])
        self._encoder = encoder

    # -- making and opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, folder: str | Path, *, encoder: str | Encoder = MINILM, cutting: Cutting | None = None,
        language: str = "English",
    ) -> PassageIndex:  # fmt: skip
        """Make an empty index.

        Args:
            folder: a new or empty folder.
            encoder: its name, or the encoder.
            cutting: how documents are cut.
            language: of stemming and stop words in the full-text search.

        Raises:
            DocumentError: the folder holds something else, or the cutting or the language is impossible.
        """
        folder, cutting = Path(folder), cutting or Cutting()
        if folder.exists() and (not folder.is_dir() or any(p.name != LOCK for p in folder.iterdir())):
            raise DocumentError("is there already and is no index", where=folder, mend="name a new folder")
        lancedb_or_refuse()
        encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        if not 0 <= cutting.overlap <= cutting.size // 2 or not 16 <= cutting.size <= encoder.room:
            raise DocumentError(
                f"passages of {cutting.size} tokens that share {cutting.overlap} cannot be cut",
                where=folder, mend=f"use a size of 16 to {encoder.room} and an overlap of at most half of it",
            )  # fmt: skip
        about = {
            "format": FORMAT,
            "encoder": {
                "name": encoder.name, "fingerprint": encoder.fingerprint, "dimension": encoder.dimension,
                "metric": encoder.metric,
            },
            "cutting": asdict(cutting),
            "language": language,
        }  # fmt: skip
        if language not in LANGUAGES:
            close = difflib.get_close_matches(language.title(), LANGUAGES, n=1)
            mend = f"did you mean {close[0]}?" if close else f"use one of: {', '.join(LANGUAGES)}"
            raise DocumentError(f"no stemming for the language '{language}'", where=folder, mend=mend)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "index.json", about)
        return cls(folder, about, open_table(folder, about), encoder)

    @classmethod
    def open(cls, folder: str | Path, encoder: str | Encoder | None = None) -> PassageIndex:
        """Open an index.

        Args:
            folder: where it is.
            encoder: refuse an index that another one made; default: take the one that made it.

        Raises:
            DocumentError: no index is there, it cannot be read, or another encoder made it.
        """
        folder = Path(folder)
        path = folder / "index.json"
        mend = "build it with: kamerton index add"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise DocumentError(f"has format {about['format']}, not {FORMAT}", where=path, mend="build it again")
            Cutting(**about["cutting"])
            known = about["encoder"]["fingerprint"], about["encoder"]["name"], about["encoder"]["dimension"]
        except FileNotFoundError:
            raise DocumentError("no index is here (no index.json)", where=folder, mend=mend) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"cannot be read ({type(error).__name__}: {error})"
            raise DocumentError(reason, where=path, mend="build the index again") from None
        lancedb_or_refuse()
        index = cls(folder, about, open_table(folder, about))
        if encoder is not None:
            given = load_encoder(encoder) if isinstance(encoder, str) else encoder
            if given.fingerprint != known[0]:
                raise _other_encoder(folder, known[1], given.name)
            index._encoder = given
        return index

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the index.

        Raises:
            DocumentError: the model of that name is another one today.
        """
        if self._encoder is None:
            known = self.about["encoder"]
            encoder = load_encoder(known["name"])
            if encoder.fingerprint != known["fingerprint"]:
                raise _other_encoder(self.folder, known["name"], f"{encoder.name} as it is now")
            self._encoder = encoder
        return self._encoder

    # -- documents --------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The documents, sorted by source."""
        columns = self._read(["source", "title", "hash"])
        found: dict[str, Entry] = {}
        for source, title, hash_ in zip(*(columns[c].to_pylist() for c in ("source", "title", "hash")), strict=True):
            count = found[source].passages if source in found else 0
            found[source] = Entry(source, title, hash_, count + 1)
        return [found[source] for source in sorted(found)]

    def __len__(self) -> int:
        return int(self._table.count_rows())

    @property
    def version(self) -> int:
        """Changes with every change of the documents, also by another process."""
        return int(self._table.version)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the encoder, the cutting and all documents' contents."""
        return fingerprint([self.about, [[e.source, e.hash] for e in self.entries()]])

    def put(self, documents: Iterable[Document], *, watch: Callable[[str, float], None] | None = None) -> Changes:
        """Add documents, or replace those that are there with another content; the others are left as they are.

        A batch of documents is one commit: killed at any moment, the index holds each as it was or as it is.

        Args:
            documents: read one after another.
            watch: called with a few words and the share that is done of the documents given so far.
        """
        changes = Changes()
        with self._writing():
            known = {e.source: e.hash for e in self.entries()}
            waiting: dict[str, tuple[Document, list[Passage]]] = {}
            for document in documents:
                if known.get(document.source) == document.hash:
                    changes.unchanged += 1
                    continue
                if document.source in known:
                    changes.updated += 1
                else:
                    changes.added += 1
                known[document.source] = document.hash
                waiting[document.source] = document, cut(document, self.cutting, self.encoder.offsets)
                if sum(len(passages) for _, passages in waiting.values()) >= FLUSH:
                    changes.passages += self._flush(waiting, watch)
            changes.passages += self._flush(waiting, watch)
            if changes.added or changes.updated:
                self._settle()
        return changes

    def remove(self, sources: Sequence[str]) -> int:
        """Take documents out; returns the number of their passages.

        Raises:
            DocumentError: one is not in the index; nothing is removed then.
        """
        with self._writing():
            known = {e.source: e.passages for e in self.entries()}
            for source in sources:
                if source not in known:
                    close = difflib.get_close_matches(source, known, n=1)
                    mend = f"did you mean {close[0]}?" if close else "see: kamerton index list"
                    raise DocumentError("is not in the index", where=source, mend=mend)
            if sources:
                self._table.delete(f"source IN ({quoted(sources)})")
                self._settle()
        return sum(known[source] for source in set(sources))

    def _flush(
        self, waiting: dict[str, tuple[Document, list[Passage]]], watch: Callable[[str, float], None] | None
    ) -> int:
        """Embed what waits and commit it at once; empties `waiting`, returns the number of passages."""
        if not waiting:
            return 0
        import pyarrow as pa

        pairs = [(document, passage) for document, passages in waiting.values() for passage in passages]
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if watch is not None:
                watch(f"{done} of {len(pairs)} passages embedded", done / len(pairs))

        vectors = self.encoder.passages([passage for _, passage in pairs], progress=tell)
        rows = pa.table(
            {
                "id": [f"{document.source}#{passage.number}" for document, passage in pairs],
                "source": [document.source for document, _ in pairs],
                "hash": [document.hash for document, _ in pairs],
                **{name: [getattr(passage, name) for _, passage in pairs] for name in COLUMNS[1:]},
                "searched": [f"{passage.context}\n{passage.text}" for _, passage in pairs],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.encoder.dimension),
            },
            schema=schema(self.encoder.dimension),
        )
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete(f"source IN ({quoted(list(waiting))})").execute(rows)
        waiting.clear()
        return len(pairs)

    def _settle(self) -> None:
        """Take new rows up into the full-text index, join small files, drop versions that nobody reads any more."""
        self._table.optimize(cleanup_older_than=OLD_VERSIONS)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        what = "another process is writing into the index"
        lock = take(self.folder, what, wait=WAIT, mend="run the command again later", kind=DocumentError)
        try:
            with refusals(self.folder):
                yield
        finally:
            lock.release()

    # -- search -----------------------------------------------------------------------------------------------------

    def search(self, question: str, count: int = 5, how: How = "hybrid") -> list[Hit]:
        """The passages that answer a question best, best first."""
        return self.search_all([question], count, how)[0]

    def search_all(
        self, questions: Sequence[str], count: int = 5, how: How = "hybrid", *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        """`search` for many questions.

        Args:
            questions: the questions.
            count: passages for each; fewer where the index has no more.
            how: by vectors, by words (BM25), or both joined by reciprocal rank fusion.
            progress: called with the questions done and their number.
        """
        vectors = None if how == "full-text" else self.encoder.questions(questions)
        out = []
        for i, question in enumerate(questions):
            if how == "full-text":
                hits = self.by_words(question, count)
            elif how == "vector":
                hits = self.by_vector(vectors[i], count)  # type: ignore[index]
            else:
                # fused from deeper lists: a passage that both find far down may be the best of all
                depth = max(4 * count, 20)
                hits = fuse(self.by_vector(vectors[i], depth), self.by_words(question, depth))[:count]  # type: ignore[index]
            out.append(hits)
            if progress is not None:
                progress(i + 1, len(questions))
        return out

    def by_vector(self, vector: np.ndarray, count: int) -> list[Hit]:
        """The passages nearest to a vector (D,), by the encoder's own measure."""
        metric = self.about["encoder"]["metric"]
        query = self._table.search(vector, vector_column_name="vector", query_type="vector").distance_type(metric)
        # the distance is 1 − similarity for both measures
        return self._hits(query, count, "_distance", lambda distance: 1 - distance)

    def by_words(self, question: str, count: int) -> list[Hit]:
        """The passages of the highest BM25; the question is words, not a query language."""
        from lancedb.query import MatchQuery

        words: Any = MatchQuery
        query = self._table.search(words(question, "searched"), query_type="fts")
        return self._hits(query, count, "_score", float)

    def vectors(self) -> tuple[list[Hit], np.ndarray]:
        """All passages and their vectors (N, D), in the order of their documents."""
        columns = self._read([*COLUMNS, "vector"])
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(
            *(columns[name].to_pylist() for name in COLUMNS), strict=True
        )]  # fmt: skip
        flat = columns["vector"].combine_chunks()
        flat = flat.flatten() if hasattr(flat, "flatten") else flat
        matrix = np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32)
        matrix = matrix.reshape(len(rows), self.about["encoder"]["dimension"])
        order = sorted(range(len(rows)), key=lambda i: (rows[i]["source"], rows[i]["number"]))
        return [hit_of(rows[i], 0.0) for i in order], matrix[order]

    def _hits(self, query: Any, count: int, column: str, score: Callable[[float], float]) -> list[Hit]:
        with reading(self.folder):
            rows = query.limit(count).select([*COLUMNS, column]).to_arrow().to_pylist()
        hits = [hit_of(row, score(row[column])) for row in rows]
        return sorted(hits, key=lambda hit: (-hit.score, hit.source, hit.passage.number))

    def _read(self, columns: list[str]) -> Any:
        with reading(self.folder):
            return self._table.search().select(columns).limit(max(len(self), 1)).to_arrow()


def _other_encoder(folder: Path, made: str, given: str) -> DocumentError:
    return DocumentError(
        f"the index was made by the encoder {made}, not by {given}", where=folder,
        mend="name the encoder that made it, or build another index",
    )  # fmt: skip
