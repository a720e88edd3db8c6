"""Export: what other programs read from it, beside the model; what is refused; files that are not what was written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import kamerton as kt
import tiny
from kamerton.base import Base, load_base
from kamerton.base.quantise import settle
from kamerton.cli.main import app
from kamerton.errors import KamertonError, ModelError
from kamerton.exporting import adapter_folder, gguf_file, weights
from kamerton.methods.method import Adapted
from kamerton.tasks.example import Message
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [[5, 6, 7, 8, 9, 10], [40, 41, 42, 43]]


@pytest.fixture(scope="module")
def trained(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Adapted]:
    """A few steps of a method on the tiny model, and then weights that are far from where they started; made once."""
    made: dict[str, Adapted] = {}

    def make(name: str, **options: Any) -> Adapted:
        key = repr((name, options))
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[key] = fit(small_base, name, folder, learning_rate=1e-3, **options)
            generator = torch.Generator().manual_seed(1)
            tuned = made[key].tuned
            assert tuned is not None
            for part, value in tuned.module.named_parameters():
                if tuned.peft is None or "lora_" in part or "bottleneck_" in part:
                    value.data += torch.randn(value.shape, generator=generator) * 0.1
        return made[key]

    return make


def ours(adapted: Adapted, row: list[int]) -> torch.Tensor:
    model = adapted.engine.model
    with torch.no_grad():
        return model.output(model.forward([row], prompts=[row]).rows)


def theirs(hf: Any, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return hf(input_ids=torch.tensor([row])).logits[0, -len(row) :]


# -- safetensors ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {}), ("lora", {"targets": ["q_proj", "lm_head"]}), ("qlora", {"rank": 4}), ("ia3", {}), ("full", {})],
    ids=str,
)
def test_transformers_loads_a_model_folder(
    trained: Callable[..., Adapted], method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    adapted = trained(method, **options)
    written = kt.export(adapted, tmp_path / "out")
    assert written.difference < 1e-4
    assert [check.by for check in written.checks] == ["transformers"]
    hf = transformers.AutoModelForCausalLM.from_pretrained(written.folder, dtype=torch.float32).eval()
    for row in ROWS:
        torch.testing.assert_close(theirs(hf, row), ours(adapted, row), rtol=1e-5, atol=1e-4)
    words = transformers.AutoTokenizer.from_pretrained(written.folder)
    said = [{"role": "system", "content": "Which colour?"}, {"role": "user", "content": "a red river"}]
    expected = adapted.renderer.prompt(tuple(Message(m["role"], m["content"]) for m in said))  # type: ignore[arg-type]
    assert words.apply_chat_template(said, add_generation_prompt=True, return_dict=False) == expected
    (answer,) = adapted.generate([(Message("user", "a red river"),)], kt.Sampling(max_tokens=6))
    prompt = torch.tensor([adapted.renderer.prompt((Message("user", "a red river"),))])
    tokens = hf.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert [t for t in tokens if t not in adapted.renderer.end_ids] == list(answer.tokens)


def test_large_weights_are_written_in_shards(small_base: Base, tmp_path: Path) -> None:
    written = kt.export(kt.load("x", base=small_base), tmp_path / "out", shard_size="100KB")
    files = sorted(written.folder.glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 110_000 for file in files)
    assert load_base(written.folder, dtype="float32").info.parameters == small_base.info.parameters


def test_a_base_without_a_template_is_asked_as_kamerton_asks_it(small_folder: Path, tmp_path: Path) -> None:
    """With the token that the tokenizer puts before a text."""
    plain = tmp_path / "plain"
    words = tiny.tokenizer()
    words.chat_template = None
    words.add_special_tokens({"bos_token": "<|system|>"})
    from tokenizers.processors import TemplateProcessing

    words.backend_tokenizer.post_processor = TemplateProcessing("<|system|> $A", special_tokens=[("<|system|>", 1)])
    transformers.AutoModelForCausalLM.from_pretrained(small_folder).save_pretrained(plain)
    words.save_pretrained(plain)
    base = load_base(plain, dtype="float32")
    assert base.renderer.plain
    written = kt.export(kt.load(plain, base=base), tmp_path / "out")
    assert "the base has no chat template" in written.notes[0]
    loaded = transformers.AutoTokenizer.from_pretrained(written.folder)
    ids = loaded.apply_chat_template(
        [{"role": "user", "content": "red"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == base.renderer.prompt((Message("user", "red"),))
    assert ids[0] == loaded.bos_token_id
    assert ids[1] != loaded.bos_token_id


# -- peft -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "qlora", "prompt-tuning", "prefix-tuning", "adapter", "prompt-generator"])
def test_peft_loads_an_adapter(trained: Callable[..., Adapted], method: str, tmp_path: Path) -> None:
    adapted = trained(method, **({"tokens": 5} if "prompt" in method or "prefix" in method else {}))
    written = kt.export(adapted, tmp_path / "out", format="peft")
    assert written.difference < 1e-4
    base = transformers.AutoModelForCausalLM.from_pretrained(
        adapted.base.info.source, dtype=torch.float32, **tiny.four_bits(method)
    )
    settle(base)  # of 4 bits on processors with bfloat16 instructions
    model = peft.PeftModel.from_pretrained(base, str(written.folder)).eval()
    for row in (adapted.renderer.prompt((Message("user", "a red river"),)), *ROWS[: method != "prompt-generator"]):
        torch.testing.assert_close(theirs(model, row), ours(adapted, row), rtol=1e-4, atol=1e-4)
    config = json.loads((written.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(adapted.base.request["name"])


def test_the_page_beside_an_adapter_is_a_program(trained: Callable[..., Adapted], tmp_path: Path) -> None:
    """One of our own kinds, in a new process that runs what the page says and nothing else."""
    adapted = trained("adapter")
    written = kt.export(adapted, tmp_path / "out", format="peft")
    assert written.notes == ("peft loads it after `import kamerton.tuning.bottleneck`",)
    (code,) = re.findall(r"```python\n(.*?)```", (written.folder / "README.md").read_text(), re.DOTALL)
    assert "import kamerton.tuning.bottleneck" in code
    code += f"print(float(model(input_ids=torch.tensor([{ROWS[0]}])).logits.double().abs().sum()))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, cwd=written.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = float(ours(adapted, ROWS[0]).double().abs().sum())
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, rel=1e-5)


def test_the_page_says_how_a_base_becomes_a_folder(demo: Base) -> None:
    assert adapter_folder.base_name(demo) == (
        "demo-base",
        "kamerton export demo --format safetensors --output demo-base",
    )


# -- GGUF -------------------------------------------------------------------------------------------------------------


def other_model(folder: Path, kind: str, **more: Any) -> Base:
    """A tiny random model of an architecture with the tiny tokenizer, which has fewer tokens than the model."""
    import architectures

    words = tiny.tokenizer()
    config = architectures.config(kind)
    own = {"vocab_size": len(words) + 3, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None, **more}
    for name, value in own.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return load_base(folder, dtype="float32")


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "tied": ("llama-tied", {}), "qwen2": ("qwen2", {}), "qwen3": ("qwen3", {"head_dim": 128}),
    "gpt2": ("gpt2", {}), "mistral": ("mistral-window", {"sliding_window": None}),
    "llama 3.1's frequencies": ("llama", {"rope_parameters": LLAMA3}),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_gguf_file_is_the_model(case: str, tmp_path: Path) -> None:
    kind, more = ARCHITECTURES[case]
    base = other_model(tmp_path / "base", kind, **more)
    written = kt.export(kt.load("x", base=base), tmp_path / "out", format="gguf", type="f32")
    by = {check.by: check for check in written.checks}
    assert by["transformers"].difference < 1e-4
    if "llama.cpp" in by:  # it is installed; it multiplies in f16, so logits are not the same to the last digit
        assert by["llama.cpp"].difference < 0.03
        assert by["llama.cpp"].same > 0.98
    assert written.file == tmp_path / "out" / "model-f32.gguf"


def test_frequencies_are_those_of_transformers(tmp_path: Path) -> None:
    """What llama.cpp divides its frequencies by, against transformers' own frequencies."""
    from kamerton.exporting.gguf_layouts import frequency_factors

    base = other_model(tmp_path, "llama", rope_parameters=LLAMA3, head_dim=16)
    factors = frequency_factors(base.model.config)
    assert factors is not None
    plain = 1 / 10000.0 ** (np.arange(0, 16, 2) / 16)
    found = base.model.hf.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(plain / factors, found, rtol=1e-5)
    assert len(set(factors.tolist())) > 2


@pytest.mark.parametrize(("kind", "most"), [("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.2)])
def test_types_of_weights_round_as_they_should(
    trained: Callable[..., Adapted], kind: str, most: float, tmp_path: Path
) -> None:
    """And the file is a base that kamerton loads; a merged adapter is in it."""
    adapted = trained("lora")
    written = kt.export(adapted, tmp_path / "out", format="gguf", type=kind)
    assert 0 < written.checks[0].difference < most
    assert written.bytes == written.file.stat().st_size  # type: ignore[union-attr]
    assert any("no multiple of 32" in note for note in written.notes) == (kind == "q8_0")
    for row in ROWS:
        base = ours(kt.load("x", base=adapted.base), row)
        assert (ours(adapted, row) - base).abs().max() > 10 * most


def test_a_gguf_file_is_a_base_again(
    trained: Callable[..., Adapted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAMERTON_CACHE", str(tmp_path / "cache"))
    adapted = trained("lora")
    written = kt.export(adapted, tmp_path / "out", format="gguf", type="f32")
    again = kt.load(written.file, base=load_base(written.file, dtype="float32"))  # type: ignore[arg-type]
    asked, plan = [e.messages for e in tiny.colour_task().test[:4]], kt.Sampling(max_tokens=5)
    assert [a.tokens for a in again.generate(asked, plan)] == [a.tokens for a in adapted.generate(asked, plan)]


def go(template: str, messages: list[tuple[str, str]]) -> str:
    """Go's text/template, as far as our templates of turns use it."""
    before, loop, after = re.fullmatch(
        r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    branches = re.split(r'\{\{ (?:if|else if) eq \.Role "(\w+)" \}\}', loop)
    assert branches[0] == ""
    bodies = dict(zip(branches[1::2], branches[2::2], strict=True))
    return before + "".join(bodies[role].replace("{{ .Content }}", said) for role, said in messages) + after


def test_ollama_writes_the_same_prompts(small_base: Base, demo: Base) -> None:
    from kamerton.exporting.ollama import modelfile, turns

    said = [("user", "red?"), ("assistant", "yes"), ("user", "  and\nblue? {{ x }}")]
    for base, system in (
        (small_base, None),
        (demo, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    ):
        text, notes = modelfile(base.renderer, "model.gguf", 512)
        assert not notes
        template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE).group(1)  # type: ignore[union-attr]
        given = re.findall(r'^SYSTEM """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
        assert given == ([system] if system else [])
        for head in ([], [("system", "Be brief.")]):
            messages = [*(head or [("system", s) for s in given]), *said]
            expected = base.renderer.text([Message(r, s) for r, s in [*head, *said]])  # type: ignore[arg-type]
            assert go(template, messages) == expected
        assert f'PARAMETER stop "{base.renderer.tokenizer.decode([base.renderer.end_id])}"' in text
        assert text.startswith("FROM ./model.gguf\n")
    from kamerton.rendering import Renderer

    counting = tiny.TEMPLATE.replace("{{ message['role'] }}", "{{ message['role'] }}{{ loop.index }}")
    odd = Renderer(tiny.tokenizer(), chat_template=counting)
    assert turns(odd) is None
    text, notes = modelfile(odd, "model.gguf", 512)
    assert "TEMPLATE" not in text
    assert "has no counterpart" in notes[0]


# -- planted: what was written is not the model -----------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    """One bit of a file changes."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def changed_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    read = gguf_file.file_digests

    def after_a_change(path: Path) -> Any:
        flip(path, path.stat().st_size - 1000)
        return read(path)

    monkeypatch.setattr(gguf_file, "file_digests", after_a_change)


def changed_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    read = weights.read_folder

    def after_a_change(folder: Path, *rest: Any) -> Any:
        flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
        return read(folder, *rest)

    monkeypatch.setattr(weights, "read_folder", after_a_change)


def changed_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    load = adapter_folder.load_with_peft

    def after_a_change(base: Base, tuned: Any, folder: Path) -> Any:
        tensors = load_file(folder / "adapter_model.safetensors")
        first = sorted(tensors)[0]
        save_file({**tensors, first: tensors[first] + 0.3}, folder / "adapter_model.safetensors", {"format": "pt"})
        return load(base, tuned, folder)

    monkeypatch.setattr(adapter_folder, "load_with_peft", after_a_change)


def unturned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "turned", lambda rows, heads: rows)


def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from kamerton.methods import merge

    monkeypatch.setattr(merge, "merged_weights", lambda base, *_: base.reload().model.hf)


def other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    write = weights.write_tokenizer

    def after_a_change(renderer: Any, folder: Path) -> None:
        write(renderer, folder)
        (folder / "chat_template.jinja").write_text(tiny.TEMPLATE.replace("<|end|>\n", "<|end|>"))

    monkeypatch.setattr(weights, "write_tokenizer", after_a_change)


PLANTED: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "a bit of the GGUF file": ("gguf", changed_gguf, r"1 of 20 tensors are not in the file as they were written"),
    "a bit of the model folder": ("safetensors", changed_folder, r"1 of 20 tensors are not in the file as they were"),
    "a weight of the adapter": (
        "peft",
        changed_adapter,
        r"what peft reads differs from the model by [\d.]+ in a logit",
    ),
    "rows that do not change places": (
        "gguf",
        unturned,
        r"transformers reads differs from the model by [\d.]+ in a log",
    ),
    "an adapter that is forgotten": ("safetensors", forgotten, r"transformers reads differs from the model by [\d.]+"),
    "another template": ("safetensors", other_tokens, "the tokenizer that was written cuts texts in another way"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_not_the_model_is_an_error_and_is_not_there(
    trained: Callable[..., Adapted], case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format, plant, message = PLANTED[case]
    plant(monkeypatch)
    with pytest.raises(ModelError, match=message):
        kt.export(trained("lora"), tmp_path / "out" / "model", format=format)
    assert not list((tmp_path / "out").iterdir())


def test_numbers_that_f16_cannot_hold_are_an_error(small_folder: Path, tmp_path: Path) -> None:
    base = load_base(small_folder, dtype="float32")
    with torch.no_grad():
        base.model.hf.model.layers[1].mlp.up_proj.weight[3, 3] = 70000.0
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.up_proj\.weight has numbers that f16 cannot hold; use --type"
    ):
        kt.export(kt.load("x", base=base), tmp_path / "out", format="gguf")
    assert not list(tmp_path.iterdir())


# -- refused ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_one_line(
    trained: Callable[..., Adapted], small_base: Base, tiny_base: Callable[[str], Base], tmp_path: Path
) -> None:
    def refused(adapted: Adapted, message: str, **how: Any) -> None:
        with pytest.raises(KamertonError, match=message) as caught:
            kt.export(adapted, tmp_path / "out", **how)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("out*"))

    soft, plain = trained("prompt-tuning", tokens=5), kt.load("x", base=small_base)
    for format in ("safetensors", "gguf"):
        for adapted in (soft, trained("prefix-tuning", tokens=5), trained("prompt-generator", tokens=5)):
            refused(adapted, r"trained stands in front of the text, .*; use --format peft, or serve", format=format)
        refused(
            trained("adapter"), "stands beside the weights and cannot be merged .*; use --format peft", format=format
        )
    wrapped = fit(small_base, "few-shot", tmp_path / "shots", shots=1)
    for format in ("safetensors", "peft", "gguf"):
        refused(wrapped, r"few-shot changes how the model is asked.*serve it .*, or export the zero-shot inside it",
                format=format)  # fmt: skip
    refused(plain, "zero-shot trained no adapter; use --format safetensors or gguf", format="peft")
    refused(trained("full"), "trained the model's own weights, not an adapter; use --format safe", format="peft")
    refused(plain, "no format 'onnx'; use one of: safetensors, peft, gguf", format="onnx")
    refused(plain, "safetensors has no type 'q8_0'; use one of: f32, f16, bf16", type="q8_0")
    refused(soft, "peft has no type 'f16'; leave --type out", format="peft", type="f16")
    refused(plain, "--shard-size 5 is no size; write a number with KB, MB, GB or TB: 5GB", shard_size="5")
    of = {"gemma": "GemmaForCausalLM is not written as GGUF, only llama, mistral, qwen2, qwen3, gpt2 are; use --format s",
          "mistral-window": "MistralForCausalLM has attention in a sliding window, which is not written as GGUF",
          "llama": "a tokenizer without merges is not written as GGUF", "t5": "export is not defined for an encoder"}  # fmt: skip
    for name, message in of.items():
        refused(kt.load("x", base=tiny_base(name)), message, format="gguf")


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True},
          {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}], "smollm"),
        ([{"type": "Digits", "individual_digits": False},
          {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}], None),
        ({"type": "ByteLevel", "use_regex": True, "add_prefix_space": True}, None),
        ({"type": "Whitespace"}, None),
    ],
)  # fmt: skip
def test_rules_of_tokenizers_have_names_or_are_refused(pre_tokenizer: Any, name: str | None) -> None:
    from kamerton.exporting.gguf_vocabulary import rules_name

    steps = pre_tokenizer if isinstance(pre_tokenizer, dict) else {"type": "Sequence", "pretokenizers": pre_tokenizer}
    about = {"model": {"type": "BPE"}, "normalizer": None, "pre_tokenizer": steps}
    if name is None:
        with pytest.raises(
            ModelError, match=r"a tokenizer with other rules .* is not written as GGUF, only byte-level"
        ):
            rules_name(about)
    else:
        assert rules_name(about) == name
    with pytest.raises(ModelError, match="a Unigram tokenizer is not written as GGUF"):
        rules_name({**about, "model": {"type": "Unigram"}})


# -- the place --------------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_only_when_asked_and_only_if_an_export_wrote_it(small_base: Base, tmp_path: Path) -> None:
    plain, out = kt.load("x", base=small_base), tmp_path / "out"
    kt.export(plain, out, format="gguf", type="f32")
    with pytest.raises(KamertonError, match="out: is there already; give --force to replace it, or choose another"):
        kt.export(plain, out)
    kt.export(plain, out, force=True)
    assert not list(out.glob("*.gguf"))
    assert json.loads((out / "export.json").read_text())["format"] == "safetensors"
    (out / "export.json").unlink()
    for force in (False, True):  # somebody else's files
        with pytest.raises(KamertonError, match="out: is there already; choose another --output"):
            kt.export(plain, out, force=force)
    assert (out / "model.safetensors").is_file()
    with pytest.raises(KamertonError, match=r"model\.safetensors: is a file; choose another --output"):
        kt.export(plain, out / "model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_no_room_is_known_before_anything_is_written(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = kt.load("x", base=small_base)
    with monkeypatch.context() as patch:
        patch.setattr(
            weights.shutil, "disk_usage", lambda _: os.terminal_size((1, 1)) and type("U", (), {"free": 1000})()
        )
        with pytest.raises(KamertonError, match=r"the files take [\d.]+ GiB and 0\.0 GiB are free; make room"):
            kt.export(plain, tmp_path / "out")
    monkeypatch.setattr(weights.psutil, "virtual_memory", lambda: type("V", (), {"available": 1000})())
    with pytest.raises(KamertonError, match=r"exporting takes [\d.]+ GiB of memory and 0\.0 GiB are free; end other"):
        kt.export(plain, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command(trained: Callable[..., Adapted], tmp_path: Path) -> None:
    trained("lora").save(tmp_path / "saved")

    def run(*given: str) -> str:
        result = CliRunner().invoke(app, ["export", str(tmp_path / "saved"), *given])
        assert result.exit_code == 0, result.output
        return result.output

    out = run("--format", "gguf", "--output", str(tmp_path / "gguf"))
    assert "read by transformers: largest difference of a logit " in out
    assert "(more than 0.5 would be an error)" in out
    assert f"or:   ollama create gguf --file {tmp_path / 'gguf' / 'Modelfile'}" in out
    assert f"next: kamerton chat {tmp_path / 'folder'}" in run("--output", str(tmp_path / "folder"))
    assert f"{tmp_path / 'peft' / 'README.md'}" in run("--format", "peft", "--output", str(tmp_path / "peft"))
    about = json.loads((tmp_path / "gguf" / "export.json").read_text())
    assert about["target"] == str(tmp_path / "saved")
    assert about["method"] == "lora"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "saved"), "--output", str(tmp_path / "gguf")])
    assert isinstance(result.exception, KamertonError)
