"""First cases of the readers of files: small ones that are read without an error, made by the program where it can."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

from fuzzing.mutations import Case

TASKS = {
    "jsonl": "task files, JSON lines: conversations, choices, labels, questions, instructions",
    "json": "task files, JSON, and the layouts of SQuAD and SNIPS",
    "csv": "task files, CSV, TSV and lines by a pattern, packed or not",
    "conll": "task files, words with tags",
    "parquet": "task files, Parquet",
    "preferences": "files of preferences: pairs, rankings, graded answers, thumbs, hh-rlhf",
}


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _recipe(data: str, more: str = "") -> bytes:
    return f"task:\n  data: {data}\n  split: {{test: 2, validation: 2}}\n{more}methods: [zero-shot]\n".encode()


ROWS: list[list[dict[str, Any]]] = [
    [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q {n}"},
                   {"role": "assistant", "content": "a"}]} for n in range(8)],
    [{"conversations": [{"from": "human", "value": f"q {n}"}, {"from": "gpt", "value": "a"}]} for n in range(8)],
    [{"question": f"q {n}", "choices": ["a", "b"], "answer": n % 2} for n in range(8)],
    [{"question": f"q {n}", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "A"} for n in range(8)],
    [{"text": f"t {n}", "label": "ab"[n % 2], "id": n, "group": "g"} for n in range(8)],
    [{"prompt": f"p {n}", "completion": "c", "reasoning": "because"} for n in range(8)],
    [{"question": f"q {n}", "answers": ["a", "b"], "context": "c"} for n in range(8)],
    [{"question": f"q {n}", "answers": {"text": ["a"], "answer_start": [0]}, "context": "a c"} for n in range(8)],
    [{"instruction": f"i {n}", "input": "x", "output": "o"} for n in range(8)],
    [{"tokens": ["Anna", f"n{n}"], "tags": ["B-PER", "O"]} for n in range(8)],
]  # fmt: skip

PREFERENCES: list[list[dict[str, Any]]] = [
    [{"prompt": f"p {n}", "chosen": "good", "rejected": "bad", "margin": 1.5} for n in range(8)],
    [{"prompt": [{"role": "user", "content": f"p {n}"}], "chosen": [{"role": "assistant", "content": "good"}],
      "rejected": [{"role": "assistant", "content": "bad"}]} for n in range(8)],
    [{"prompt": f"p {n}", "ranked": ["a", "b", "c"]} for n in range(8)],
    [{"id": str(n), "prompt": [{"role": "user", "content": f"p {n}"}],
      "graded": [{"answer": "a", "score": 2.0}, {"answer": "b", "score": 1}]} for n in range(8)],
    [{"prompt": f"p {n // 2}", "completion": "ab"[n % 2], "score": n} for n in range(8)],
    [{"prompt": f"p {n}", "completion": "a", "label": n % 2 == 0} for n in range(8)],
]  # fmt: skip


def task(kind: str) -> list[Case]:
    """Cases of a kind of task file."""
    if kind == "jsonl":
        columns = "  columns: {question: question, answer: answer}\n"
        first = [{"r.yaml": _recipe("a.jsonl"), "a.jsonl": _lines(rows)} for rows in ROWS]
        return [*first, {"r.yaml": _recipe("a.jsonl", columns), "a.jsonl": _lines(ROWS[2])}]
    if kind == "json":
        squad = {"data": [{"title": "t", "paragraphs": [{"context": "a b c", "qas": [
            {"id": str(n), "question": f"q {n}", "answers": [{"text": "b", "answer_start": 2}]} for n in range(8)]}]}]}  # fmt: skip
        snips = {"Play": [{"data": [{"text": f"play {n} "}, {"text": "jazz", "entity": "genre"}]} for n in range(8)]}
        plain = [{"r.yaml": _recipe("a.json"), "a.json": json.dumps(rows).encode()} for rows in ROWS[:4]]
        return [
            *plain,
            {
                "r.yaml": _recipe("a.json", "  field: rows.all\n"),
                "a.json": json.dumps({"rows": {"all": ROWS[4]}}).encode(),
            },
            {"r.yaml": _recipe("a.json", "  reader: squad\n"), "a.json": json.dumps(squad).encode()},
            {"r.yaml": _recipe("a.json", "  reader: snips\n"), "a.json": json.dumps(snips).encode()},
        ]
    if kind == "csv":
        table = "text,label\n" + "".join(f'"message, {n}",{"ab"[n % 2]}\n' for n in range(8))
        text = "".join(f"{n % 2} message {n}\n" for n in range(8))
        pattern = "  format: lines\n  pattern: '(?P<label>\\d) (?P<text>.*)'\n"
        bio = "text,tokens,tags,intent\n" + "".join(f"a,play jazz {n},O B-genre O,Play\n" for n in range(8))
        return [
            {"r.yaml": _recipe("a.csv"), "a.csv": table.encode()},
            {"r.yaml": _recipe("a.csv", "  encoding: cp1251\n"), "a.csv": table.encode()},
            {"r.yaml": _recipe("a.csv", "  encoding: utf-16\n"), "a.csv": table.encode("utf-16")},
            {"r.yaml": _recipe("a.csv.gz"), "a.csv.gz": gzip.compress(table.encode(), 1)},
            {"r.yaml": _recipe("a.csv"), "a.csv": table.replace(",", ";").encode()},
            {"r.yaml": _recipe("a.tsv"), "a.tsv": table.replace("e, ", "e ").replace(",", "\t").encode()},
            {"r.yaml": _recipe("a.txt", pattern), "a.txt": text.encode()},
            {"r.yaml": _recipe("a.csv", "  reader: bio\n"), "a.csv": bio.encode()},
            {
                "r.yaml": _recipe("a.csv", "  template: '{text} and {label}'\n  labels: {a: yes, b: no}\n"),
                "a.csv": table.encode(),
            },
        ]
    if kind == "conll":
        text = "".join(f"Anna{n} NNP B-PER\nruns VBZ O\n\n" for n in range(8))
        return [
            {"r.yaml": _recipe("a.conll"), "a.conll": text.encode()},
            {"r.yaml": _recipe("a.conll"), "a.conll": text.replace(" ", "\t").encode()},
        ]
    if kind == "parquet":
        return [{"r.yaml": _recipe("a.parquet"), "a.parquet": parquet(rows)} for rows in (*ROWS[:3], *ROWS[4:8])]
    hh = [
        {"chosen": f"\n\nHuman: p {n}\n\nAssistant: a", "rejected": f"\n\nHuman: p {n}\n\nAssistant: b"}
        for n in range(8)
    ]
    first = [{"r.yaml": _recipe("a.jsonl"), "a.jsonl": _lines(rows)} for rows in PREFERENCES[:4]]
    return [*first, {"r.yaml": _recipe("a.jsonl", "  reader: hh-rlhf\n"), "a.jsonl": _lines(hh)}]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, compression="zstd")
    return out.getvalue()


def feedback() -> list[Case]:
    prompt = [{"role": "user", "content": "q"}]
    rows = [
        {"id": "a", "prompt": prompt, "answers": ["x", "y"], "chosen": 0},
        {"id": "b", "prompt": prompt, "answers": ["x", "z", "w"], "scores": [1, None, 0.5]},
    ]
    graded = [{"id": "c", "prompt": prompt, "graded": [{"answer": "x", "score": 1.0}, {"answer": "y", "score": 0.0}]}]
    return [{"a.jsonl": _lines(rows)}, {"a.jsonl": _lines(graded)}]


def graded() -> list[Case]:
    rows = [{"prompt": "q", "answer": "a"}, {"messages": [{"role": "user", "content": "q"}], "answer": "a"}]
    return [{"a.jsonl": _lines(rows)}]


def stores(folder: Path) -> list[Case]:
    from kamerton.feedback.records import Candidate, make_item
    from kamerton.feedback.store import FeedbackStore
    from kamerton.tasks.example import conversation

    path = folder / "made.sqlite"
    store = FeedbackStore(path)
    answers = [Candidate("x", "m"), Candidate("y", None, {"t": 1})]
    store.add([make_item(conversation([("user", f"q {n}")]), answers, name=str(n)) for n in range(4)])
    for item in store.items():
        store.label(item.id, "ann", "comparison", (0, 1), (1.0, 0.0))
    store.label(1, "bob", "rating", (0,), (7.0,))
    store.close()
    return [{"f.sqlite": path.read_bytes()}]


def conversations() -> list[Case]:
    return [{"c.jsonl": _lines(ROWS[0][:2])}, {"c.jsonl": _lines(ROWS[1][:2])}]


HTML = (
    "<!DOCTYPE html><html><head><title>A page</title><meta charset=utf-8></head><body><nav>menu</nav><article>"
    + "".join(f"<h2>Part {n}</h2><p>The cat sat on the mat, and the dog ran through the garden in the evening.</p>" for n in range(4))
    + "<table><tr><td>a</td></tr></table><script>var a;</script></article></body></html>"
)  # fmt: skip
TEI = (
    '<?xml version="1.0" encoding="utf-8"?><TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><p>h</p></teiHeader>'
    "<text><body><div><head>I</head><sp><speaker>A.</speaker><l>One line</l><l>Another</l></sp></div></body></text></TEI>"
)


def pdf() -> bytes:
    import pypdf

    writer, out = pypdf.PdfWriter(), io.BytesIO()
    page = writer.add_blank_page(100, 100)
    content = pypdf.generic.DecodedStreamObject()
    content.set_data(b"BT /F1 12 Tf 10 10 Td (A note) Tj ET")
    page[pypdf.generic.NameObject("/Contents")] = writer._add_object(content)
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    named = pypdf.generic.DictionaryObject(
        {pypdf.generic.NameObject(k): pypdf.generic.NameObject(v) for k, v in font.items()}
    )
    fonts = pypdf.generic.DictionaryObject({pypdf.generic.NameObject("/F1"): named})
    page[pypdf.generic.NameObject("/Resources")] = pypdf.generic.DictionaryObject(
        {pypdf.generic.NameObject("/Font"): fonts}
    )
    writer.write(out)
    return out.getvalue()


def documents() -> list[Case]:
    notes = "---\ntitle: Notes\n---\n# One\ntext\n## Two\n```\n# code\n```\nmore\n"
    return [
        {"a.md": notes.encode()}, {"a.html": HTML.encode()}, {"a.txt": b"plain"}, {"a.pdf": pdf()},
        {"a.md.gz": gzip.compress(notes.encode(), 1)}, {"a.txt": "utf-16 text".encode("utf-16")},
    ]  # fmt: skip


def warc() -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=False)
    headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
    writer.write_record(
        writer.create_warc_record("http://a.b/", "response", payload=io.BytesIO(HTML.encode()), http_headers=headers)
    )
    writer.write_record(writer.create_warc_record("http://a.b/", "conversion", payload=io.BytesIO(b"some text")))
    return out.getvalue()


def raw_files() -> list[Case]:
    import bz2
    import lzma

    import zstandard

    rows = _lines([{"text": f"text {n}", "id": n, "url": "u"} for n in range(4)])
    text = "Some text, with é and 你好.\nAnother line.\n".encode()
    return [
        {"a.txt": text}, {"a.txt": text.decode().encode("utf-16")}, {"a.html": HTML.encode()}, {"a.xml": TEI.encode()},
        {"a.xml": b"<a><b>one</b>two</a>"}, {"a.jsonl": rows}, {"a.warc": warc()}, {"a.warc.gz": gzip.compress(warc(), 1)},
        {"a.parquet": parquet([{"text": f"text {n}", "id": str(n)} for n in range(4)])}, {"a.txt.gz": gzip.compress(text, 1)},
        {"a.jsonl.zst": zstandard.compress(rows)}, {"a.txt.bz2": bz2.compress(text)}, {"a.txt.xz": lzma.compress(text)},
        {"a.txt": "текст по-русски, довольно длинный, чтобы его узнать".encode("cp1251")},
    ]  # fmt: skip


def texts() -> list[Case]:
    import bz2
    import lzma

    text, rows = b"the cat sat\n\nthe dog ran\n", _lines([{"text": "the cat\nsat"}, {"text": "é"}])
    return [
        {"a.txt": text}, {"a.jsonl": rows}, {"a.txt.gz": gzip.compress(text, 1)}, {"a.jsonl.gz": gzip.compress(rows, 1)},
        {"a.txt.bz2": bz2.compress(text)}, {"a.txt.xz": lzma.compress(text)},
    ]  # fmt: skip


def ngram_models(folder: Path) -> list[Case]:
    from kamerton.text.ngrams import estimate, open_units

    text = folder / "n.txt"
    text.write_text("the cat sat\nthe dog ran\nthe cat ran\n" * 3)
    cases = []
    for kind in ("words", "bytes"):
        estimate([text], open_units(kind, [text]), 3).save(folder / kind)
        cases.append({p.name: p.read_bytes() for p in (folder / kind).iterdir()})
    return cases


def model_folders(folder: Path) -> list[Case]:
    import tiny

    tiny.save(folder / "base", layers=1)
    tiny.save_encoder_decoder(folder / "t5", layers=1)
    return [{p.name: p.read_bytes() for p in sorted((folder / name).iterdir())} for name in ("base", "t5")]


def gguf_files(folder: Path) -> list[Case]:
    import tiny
    from kamerton.api import export

    tiny.save(folder / "base", layers=1)
    made = export(folder / "base", folder / "made", format="gguf", type="f32")
    return [{"m.gguf": made.file.read_bytes()}]


def saved_methods(folder: Path) -> tuple[Any, list[Case]]:
    import tiny
    from kamerton.base import load_base
    from kamerton.training import Budget

    base = load_base(tiny.save(folder / "base", layers=1), dtype="float32", device="cpu")
    cases, options = [], {"lora": {"rank": 2}, "prompt-tuning": {"tokens": 2}, "few-shot": {"shots": 2}}
    for name in ("zero-shot", "few-shot", "lora", "prompt-tuning"):
        made = tiny.fit(base, name, folder / f"run-{name}", budget=Budget(steps=1), **options.get(name, {}))
        made.save(folder / f"saved-{name}")
        place = folder / f"saved-{name}"
        cases.append({p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()})
        shutil.rmtree(folder / f"run-{name}", ignore_errors=True)
    return base, cases
