"""The LanceDB table of an index: its columns, how it is opened, and what its errors become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from kamerton.errors import MissingExtra
from kamerton.files import refusals, refused_by
from kamerton.retrieval.documents import DocumentError

TABLE = "passages"


def schema(dimension: int) -> Any:
    """The columns: what is shown, what the words are searched in, and the vector."""
    import pyarrow as pa

    text, number = pa.string(), pa.int32()
    fields = [("id", text), ("source", text), ("hash", text), ("title", text), ("heading", text), ("page", number)]
    fields += [("number", number), ("text", text), ("searched", text), ("vector", pa.list_(pa.float32(), dimension))]
    return pa.schema(fields)


def open_table(folder: Path, about: dict[str, Any]) -> Any:
    """The table; made here if a kill came between `index.json` and it."""
    lancedb = lancedb_or_refuse()
    from lancedb.index import FTS

    with reading(folder):
        database = lancedb.connect(folder, read_consistency_interval=timedelta(0))  # sees what others commit
        table = database.create_table(TABLE, schema=schema(about["encoder"]["dimension"]), exist_ok=True)
        if not list(table.list_indices()):
            table.create_index("searched", config=FTS(language=about["language"], with_position=False))
        return table


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with the files into one line."""
    try:
        with refusals(folder):
            yield
    except Exception as error:  # lance raises its own and Rust's errors, all of them about these files
        if refused_by(error) is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise DocumentError(f"the index cannot be read ({reason})", where=folder, mend="build it again") from error


def lancedb_or_refuse() -> Any:
    """The library, or the line that names how to install it."""
    try:
        import lancedb
    except ImportError:
        raise MissingExtra("lancedb", "retrieval") from None
    return lancedb


def quoted(texts: Sequence[str]) -> str:
    """Texts as a list of SQL strings."""
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


LANGUAGES = (
    "Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek", "Hungarian", "Italian",
    "Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Tamil", "Turkish",
)  # fmt: skip
"""Languages that LanceDB stems."""
