"""What a stranger's file or request must not do: run code, leave its folder, take all memory or all time.

The table of these is docs/security.md; each row there names a test here.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from kamerton import files
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, ModelError
from kamerton.recipe import load_recipe
from kamerton.rendering import Renderer
from kamerton.targets import TRUSTED, load
from kamerton.tasks import load_task
from kamerton.tasks.example import Message
from kamerton.templates import TooCostly, render

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


class Evil:
    """Pickled, it makes a file where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def change(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# -- model folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "m", layers=1)


def test_pickles_in_a_model_folder_are_never_opened(folder: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "rng_state.pth", "adapter_model.bin"):
        (folder / name).write_bytes(evil)
    load_base(folder, dtype="float32", device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.bin", "../out.safetensors", "/etc/passwd"])
def test_an_index_names_safetensors_of_its_folder(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "x.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="no safetensors file in the folder"):
        load_base(folder, dtype="float32", device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["evil", "llama"])
def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    own = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    change(folder, "config.json", model_type=kind, auto_map=own)
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    # of a kind that transformers knows, its own class is taken
    with contextlib.nullcontext() if kind == "llama" else pytest.raises(ModelError, match="custom code"):
        load_base(folder, dtype="float32", device="cpu")
    assert not mark.exists()


def test_attention_from_elsewhere_is_refused(folder: Path) -> None:
    change(folder, "config.json", _attn_implementation="somebody/kernel", attn_implementation="somebody/kernel")
    with pytest.raises(ModelError):
        load_base(folder, dtype="float32", device="cpu")


def test_an_adapter_is_no_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc", "peft_type": "LORA"}))
    with pytest.raises(ModelError, match="that of an adapter"):
        load_base(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 10**7}, "asks for"), ({"vocab_size": 10**9}, "asks for"),
        ({"intermediate_size": 10**9}, "asks for"), ({"num_hidden_layers": 10**6}, "1,000,000.* tensors"),
    ],
)  # fmt: skip
def test_a_configuration_that_asks_for_all_memory(folder: Path, fields: dict[str, int], words: str) -> None:
    change(folder, "config.json", **fields)
    with pytest.raises(ModelError, match=words):
        load_base(folder, dtype="float32", device="cpu")


def header(change: Callable[[dict[str, Any]], None], length: int | None = None) -> Callable[[bytes], bytes]:
    def made(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + size])
        change(about)
        text = json.dumps(about).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :]

    return made


def _first(about: dict[str, Any]) -> dict[str, Any]:
    return next(v for k, v in about.items() if k != "__metadata__")


LIES = {
    "a length beyond the file": header(lambda a: None, 2**40),
    "a length of 2⁶³": header(lambda a: None, 2**63),
    "no length": lambda data: data[:4],
    "offsets behind the end": header(lambda a: _first(a).update(data_offsets=[0, 2**40])),
    "offsets that are turned": header(lambda a: _first(a).update(data_offsets=[64, 0])),
    "offsets that overlap": header(lambda a: _first(a).update(data_offsets=[4, 4 + 96 * 48 * 4])),
    "a shape that multiplies to all memory": header(lambda a: _first(a).update(shape=[2**31, 2**31])),
    "a shape of texts": header(lambda a: _first(a).update(shape=["a", 10**10])),
    "nested without end": lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000,
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(folder: Path, lie: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(LIES[lie](path.read_bytes()))
    with pytest.raises(ModelError) as caught:
        load_base(folder, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)


def gguf(tensors: int = 0, fields: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gguf(2**62), "more than the file holds"), (gguf(0, 2**62), "more than the file holds"),
        (gguf(0, 1, struct.pack("<Q", 2**60) + b"x"), "ends within"),
        (gguf(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)), "items, more than the file holds"),
        (gguf(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, 2**60)), "ends within"),
        (gguf(0, 1, text(b"k") + struct.pack("<I", 99)), "unknown type"),
        (gguf(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 9 + b"x" * 99), "nested"),
        (gguf(1, 0, text(b"t") + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0)), "more than the file holds"),
        (gguf(1, 0, text(b"t") + struct.pack("<I", 10**9)), "dimensions"),
        (gguf(1, 1, text(b"llama.block_count") + struct.pack("<II", 4, 10**9)), "1,000,000,000 layers"),
        (gguf(version=9), "version 9"), (b"GGUF", "ends within"), (b"", "GGUF"),
    ],
)  # fmt: skip
def test_gguf_that_lies(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=words):
        load_base(tmp_path / "x.gguf")


def test_a_regular_expression_without_end_is_one_line(folder: Path) -> None:
    about = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": "(a+|aa+|[a-z ]+)+$"}
    about["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="the tokenizer fails"):
        load_base(folder, dtype="float32", device="cpu")


# -- chat templates -----------------------------------------------------------------------------------------------------

_GROWS = "{% set n = namespace(x='ab') %}{% for i in range(60) %}STEP{% endfor %}"
COSTLY = {
    "a long text": "{{ 'a' * 10**10 }}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a text that is doubled": _GROWS.replace("STEP", "{% set n.x = n.x ~ n.x %}"),
    "the same by +": _GROWS.replace("STEP", "{% set n.x = n.x + n.x %}"),
    "the same by blocks": _GROWS.replace("STEP", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "lists in lists": _GROWS.replace("STEP", "{% set n.x = [n.x, n.x] %}") + "{{ n.x }}",
    "a macro without end": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a macro that branches": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a width": "{{ 'a'.ljust(10**10) }}",
    "a width in a format": "{{ '{:>1000000000}'.format(1) }}",
    "a width in %": "{{ '%1000000000d' % 1 }}",
    "replacing": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "a power": "{{ 10**10**10 }}",
    "an indent": "{{ messages|tojson(indent=10**9) }}",
    "a long list": "{{ [1] * 10**10 }}",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_template_that_costs_too_much(name: str) -> None:
    with pytest.raises(TooCostly):
        render(COSTLY[name], [{"role": "user", "content": "q"}], add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}", "{{ messages.append(1) }}", "{{ lipsum(9) }}",
        "{{ 'a' + 1 }}", "{% include '/etc/passwd' %}",
    ],
)  # fmt: skip
def test_a_template_that_reaches_out_is_refused(small_base: Base, source: str) -> None:
    with pytest.raises(ModelError) as caught:
        Renderer(small_base.renderer.tokenizer, chat_template=source).text([Message("user", "q")])
    assert "\n" not in str(caught.value)


def test_templates_write_what_they_write_in_transformers(small_base: Base) -> None:
    tokenizer = small_base.renderer.tokenizer
    turns = [
        {"role": r, "content": c} for r, c in (("system", " s "), ("user", "q\n"), ("assistant", "a"), ("user", "é"))
    ]
    sources = [
        tiny.TEMPLATE,
        "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
        "{%- endif %}{%- endfor %}{{ ns.last }}{{ messages[::-1]|map(attribute='role')|join(',') }}{{ messages|length }}",
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '*' * 3 }}{{ m['content'] | trim }}{{ m|tojson }}"
        "{% if loop.last %}{{ eos_token }}{% else %}{% continue %}{% endif %}{% endfor %}",
        "{% macro say(m) %}<{{ m.role|upper }}>{{ m.content.split('\\n')[0].strip() }}{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{{ say(m) }}{% endfor %}{{ date_string[:2] }}{{ (1, 2)|list }}{{ {'a': 1}|items|list }}",
        "{{ '%s-%03d' % ('a', 5) }}{{ 'x'.replace('x', 'yy') }}{% generation %}{{ messages[0].content }}{% endgeneration %}"
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ 2 ** 5 + 7 % 4 }}{{ none is none }}",
    ]  # fmt: skip
    for source in sources:
        theirs = tokenizer.apply_chat_template(
            turns, chat_template=source, add_generation_prompt=True, tokenize=False, date_string="01 Jan 2025"
        )
        values = {**tokenizer.special_tokens_map, "date_string": "01 Jan 2025"}
        assert render(source, turns, add_generation_prompt=True, **values) == theirs


# -- saved folders ------------------------------------------------------------------------------------------------------


def test_a_saved_folder_runs_no_code_that_the_user_has_not_named(
    small_base: Base, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.fit(small_base, "zero-shot", tmp_path / "run").save(tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "kamerton.json").read_text())
    change(tmp_path / "saved", "kamerton.json", base={**about["base"], "trust_remote_code": True})
    with pytest.raises(KamertonError, match=f"it would run code: .*{TRUSTED}="):
        load(tmp_path / "saved")
    monkeypatch.setenv(TRUSTED, f"other {small_folder}")
    load(tmp_path / "saved")
    change(tmp_path / "saved", "kamerton.json", base=about["base"], options={"reward": [{"function": "os:mkdir"}]})
    with pytest.raises(KamertonError, match="it would run code: os:mkdir"):
        load(tmp_path / "saved")


def test_a_comparison_names_no_cell_outside_itself(tmp_path: Path) -> None:
    verdict = {"best": ["../../x"], "rows": [{"label": "../../x"}]}
    (tmp_path / "results.json").write_text(json.dumps({"verdict": verdict}))
    with pytest.raises(KamertonError, match="is no label"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"), [({"r": 10**9}, "r is"), ({"target_modules": "(a+)+$"}, "plain names"), ({"r": -1}, "r is")]
)
def test_an_adapter_that_asks_for_all_memory_or_time(
    small_base: Base, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    tiny.fit(small_base, "lora", tmp_path / "run", rank=2).save(tmp_path / "saved")
    place = next((tmp_path / "saved").rglob("adapter_config.json")).parent
    change(place, "adapter_config.json", **fields)
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "saved", base=small_base)


# -- files of data ------------------------------------------------------------------------------------------------------


def task_of(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    (folder / "r.yaml").write_text(f"task:\n  data: {name}\nmethods: [majority]\n")
    return folder / "r.yaml"


def test_a_packed_file_is_unpacked_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kamerton.retrieval.documents import read
    from kamerton.text.lines import documents

    monkeypatch.setattr(files, "MOST_UNPACKED", 1 << 21)
    bomb = gzip.compress(b" " * (1 << 24))
    with pytest.raises(KamertonError, match="more than 2,097,152 bytes"):
        load_task(load_recipe(task_of(tmp_path, "a.jsonl.gz", bomb)).task)
    (tmp_path / "a.txt.gz").write_bytes(bomb)
    with pytest.raises(KamertonError, match="more than 2,097,152 bytes"):
        read(tmp_path / "a.txt.gz")
    with pytest.raises(KamertonError, match="more than 2,097,152 bytes"):
        list(documents([tmp_path / "a.txt.gz"]))


def test_a_parquet_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kamerton.tasks import readers

    monkeypatch.setattr(readers, "MOST_ROWS", 1000)
    pq.write_table(pa.table({"text": ["a"] * 5000, "label": ["b"] * 5000}), tmp_path / "a.parquet")
    recipe = task_of(tmp_path, "b.txt", b"")
    recipe.write_text("task:\n  data: a.parquet\nmethods: [majority]\n")
    with pytest.raises(KamertonError, match="1,000 rows"):
        load_task(load_recipe(recipe).task)


@pytest.mark.parametrize(
    "record",
    ['{"prompt": "a", "completion": ' + "9" * 5000 + "}", '{"prompt": "a", "completion": -' + "9" * 5000 + "}"],
)
def test_numbers_of_any_length_are_one_line(tmp_path: Path, record: str) -> None:
    with pytest.raises(KamertonError, match="a number of more than 4,300 digits"):
        load_task(load_recipe(task_of(tmp_path, "a.jsonl", record.encode())).task)


@pytest.mark.parametrize("count", [10**9, 10**30])
def test_seeds_that_fill_memory(tmp_path: Path, count: int) -> None:
    (tmp_path / "r.yaml").write_text(f"task: dates\nmethods: [majority]\nseeds: {count}\n")
    with pytest.raises(KamertonError, match="at most 10,000"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("name", ["x" * 300 + ".csv", "~nobody-of-that-name/a.csv", "a\\0b.csv"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "r.yaml").write_text(f'task:\n  data: "{name}"\nmethods: [majority]\n')
    with pytest.raises(KamertonError, match=r"no file can have this name|no such file"):
        load_task(load_recipe(tmp_path / "r.yaml").task)


LOL = b"<?xml version='1.0'?><!DOCTYPE l [<!ENTITY a 'lol'>" + b"".join(
    b"<!ENTITY %c '%s'>" % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
) + b"]><TEI><text><p>&j;</p></text></TEI>"  # fmt: skip
OUTSIDE = (
    b"<?xml version='1.0'?><!DOCTYPE l [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><TEI><text><p>x &a;</p></text></TEI>"
)


def test_entities_of_xml_are_not_expanded() -> None:
    from kamerton.text.corpus.xml_text import as_text

    found = as_text(LOL)
    assert found.reason is not None or len(found.text) < 100
    assert "root:" not in as_text(OUTSIDE).text


def test_yaml_makes_no_objects_and_few_values(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    mark = tmp_path / "ran"
    path.write_text(f"task: !!python/object/apply:os.mkdir ['{mark}']\nmethods: [lora]\n")
    with pytest.raises(KamertonError, match="is not YAML"):
        load_recipe(path)
    assert not mark.exists()
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    path.write_text(bomb)
    with pytest.raises(KamertonError, match="more than 100,000 fields"):
        load_recipe(path)


# -- pages --------------------------------------------------------------------------------------------------------------

HOSTILE = "<script>mark()</script><img src=x onerror=mark()><svg onload=mark()>\"'`</textarea></title>"


def test_what_models_and_people_write_is_escaped_in_the_report(tmp_path: Path) -> None:
    from html.parser import HTMLParser

    from kamerton.comparison.report.write import write_report
    from synthetic_comparison import FIVE, write_comparison

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [tag] if tag == "img" else []
            self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]

    write_comparison(tmp_path / "c", FIVE[:2], seeds=(0,), examples=6, hostile=HOSTILE)
    page = write_report(tmp_path / "c").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.found == []
    assert "<script>mark" not in page
    assert "<svg onload" not in page


def test_the_store_of_feedback_is_told_to_be_damaged(tmp_path: Path) -> None:
    from fuzzing.data_seeds import stores
    from kamerton.feedback.preferences import from_store
    from kamerton.feedback.store import FeedbackStore

    (tmp_path / "made").mkdir()
    data = stores(tmp_path / "made")[0]["f.sqlite"]
    path = tmp_path / "f.sqlite"
    path.write_bytes(data.replace(b'"text": "x"', b'"text"; "x"'))
    store = FeedbackStore(path, create=False)
    with pytest.raises(KamertonError, match="is damaged"):
        from_store(store)
    store.close()


def test_an_error_can_be_printed_whatever_it_quotes() -> None:
    assert str(KamertonError("no such file: '\ud800'", where="a\ud83d")) == "a\\ud83d: no such file: '\\ud800'"


def test_text_in_parquet_that_is_no_utf_8(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([b"\xff\xfe", b"b"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column, "label": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "r.yaml").write_text("task:\n  data: a.parquet\nmethods: [majority]\n")
    with pytest.raises(KamertonError, match="is not Parquet"):
        load_task(load_recipe(tmp_path / "r.yaml").task)


def test_conversations_with_half_a_character_are_one_line(tmp_path: Path) -> None:
    from kamerton.chat.history import load as load_conversation

    (tmp_path / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "\\ud83d"}]}\n')
    with pytest.raises(KamertonError, match="half of a surrogate pair"):
        load_conversation(tmp_path / "c.jsonl")


def test_an_n_gram_model_whose_arrays_are_not_in_order(tmp_path: Path) -> None:
    import numpy as np

    from kamerton.text.ngrams import NgramModel, estimate, open_units

    (tmp_path / "t.txt").write_text("the cat sat\nthe dog ran\n")
    estimate([tmp_path / "t.txt"], open_units("words", [tmp_path / "t.txt"]), 2).save(tmp_path / "m")
    keys = np.load(tmp_path / "m" / "2-keys.npy")
    keys[len(keys) // 2 - 1] += np.uint64(10**6)
    np.save(tmp_path / "m" / "2-keys.npy", keys)
    model = NgramModel.load(tmp_path / "m")
    with pytest.raises(KamertonError, match="damaged"):
        [model.following([unit]) for unit in range(model.units.size)]
    np.save(tmp_path / "m" / "2-keys.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(KamertonError, match="damaged"):
        NgramModel.load(tmp_path / "m")
