"""Where the adversarial signal brings something: a small language whose distribution is known exactly.

A query is one of a few symbols, and each has a language of its own: strings of letters from a Markov chain, with a
greatest length, so that all strings can be listed and the likelihood of each is known. A tiny transformer is pretrained
on other languages of the same kind and frozen. A soft prompt is trained on a number of reference strings, with
supervision first, and then by one of several signals for the same number of steps; the control goes on with
supervision. The divergences from the truth in both directions are exact sums over all strings: forward KL(p ‖ π) grows
where the model leaves out what the language has, reverse KL(π ‖ p) where it says what the language has not.

Run: `python benchmarks/known_language.py` (some minutes; `--references 256 --seeds 1` for a quick look).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from kamerton.base import Base, load_base
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Adapted, Run
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget

LETTERS = "abcd"
QUERIES = 6
LONGEST = 5
END = 0.25
"""The chance that a string ends after each letter."""


SHAPE = (len(LETTERS) + 1, len(LETTERS))
SHARPNESS = 0.8
QUERY_PARTS = np.random.default_rng(5).standard_normal((QUERIES, *SHAPE))
FACTORS, VALUES = 3, 12
"""A language the base knows is named by three words of twelve each; each word adds to the log-odds of all letters."""


@dataclass(frozen=True)
class Language:
    """For each query a Markov chain.

    Attributes:
        first: (Q, K) chances of the first letter; `then`: (Q, K, K) of a letter behind another.
    """

    first: np.ndarray
    then: np.ndarray

    @classmethod
    def of(cls, parts: np.ndarray) -> Language:
        """The language whose log-odds are the sum of parts, (N, K + 1, K), and of what each query adds.

        Parts may differ by query, (N, Q, K + 1, K), as they do in no language that the base knows.
        """
        odds = np.exp(SHARPNESS * (parts.sum(0) + QUERY_PARTS))
        chances = odds / odds.sum(-1, keepdims=True) * 0.96 + 0.01
        return cls(chances[:, 0], chances[:, 1:])

    @classmethod
    def drawn(cls, seed: int, apart: float = 0.0) -> Language:
        """A language with parts that no other one has; `apart` is how much of them differs by query."""
        rng = np.random.default_rng([7, seed])
        common, own = rng.standard_normal((FACTORS, 1, *SHAPE)), rng.standard_normal((FACTORS, QUERIES, *SHAPE))
        return cls.of((1 - apart) ** 0.5 * common + apart**0.5 * own)

    def probability(self, query: int, string: tuple[int, ...]) -> float:
        """Of a whole string; the longest ones end for certain."""
        p = float(self.first[query, string[0]])
        for a, b in itertools.pairwise(string):
            p *= (1 - END) * float(self.then[query, a, b])
        return p * (END if len(string) < LONGEST else 1.0)

    def sample(self, query: int, rng: np.random.Generator) -> tuple[int, ...]:
        string = [int(rng.choice(len(LETTERS), p=self.first[query]))]
        while len(string) < LONGEST and rng.random() > END:
            string.append(int(rng.choice(len(LETTERS), p=self.then[query, string[-1]])))
        return tuple(string)


STRINGS = [s for n in range(1, LONGEST + 1) for s in itertools.product(range(len(LETTERS)), repeat=n)]


def text(string: tuple[int, ...]) -> str:
    """As the model writes it."""
    return " ".join(LETTERS[i] for i in string)


def named(count: int, seed: int) -> tuple[Example, ...]:
    """Strings of many languages, each behind the words that name its language."""
    parts = np.random.default_rng([3, seed]).standard_normal((FACTORS, VALUES, *SHAPE))
    rng = np.random.default_rng([4, seed])
    out = []
    for i in range(count):
        words, query = rng.integers(VALUES, size=FACTORS), int(rng.integers(QUERIES))
        language = Language.of(parts[range(FACTORS), words])
        asked = " ".join([*(f"w{f}{v}" for f, v in enumerate(words)), f"q{query}"])
        said = text(language.sample(query, rng))
        out.append(Example(id=f"n{i}", messages=conversation([("user", asked)]), answers=(said,)))
    return tuple(out)


def examples(language: Language, count: int, seed: int) -> tuple[Example, ...]:
    """Queries with a string of their language each."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        query = i % QUERIES
        messages = conversation([("user", f"q{query}")])
        out.append(Example(id=f"{seed}-{i}", messages=messages, answers=(text(language.sample(query, rng)),)))
    return tuple(out)


def task(train: tuple[Example, ...]) -> Task:
    """No validation examples: the end of training is judged, whatever it is."""
    return Task("known-language", train, (), (), ("exact-match",), max_answer_tokens=LONGEST + 1)


def empty_base(folder: Path, seed: int) -> None:
    """A tiny random transformer over the letters and queries."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [
        "<end>",
        "<go>",
        *LETTERS,
        *(f"q{i}" for i in range(QUERIES)),
        *(f"w{f}{v}" for f in range(FACTORS) for v in range(VALUES)),
    ]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<end>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<end>", unk_token="<end>")
    made.add_special_tokens({"additional_special_tokens": ["<go>"]})
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<go> {% endif %}"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, eos_token_id=0, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)


def fitted(base: Base, name: str, what: Task, steps: int, folder: Path, seed: int, **options: Any) -> Adapted:
    """A method of the project's, trained for some steps."""
    method = get_method(name)
    return method.fit(base, what, Budget(steps=steps), parse_options(method, options), Run(folder, seed))


def pretrained(folder: Path, seed: int, steps: int = 2000) -> Base:
    """A base that knows many languages by name, so that a soft prompt can name one that it does not know."""
    empty_base(folder / "empty", seed)
    base = load_base(folder / "empty", dtype="float32", device="cpu")
    adapted = fitted(base, "full", task(named(24_000, seed)), steps, folder / "fit", seed, learning_rate=3e-3,
                     batch_size=64)  # fmt: skip
    adapted.save(folder / "base")
    base.renderer.tokenizer.save_pretrained(folder / "base")
    return load_base(folder / "base", dtype="float32", device="cpu")


def divergences(adapted: Adapted, truth: Language) -> tuple[float, float]:
    """Forward KL(p ‖ π) and reverse KL(π ‖ p) in nats a string, means over queries; π over all listed strings."""
    asked = [conversation([("user", f"q{q}")]) for q in range(QUERIES)]
    rows = adapted.score(asked, [[text(s) for s in STRINGS]] * QUERIES)
    forward, reverse = [], []
    for query, row in enumerate(rows):
        log_p = np.log([truth.probability(query, s) for s in STRINGS])
        log_q = np.asarray(row)
        inside = log_q - np.logaddexp.reduce(log_q)
        forward.append(float(np.sum(np.exp(log_p) * (log_p - log_q))))  # what is said outside the list counts here
        reverse.append(float(np.sum(np.exp(inside) * (inside - log_p))))
    return mean(forward), mean(reverse)


SIGNALS: dict[str, dict[str, Any]] = {
    "supervised": {"weight": 0.0, "path": "references"},
    "references": {"path": "references"},
    "references, no correction": {"path": "references", "correction": False},
    "rollouts": {"path": "rollouts"},
    "both": {"path": "both"},
}
"""What goes on from the supervised start; the first is the control."""


def trial(
    base: Base, references: int, signal: str, seed: int, *, steps: int, stage: float, parameterisation: str,
    tokens: int = 4, apart: float = 0.0,
    **options: Any,
) -> tuple[float, float]:  # fmt: skip
    """Divergences after `steps` steps, of which the share `stage` by the signal."""
    truth = Language.drawn(seed, apart)
    what = task(examples(truth, references, 500 + seed))
    adversarial = {"share": stage, "queries": 8, "group": 4, "rank": 8, **options, **SIGNALS[signal]}
    sizes = {"tokens": tokens, "init": "vocabulary"} if parameterisation != "full" else {}
    if parameterisation == "prompt-generator":
        sizes |= {"generated": 2, "rank": 8, "key_size": 8}
    with tempfile.TemporaryDirectory() as folder:
        adapted = fitted(
            base, parameterisation, what, steps, Path(folder), seed, learning_rate=0.05, batch_size=32,
            objective="adversarial", adversarial=adversarial, **sizes,
        )  # fmt: skip
        return divergences(adapted, truth)


def spread(values: list[float]) -> str:
    return f"{mean(values):+.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--signals", nargs="*", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--stage", type=float, default=0.5)
    parser.add_argument("--apart", type=float, default=1.0, help="how much of the language differs by query, 0 to 1")
    parser.add_argument("--parameterisation", default="prompt-tuning")
    parser.add_argument("--set", nargs="*", default=[], help="options of the stage, as name=JSON")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options = {name: json.loads(value) for name, _, value in (s.partition("=") for s in args.set)}
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = pretrained(Path(folder), 0)
        print("| references | signal | forward KL | reverse KL | Δ forward | Δ reverse |\n|---|---|---|---|---|---|")
        for references in args.references:
            control: list[tuple[float, float]] = []
            for signal in args.signals:
                found = [
                    trial(base, references, signal, seed, steps=args.steps, stage=args.stage,
                          parameterisation=args.parameterisation, apart=args.apart, **options)
                    for seed in range(args.seeds)
                ]  # fmt: skip
                control = control or found
                forward, reverse = zip(*found, strict=True)
                change = [[a[i] - b[i] for a, b in zip(found, control, strict=True)] for i in (0, 1)]
                cells = [f"{mean(forward):.3f}", f"{mean(reverse):.3f}", *map(spread, change)]
                print(f"| {references:,} | {signal} | {' | '.join(cells)} |", flush=True)
                rows.append({"references": references, "signal": signal, "found": found})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
