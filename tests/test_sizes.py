"""The size of weights, known before they are read: by the files' headers, and what is refused for lack of memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from kamerton.base import Base, load_base
from kamerton.base.sizes import weights_bytes
from kamerton.errors import KamertonError, ModelError
from kamerton.recipe import Recipe

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

FREE = "kamerton.base.load._free_bytes"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_headers_tell_what_loaded_weights_take(name: str, tiny_folder: Callable[[str], Path]) -> None:
    """Tied embeddings are stored once; another data type is another size."""
    folder = tiny_folder(name)
    for dtype in (torch.float32, torch.bfloat16):
        base = load_base(folder, dtype=str(dtype).removeprefix("torch."))  # type: ignore[arg-type]
        assert weights_bytes(str(folder), dtype) == base.info.bytes
    assert weights_bytes(str(folder), torch.float32, four_bits=True) == weights_bytes(str(folder), torch.float32) // 8  # type: ignore[operator]
    assert weights_bytes(str(folder), torch.bfloat16, stored_as=True) == weights_bytes(str(folder), torch.float32)


def test_of_several_files_those_of_the_index_count(small_base: Base, tmp_path: Path) -> None:
    small_base.model.hf.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shutil.copy(shards[0], tmp_path / "consolidated.safetensors")
    assert weights_bytes(str(tmp_path), torch.float32) == small_base.info.bytes
    shards[0].write_bytes(b"not a header")
    assert weights_bytes(str(tmp_path), torch.float32) is None, "loading says what is wrong with it"
    assert weights_bytes("nobody/nothing-here", torch.float32) is None


def test_a_missing_shard_is_one_line(small_folder: Path, small_base: Base, tmp_path: Path) -> None:
    shutil.copytree(small_folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    small_base.model.hf.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    named = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())["weight_map"]
    assert load_base(tmp_path / "m", dtype="float32").info.fingerprint == small_base.info.fingerprint
    last = sorted(set(named.values()))[-1]
    (tmp_path / "m" / last).unlink()
    with pytest.raises(ModelError, match=rf"{tmp_path}/m: the weights are not whole: {last} is missing; download"):
        load_base(tmp_path / "m", dtype="float32")


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    small_folder: Path, small_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FREE, lambda _: small_base.info.bytes)
    assert load_base(small_folder, dtype="float32").info.bytes == small_base.info.bytes
    monkeypatch.setattr(FREE, lambda _: small_base.info.bytes - 1)
    load_base(small_folder, dtype="bfloat16")
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("nothing is read")
    )
    with pytest.raises(ModelError) as caught:
        load_base(small_folder, dtype="float32")
    line = str(caught.value)
    assert line.startswith(f"{small_folder}: the weights take 0.0 GiB and this machine has 0.0 GiB of memory free; ")
    assert "choose a smaller model, dtype: bfloat16, quantise: nf4, or end other programs" in line


def test_a_comparison_says_so_at_the_base(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kamerton.comparison.run import compare

    monkeypatch.setattr(FREE, lambda _: 10)
    recipe = Recipe.from_dict({"task": "dates", "methods": ["zero-shot"], "base": str(small_folder)})
    with pytest.raises(KamertonError, match=r"recipe: base\.model: .*: the weights take"):
        compare(recipe, output=tmp_path / "out")
