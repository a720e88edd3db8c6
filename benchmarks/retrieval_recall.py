"""Recall of an index's searches, or of a trained query encoder, on a task's test questions; no answer is generated.

    python benchmarks/retrieval_recall.py runs/squad-index examples/squad-open.yaml --data FOLDER
    python benchmarks/retrieval_recall.py runs/squad-rag examples/squad-open.yaml --data FOLDER

The first argument is an index, or what `kamerton tune` saved of the method rag.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from kamerton.methods import load_adapted
from kamerton.methods.documents import DEPTHS, questions, recall
from kamerton.methods.rag import Answering
from kamerton.recipe import load_recipe
from kamerton.retrieval.index import HOWS, PassageIndex
from kamerton.tasks import load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    examples = load_task(load_recipe(given.recipe, data=given.data, overrides=given.set).task).test
    asked = questions(examples)
    if (given.target / "index.json").is_file():
        index = PassageIndex.open(given.target)
        index.encoder.questions(asked[:1])
        found = {}
        for how in HOWS:
            start = time.perf_counter()
            found[str(how)] = index.search_all(asked, DEPTHS[-1], how)
            print(f"{how}: {(time.perf_counter() - start) / len(asked) * 1000:.1f} ms a question")
    else:
        model = load_adapted(given.target)
        assert isinstance(model, Answering), "a saved rag, or an index"
        index = model.index
        found = {
            "before training": index.search_all(asked, DEPTHS[-1], "vector"),
            "as trained": [index.by_vector(v, DEPTHS[-1]) for v in model.queries.questions(asked)],
        }
    print(f"{len(index)} passages, {len(asked)} questions")
    table = recall(examples, found, "none")
    print(f"{'':10}" + "".join(f"{name:>18}" for name in table.columns[1:]))
    for name, *values in table.rows:
        print(f"{name:10}" + "".join(f"{value:18.3f}" for value in values))


if __name__ == "__main__":
    main()
