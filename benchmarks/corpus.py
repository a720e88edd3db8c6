"""Documents a second of `kamerton corpus` against datatrove's own pipeline with the same steps, in turns.

Both read the same JSON lines and do the same: trafilatura, ftfy, Gopher's and C4's rules, MinHash (same words, bands
and rows), JSON lines out. Differences that stay: datatrove puts pages through a process of its own with a time limit,
does not compare candidates, writes only what it keeps, and keeps neither reasons nor counts that add up.

    pip install orjson
    python benchmarks/corpus.py --pages ~/data/article_html/html --turns 3

Without --pages texts are made up, and the step of extraction is left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

STEPS = ["extract", "repair", "gopher-quality", "gopher-repetition", "c4-quality", "near-duplicates"]
BANDS = {"words": 5, "bands": 14, "rows": 8}


def data(folder: Path, pages: Path | None, count: int, files: int) -> int:
    """Write the input; returns the number of documents."""
    rng = random.Random(0)
    if pages is not None:
        texts = [
            gzip.decompress(p.read_bytes()).decode("utf-8", "replace") for p in sorted(pages.glob("*.html.gz"))[:count]
        ]
    else:
        stock = ["".join(rng.choices("aeioutnrsl", k=rng.randint(2, 9))) for _ in range(5000)]
        stock += ["the", "of", "and", "to", "that"] * 300
        texts = [" ".join(" ".join(rng.choices(stock, k=12)) + "." for _ in range(40)) for _ in range(count)]
    for part in range(files):
        rows = [json.dumps({"id": str(i), "text": texts[i]}) for i in range(part, len(texts), files)]
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(texts)


def ours(source: Path, out: Path, html: bool, workers: int) -> int:
    """Kamerton; returns how many documents are left."""
    from kamerton.corpora import build_corpus

    steps = [step if step != "near-duplicates" else {step: BANDS} for step in STEPS if html or step != "extract"]
    sources = {"path": str(source), "content": "html" if html else "text"}
    corpus = build_corpus({"sources": sources, "steps": steps}, out, workers=workers)
    return corpus.results["steps"][-1]["out"][0]


def theirs(source: Path, out: Path, html: bool, workers: int) -> int:
    """datatrove, as its own examples put it together."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        HashConfig,
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )  # fmt: skip
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from loguru import logger

    from kamerton.text.corpus.words import Words

    logger.disable("datatrove")
    words, files = Words(), len(list(source.glob("*.jsonl")))
    config = MinhashConfig(5, 14, 8, hash_config=HashConfig(precision=32, hash_fc="sha1"))
    extract = [Trafilatura(favour_precision=False, deduplicate=False, timeout=60)] if html else []

    def run(name: str, pipeline: list, tasks: int) -> None:
        LocalPipelineExecutor(pipeline, tasks, workers, str(out / "log" / name)).run()

    run("clean", [
        JsonlReader(str(source)), *extract, FTFYFormatter(), GopherQualityFilter(language=words),
        GopherRepetitionFilter(language=words), C4QualityFilter(language=words),
        JsonlWriter(str(out / "clean"), compression=None),
    ], files)  # fmt: skip
    run("signatures", [JsonlReader(str(out / "clean")), MinhashDedupSignature(str(out / "s"), config, words)], files)
    run("buckets", [MinhashDedupBuckets(str(out / "s"), str(out / "b"), config=config)], 14)
    run("cluster", [MinhashDedupCluster(str(out / "b"), str(out / "r"), config)], 1)
    run("filter", [
        JsonlReader(str(out / "clean")), MinhashDedupFilter(str(out / "r")),
        JsonlWriter(str(out / "final"), compression=None),
    ], files)  # fmt: skip
    return sum(len(p.read_bytes().splitlines()) for p in (out / "final").glob("*.jsonl"))


def main() -> None:
    """Take turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, help="a folder of *.html.gz")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as out:
            start, cpu = time.perf_counter(), time.process_time()
            left = {"ours": ours, "theirs": theirs}[given.one](
                given.source, Path(out), given.pages is not None, given.workers
            )
            used = time.process_time() - cpu
            import resource

            used += sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            print(json.dumps({"seconds": time.perf_counter() - start, "processor": used, "left": left}))
        return
    source = Path(tempfile.mkdtemp())
    count = data(source, given.pages, given.documents, given.files)
    results: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for turn in range(given.turns):
        for who in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", who, "--source", str(source)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            results[who].append(json.loads(done.stdout.splitlines()[-1]))
            print(who, results[who][-1], flush=True)
    shutil.rmtree(source)
    for who, runs in results.items():
        wall, used = median(r["seconds"] for r in runs), median(r["processor"] for r in runs)
        rate = f"{count / wall:8.1f} documents a second, {count / used:8.1f} a second of processor"
        print(f"{who:7} {rate}, {runs[0]['left']} left")
    ratios = [b["processor"] / a["processor"] for a, b in zip(results["ours"], results["theirs"], strict=True)]
    print(f"processor time, theirs to ours: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
