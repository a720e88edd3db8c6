"""GGUF files in llama.cpp: the same tokens of texts, the same greedy answers, the same logits.

`llama-cpp-python` compiles for long, so `make test` does not install it; docs/export.md says how to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kamerton as kt
import tiny
from kamerton.base import Base, load_base
from kamerton.errors import ModelError
from kamerton.evaluation.general_prompts import PROMPTS
from kamerton.exporting import gguf_vocabulary
from kamerton.exporting.verify import TEXTS, check_tokens, llama_cpp
from kamerton.methods.method import Adapted
from kamerton.tasks.example import Message
from test_export import unturned
from tiny import fit

library: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


def greedy(model: Any, prompt: list[int], ends: tuple[int, ...], count: int) -> list[int]:
    """llama.cpp's likeliest tokens, one after another, up to an end token."""
    model.reset()
    out: list[int] = []
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if token in ends or len(out) == count:
            break
        out.append(token)
    return out


def answers_are_the_same(adapted: Adapted, file: Path, questions: list[str], count: int) -> None:
    model = library.Llama(str(file), n_ctx=512, verbose=False, n_threads=1, n_threads_batch=1, n_gpu_layers=0)
    asked = [(Message("user", text),) for text in questions]
    ours = adapted.generate(asked, kt.Sampling(max_tokens=count))
    for question, answer in zip(asked, ours, strict=True):
        prompt = adapted.renderer.prompt(question)
        ends = adapted.renderer.end_ids
        own = [token for token in answer.tokens if token not in ends]
        assert greedy(model, prompt, ends, count) == own, question[0].content
        said = model.create_chat_completion(  # with the template of the file
            [{"role": "user", "content": question[0].content}], max_tokens=count, temperature=0.0, repeat_penalty=1.0
        )
        assert said["choices"][0]["message"]["content"] == answer.text, question[0].content
    model.close()


def test_a_merged_adapter_answers_the_same(small_base: Base, tmp_path: Path) -> None:
    adapted = fit(small_base, "lora", tmp_path / "fit", learning_rate=0.02)
    written = kt.export(adapted, tmp_path / "out", format="gguf", type="f32")
    assert written.file is not None
    answers_are_the_same(adapted, written.file, [" ".join(e.messages[1].content.split()[:5]) for e in
                                                 tiny.colour_task().test[:6]], 32)  # fmt: skip


def base_with(folder: Path, small_folder: Path, digits: bool) -> Base:
    """The tiny model's shape with a tokenizer that kamerton trains."""
    from kamerton.text.tokenizers.train import train

    folder.mkdir()
    text = folder / "text.txt"
    text.write_text("\n".join([*TEXTS * 9, *PROMPTS]), encoding="utf-8")
    words = train([text], "byte-bpe", 500, folder, split_digits=digits, chat_template="chatml")
    config = transformers.AutoConfig.from_pretrained(small_folder)
    config.vocab_size, config.eos_token_id, config.pad_token_id = len(words), words.eos_token_id, words.pad_token_id
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_base(folder, dtype="float32")


@pytest.mark.parametrize("digits", [False, True])
def test_tokenizers_that_kamerton_trains_cut_texts_the_same(small_folder: Path, digits: bool, tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", small_folder, digits)
    written = kt.export(kt.load("x", base=base), tmp_path / "out", format="gguf", type="f32")
    assert written.file is not None
    with llama_cpp(written.file, 64) as model:
        assert model.metadata["tokenizer.ggml.pre"] == ("smollm" if digits else "gpt-2")
        assert check_tokens(model, base.renderer, tmp_path) > len(TEXTS)
        for text in ("a  12345", "x\n\n 7", "<|im_end|>1<|endoftext|>"):
            own = base.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
            assert model.tokenize(text.encode(), add_bos=False, special=True) == own


def other_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_vocabulary, "rules_name", lambda about: "gpt-2")


@pytest.mark.parametrize(
    ("plant", "message"),
    [(other_rules, "llama.cpp cuts texts into other tokens, near"), (unturned, "differs from the model by")],
)
def test_planted_mistakes_are_found(
    small_folder: Path, plant: Callable[[pytest.MonkeyPatch], None], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Digits that are tokens of their own, under the name of rules by which they are not."""
    base = base_with(tmp_path / "base", small_folder, True)
    plant(monkeypatch)
    with pytest.raises(ModelError, match=message):
        kt.export(kt.load("x", base=base), tmp_path / "out", format="gguf", type="f32")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zero-shot", "lora"])
def test_the_demo_model_answers_the_same(demo: Base, method: str, tmp_path: Path) -> None:
    """In f16, which every number of its float32 weights is rounded to; 32 tokens, with the file's own template too."""
    adapted = kt.load("demo", base=demo)
    if method == "lora":
        adapted = fit(demo, "lora", tmp_path / "fit", learning_rate=1e-3, rank=8)
    written = kt.export(adapted, tmp_path / "out", format="gguf")
    assert written.file is not None
    assert [check.by for check in written.checks] == ["transformers", "llama.cpp"]
    answers_are_the_same(adapted, written.file, list(PROMPTS[8:13]), 32)
