"""Documents that hold text of test sets: the same words in a row, as for GPT-3 (13, Brown et al. 2020, appendix C).

datatrove's filter looks; its indexer is not used, because it loads tasks from a package that downloads them. Here the
test sets are those of task recipes. Texts are compared without case, punctuation, accents and values of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import ngrams, simplify_text

from kamerton.errors import KamertonError
from kamerton.text.corpus.options import Decontaminate
from kamerton.text.corpus.step import Step
from kamerton.text.corpus.words import Words


class DecontaminateStep(Step):
    """Rejects what shares words in a row with a test set; says which words, and which set.

    Args:
        tests: the texts of each test set by name.
        index: the folder for what is looked for.
    """

    def __init__(
        self, folder: str, label: str, options: Decontaminate, tests: Mapping[str, Sequence[str]], index: Path
    ) -> None:
        super().__init__(folder, label)
        if not tests:
            raise KamertonError("no test sets are given", mend="name task recipes: decontaminate: {recipes: [FILE]}")
        config = NGramsDecontConfig(
            n_grams=options.words, hash_config=HashConfig(hash_fc="sha1")
        )  # xxhash 4 takes no text
        words, digest = Words(), create_hash_func(config.hash_config)
        self.told: dict[str, tuple[int, int]] = {}
        names = {}
        for number, (name, texts) in enumerate(tests.items()):
            hashes: set[int] = set()
            short = 0
            for text in texts:
                said = words.word_tokenize(simplify_text(text, config.norm_config))
                found = [digest(" ".join(gram)) for gram in ngrams(said, options.words)]
                hashes.update(found)
                short += not found
            self.told[name] = (len(texts), short)
            names[f"{number:03d}"] = name
            path = index / f"{number:03d}.index.hashes"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.array(sorted(hashes), dtype=config.hash_config.np_descr).tofile(path)
        self.names = names
        self.filter = NGramsDecontFilter(str(index), config=config, language=words)

    def judge(self, doc: Document) -> str | None:
        if self.filter.filter(doc) is True:
            return None
        name = self.names[str(doc.metadata["contaminated_task"])]
        doc.metadata["contaminated_task"] = name
        return f"holds text of {name}"
