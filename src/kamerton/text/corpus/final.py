"""The lines of the finished corpus: id, text, domain, what steps found (language, scores); copies where a mix asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kamerton.text.corpus.files import line, lines
from kamerton.text.corpus.step import COPIES, SIZE

LEFT_OUT = {SIZE, "kind", COPIES}


def corpus_lines(stage: Path, tasks: int) -> Iterator[bytes]:
    """The documents that the last stage kept, in the order of the input, as JSON lines."""
    for rank in range(tasks):
        for row in lines(stage / "documents" / f"{rank:05d}.jsonl"):
            about = {key: value for key, value in row["metadata"].items() if key not in LEFT_OUT}
            record = {"id": row["id"], "text": row["text"], **about}
            yield line(record)
            for copy in range(2, row["metadata"].get(COPIES, 1) + 1):
                yield line({**record, "id": f"{row['id']}#copy{copy}"})
