"""Small things that the tests of training, methods, comparison and command line share.

A tiny random model in a folder, a task that it can begin to learn, recipes for both. A test module that uses the
fixtures says `pytest_plugins = ("tiny",)`. The model is made from a seed and its tokenizer from the words below, so
nothing is downloaded and everything is the same in every run. Models of many architectures are in `architectures.py`.

PYTEST_DONT_REWRITE: the module asserts nothing, and is imported before it is registered.
"""

from __future__ import annotations

import functools
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kamerton.base import Base, load_base
from kamerton.methods import METHODS, get_method, parse_options
from kamerton.methods.method import Adapted, Report, Run
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget

Cli = Callable[..., tuple[int, str, str]]
"""Runs a command: exit status, standard output, standard error."""
STEPS = Budget(steps=8)
CAUSAL = tuple(name for name in METHODS if name not in ("majority", "head"))
"""Methods that ask a causal model: not the one that asks none, and not the one that is for encoders alone."""
QUICK: dict[str, dict[str, Any]] = {"rag": {"learning_rate": 1e-3, "validations": 1, "passages": 2}}
"""Options of methods that would take long by default: rag trains an encoder of 22.7 million weights."""

WORDS = (
    "red green blue white black seven eight nine apple river stone cloud bread window garden letter music paper winter "
    "summer morning evening mountain forest bridge market the a of and to in is was on with for that it as at by"
).split()
COLOURS = ("red", "green", "blue", "white")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> Any:
    """A byte-level BPE of 400 tokens; padding shares its id with the end token, as in many models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    text = [" ".join(rng.choices(WORDS, k=12)) for _ in range(400)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    made.chat_template = TEMPLATE
    return made


def save(folder: Path, *, positions: int = 512, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Llama with its tokenizer as a model folder."""
    import transformers

    words = tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=positions, initializer_range=0.1, vocab_size=len(words), bos_token_id=None,
        eos_token_id=0, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    return folder


def save_encoder_decoder(folder: Path, kind: str = "t5", *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random T5 or BART with the same tokenizer, less its chat template, as a model folder."""
    import transformers

    words = tokenizer()
    words.chat_template = None
    common = {"vocab_size": len(words), "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None,
              "decoder_start_token_id": 0}  # fmt: skip
    if kind == "t5":
        config: Any = transformers.T5Config(
            d_model=48, d_kv=12, d_ff=96, num_layers=layers, num_heads=4, dropout_rate=0.0, **common
        )
    else:
        config = transformers.BartConfig(
            d_model=48, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=96, decoder_ffn_dim=96,
            encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=256, dropout=0.0,
            init_std=0.1, **common,
        )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    return folder


def colours(count: int, seed: int, *, start: int = 0) -> tuple[Example, ...]:
    """Questions that hold a colour among other words; the answer is the colour. No question comes twice."""
    rng = random.Random(seed)
    others = [w for w in WORDS if w not in COLOURS]
    out = []
    for n in range(start, start + count):
        colour = rng.choice(COLOURS)
        words = [*rng.choices(others, k=rng.randint(2, 7)), colour, str(n)]
        rng.shuffle(words)
        turns = conversation([("system", "Which colour is in the text?"), ("user", " ".join(words))])
        out.append(Example(id=f"colour-{n}", messages=turns, answers=(colour,), group="odd" if n % 2 else "even"))
    return tuple(out)


@functools.cache
def colour_task(train: int = 48, validation: int = 12, test: int = 16) -> Task:
    """A task that a tiny random model can begin to learn in a few steps."""
    return Task(
        "colours", colours(train, 1), colours(validation, 2, start=1000), colours(test, 3, start=2000),
        ("exact-match", "token-f1"), max_answer_tokens=6,
    )  # fmt: skip


def write_task(folder: Path, task: Task) -> str:
    """Write a task as three JSON-lines files; returns the recipe's `task` part."""
    for split in ("train", "validation", "test"):
        rows = []
        for example in getattr(task, split):
            turns = [{"role": m.role, "content": m.content} for m in example.messages]
            rows.append({"messages": [*turns, {"role": "assistant", "content": example.answers[0]}]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = ", ".join(f"{s}: {s}.jsonl" for s in ("train", "validation", "test"))
    return f"  name: {task.name}\n  data: {{{files}}}\n  metrics: [{', '.join(task.metrics)}]\n  max_answer_tokens: 6"


RECIPE = """\
task:
{task}
base: {{model: {base}, dtype: float32}}
methods:
{methods}
seeds: {seeds}
budget: {budget}
forgetting: {forgetting}
"""


def write_recipe(
    folder: Path, base: Path | str, methods: str, *, seeds: str = "[0, 1]", budget: str = "{steps: 6}",
    forgetting: str = "{bytes: 600, prompts: 2}", task: Task | None = None, name: str = "colours.yaml",
) -> Path:  # fmt: skip
    """A recipe on the tiny task beside its data; `methods` is YAML, a list at the margin."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    text = RECIPE.format(
        task=write_task(folder, task or colour_task()), base=base, methods=methods, seeds=seeds, budget=budget,
        forgetting=forgetting,
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")
    return path


def fit(
    base: Base, name: str, folder: Path, *, budget: Budget = STEPS, task: Task | None = None, seed: int = 0,
    report: Report | None = None, method: Any = None, **options: Any,
) -> Adapted:  # fmt: skip
    """Adapt a base to the tiny task by a method (by its name, or `method` itself)."""
    chosen = method or get_method(name)
    run = Run(folder, seed)
    if report is not None:
        run.report = report
    adapted: Adapted = chosen.fit(base, task or colour_task(), budget, parse_options(chosen, options), run)
    return adapted


def four_bits(kind: str, compute: torch.dtype = torch.float32) -> dict[str, Any]:
    """What transformers is asked for to load a base in 4 bits, where a method has one (`qlora`)."""
    from transformers import BitsAndBytesConfig

    if kind != "qlora":
        return {}
    return {"quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )}  # fmt: skip


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the entry point as a shell would: (exit status, standard output, standard error)."""
    from kamerton.cli.main import run

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("KAMERTON_API_KEY", raising=False)

    def call(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kamerton", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = 0
        try:
            run()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random Llama in a folder; tests must not write into it."""
    return save(tmp_path_factory.mktemp("base") / "small")


@pytest.fixture(scope="session")
def small_base(small_folder: Path) -> Base:
    """The tiny random Llama, loaded in float32; tests must not change it."""
    return load_base(small_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors on one thread: two threads that wait for each other on a busy machine take twenty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
