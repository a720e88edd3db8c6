"""Packs of tokens through many architectures; loading, and what goes wrong with model folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import architectures
from kamerton.base import Base, CausalModel, Front, load_base
from kamerton.base import load as loading
from kamerton.base.attention import RowCache
from kamerton.base.model import probe
from kamerton.errors import ModelError

ALL = sorted(architectures.ARCHITECTURES)
SOME = ["llama", "gemma2", "gemma3", "gpt2"]


def tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, architectures.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def alone(hf: Any, sequence: list[int]) -> torch.Tensor:
    """(T, V) log-probabilities of one sequence by transformers itself."""
    return hf(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].log_softmax(-1)


def ours(model: CausalModel, hidden: torch.Tensor) -> torch.Tensor:
    return model.output(hidden).log_softmax(-1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


# -- packs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_rows_behind_a_prefix_equal_transformers_one_by_one(name: str, gradient: bool) -> None:
    hf = architectures.model(name)
    model = CausalModel(hf)
    prefix, *rows = tokens(9, 1, 12, 5, 7)
    with torch.set_grad_enabled(gradient):
        hidden = model.forward(rows, prefix=prefix)
        shared = model.forward(rows, shared=model.prefill(prefix))
        bare = model.forward(rows)
    starts = torch.tensor(hidden.lengths).cumsum(0) - torch.tensor(hidden.lengths)
    for row, start in zip(rows, starts.tolist(), strict=True):
        own = slice(start, start + len(row))
        expected = alone(hf, [*prefix, *row])[len(prefix) :]
        close(ours(model, hidden.rows[own]).detach(), expected)
        close(ours(model, shared.rows[own]).detach(), expected)
        close(ours(model, bare.rows[own]).detach(), alone(hf, row))
    close(ours(model, hidden.prefix).detach(), alone(hf, prefix))


@pytest.mark.parametrize("name", ALL)
def test_cached_rows_equal_the_whole_sequence(name: str) -> None:
    hf = architectures.model(name)
    model = CausalModel(hf)
    prefix, first, second, third = tokens(4, 10, 3, 6)
    whole = [[*prefix, *row] for row in (first, second, third)]
    with torch.no_grad():
        shared = model.prefill(prefix)
        cache = RowCache(3, 12)
        model.forward([first[:6], second[:1], third[:4]], shared=shared, cache=cache)
        model.forward([first[6:8], second[1:2], third[4:5]], shared=shared, cache=cache)  # more than one token
        out = model.forward([[first[8]], [second[2]], [third[5]]], shared=shared, cache=cache)
        cache.move(2, 1)
        last = model.forward([[first[9]], [77]], shared=shared, cache=cache)
        picked = model.forward([[55]], shared=shared, cache=cache, slots=[1])
    for i, (sequence, n) in enumerate(zip(whole, (9, 3, 6), strict=True)):
        close(ours(model, out.rows[i]), alone(hf, sequence[: 4 + n])[-1])
    close(ours(model, last.rows[0]), alone(hf, whole[0])[-1])
    close(ours(model, last.rows[1]), alone(hf, [*whole[2], 77])[-1])
    close(ours(model, picked.rows[0]), alone(hf, [*whole[2], 77, 55])[-1])


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_a_tree_of_continuations_equals_each_path_alone(name: str, gradient: bool) -> None:
    hf = architectures.model(name)
    model = CausalModel(hf)
    prefix, prompt = tokens(3, 5)
    # after the prompt: 10 → 11 → 12, 10 → 13, 14 → 15
    nodes, parents, depths = [10, 11, 13, 12, 14, 15], [-1, 0, 0, 1, -1, 4], [1, 2, 2, 3, 1, 2]
    size = len(prompt) + len(nodes)
    tree = torch.ones(size, size, dtype=torch.bool).tril()
    sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            sees[i] = sees[parent]
        sees[i, i] = True
    tree[len(prompt) :, len(prompt) :] = sees
    with torch.set_grad_enabled(gradient):
        hidden = model.forward(
            [[*prompt, *nodes]], prefix=prefix, tree=tree[None],
            depths=[[*range(len(prompt)), *(len(prompt) - 1 + d for d in depths)]],
        )  # fmt: skip
    for i in range(len(nodes)):
        path = [nodes[j] for j in range(len(nodes)) if sees[i, j]]
        close(ours(model, hidden.rows[len(prompt) + i]).detach(), alone(hf, [*prefix, *prompt, *path])[-1])


@pytest.mark.parametrize("name", SOME)
def test_soft_prompts_and_trained_keys_stand_before_everything(name: str) -> None:
    hf = architectures.model(name)
    prefix, row = tokens(4, 7)
    soft = torch.randn(3, 32)
    with torch.no_grad():
        embeds = torch.cat([soft, hf.get_input_embeddings()(torch.tensor([*prefix, *row]))])
        expected = hf(inputs_embeds=embeds[None], use_cache=False).logits[0].log_softmax(-1)[3:]
        model = CausalModel(hf, front=lambda: Front(embeddings=soft))
        close(ours(model, model.forward([row], prefix=prefix).rows), expected[4:])
        close(ours(model, model.forward([[*prefix, *row]]).rows), expected)
        shared = model.prefill(())
        assert (shared.length, shared.tokens) == (3, 0)
        close(ours(model, model.forward([[*prefix, *row]], shared=shared).rows), expected)
        # the keys of the soft tokens say the same as the soft tokens
        keyed = CausalModel(hf, front=lambda: Front(keys=shared.keys))
        close(ours(keyed, keyed.forward([row], prefix=prefix).rows), expected[4:])
        close(ours(keyed, keyed.forward([row], shared=keyed.prefill(prefix)).rows), expected[4:])
        assert keyed.prefill(prefix).length == 7


@pytest.mark.parametrize("name", SOME)
def test_gradients_equal_those_of_transformers(name: str) -> None:
    prefix, *rows = tokens(4, 3, 8)
    grads = []
    for packed in (False, True):
        hf = architectures.model(name)
        loss = torch.zeros(())
        if packed:
            model = CausalModel(hf)
            hidden = model.forward(rows, prefix=prefix)
            start = 0
            for row in rows:
                states = torch.cat([hidden.prefix[-1:], hidden.rows[start : start + len(row) - 1]])
                loss = loss - model.log_probs(states, torch.tensor(row), chunk=2).sum()
                start += len(row)
        else:
            for row in rows:
                logits = hf(input_ids=torch.tensor([[*prefix, *row]]), use_cache=False).logits[0, len(prefix) - 1 : -1]
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(row), reduction="sum")
        loss.backward()
        grads.append({k: p.grad for k, p in hf.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, atol=2e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), prefix=st.integers(0, 7), seed=st.integers(0, 99),
    name=st.sampled_from(["gemma3", "qwen3"]),
)  # fmt: skip
def test_any_pack_equals_its_rows_alone(lengths: list[int], prefix: int, seed: int, name: str) -> None:
    hf = _kept(name)
    model = CausalModel(hf)
    front, *rows = tokens(prefix, *lengths, seed=seed)
    with torch.no_grad():
        hidden = model.forward(rows, prefix=front).rows.split(lengths)
    for row, states in zip(rows, hidden, strict=True):
        close(ours(model, states), alone(hf, [*front, *row])[prefix:])


_models: dict[str, Any] = {}


def _kept(name: str) -> Any:
    return _models.setdefault(name, architectures.model(name))


def test_the_model_stays_an_ordinary_one_to_others() -> None:
    hf = architectures.model("llama")
    model = CausalModel(hf)
    before = alone(hf, tokens(6)[0])
    with torch.no_grad(), model.inference():
        model.forward(tokens(6))
    assert hf.config._attn_implementation != "kamerton"
    assert not any("forward" in m.__dict__ for m in hf.modules())
    torch.testing.assert_close(alone(hf, tokens(6)[0]), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        model.forward(tokens(3), tree=torch.ones(1, 2, 2, dtype=torch.bool))
    assert hf.config._attn_implementation != "kamerton", "an error in a pass must give the attention back"


def test_the_probe_sees_a_wrong_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = architectures.model("gemma2")
    assert probe(CausalModel(hf), tokens(16)[0]) < 1e-3
    broken = CausalModel(hf)
    monkeypatch.setattr(broken.config, "final_logit_softcapping", None)
    whole = CausalModel(architectures.model("gemma2"))
    row = tokens(16)[0]
    with torch.no_grad():
        difference = ours(broken, broken.forward([row]).rows) - ours(whole, whole.forward([row]).rows)
    assert difference.abs().max() > 1e-2


# -- linear layers for inference --------------------------------------------------------------------------------------------

amx = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 instructions"
)


@amx
def test_packed_linear_layers_compute_the_same() -> None:
    hf = _wide()
    model = CausalModel(hf)
    rows = tokens(5, 40)
    with torch.no_grad():
        plain = model.output(model.forward(rows).rows).float()
        with model.inference():
            assert model._linears is not None
            assert model._linears._layers, "no layer was packed"
            packed = model.output(model.forward(rows).rows).float()
    torch.testing.assert_close(packed, plain, atol=0.05, rtol=0.02)


@amx
@pytest.mark.parametrize("change", ["step", "data", "replace"])
def test_packed_linear_layers_follow_changed_weights(change: str) -> None:
    hf = _wide()
    model = CausalModel(hf)
    row = tokens(8)
    layer = hf.model.layers[0].mlp.up_proj
    with torch.no_grad():
        with model.inference():
            before = model.forward(row).rows
        if change == "step":
            layer.weight += 0.5 * torch.randn_like(layer.weight)
        elif change == "data":  # as a merge does it; leaves the version counter alone
            layer.weight.data += 0.5 * torch.randn_like(layer.weight)
        else:
            layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)
        plain = model.forward(row).rows
        with model.inference():
            after = model.forward(row).rows
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, plain, atol=0.1, rtol=0.05)


@amx
def test_gradients_do_not_go_through_packed_layers() -> None:
    hf = _wide()
    model = CausalModel(hf)
    hf.lm_head.requires_grad_(False)  # hidden states do not reach it

    def gradients() -> dict[str, torch.Tensor]:
        hf.zero_grad(set_to_none=True)
        model.forward(tokens(8)).rows.float().square().sum().backward()
        return {n: p.grad for n, p in hf.named_parameters() if p.requires_grad}

    plain = gradients()
    with model.inference():
        assert model._linears is not None
        assert model._linears._layers, "no layer was packed"
        inside = gradients()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(inside[name], gradient, rtol=0, atol=0, msg=name)


def _wide() -> Any:
    torch.manual_seed(0)
    config = architectures.config("llama")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 192, 256, 2
    return type(architectures.model("llama"))(config).to(torch.bfloat16).eval()


# -- loading ----------------------------------------------------------------------------------------------------------------


def test_demo_is_what_it_says(demo: Base) -> None:
    assert demo.info.architecture == "LlamaForCausalLM"
    assert 134e6 < demo.info.parameters < 135e6
    assert demo.info.dtype == "float32"
    assert "134.5 M parameters" in str(demo.info)
    assert len(demo.info.fingerprint) == 64
    assert demo.renderer.end_id == 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_folder_loads(name: str, tiny_folder: Callable[[str], Path]) -> None:
    base = load_base(tiny_folder(name), dtype="float32")
    again = base.reload()
    assert again.info.fingerprint == base.info.fingerprint
    assert again.model.hf is not base.model.hf
    assert base.reload(dtype="bfloat16").model.dtype == torch.bfloat16
    assert base.reload(dtype="bfloat16").info.fingerprint != base.info.fingerprint


def test_fingerprint_sees_one_weight(tiny_folder: Callable[[str], Path]) -> None:
    base = load_base(tiny_folder("llama"), dtype="float32")
    with torch.no_grad():
        base.model.hf.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert loading._fingerprint(base.model.hf) != base.info.fingerprint


def test_dtype_is_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    kind, reason = loading.choose_dtype("auto", cpu)
    assert kind in (torch.float32, torch.bfloat16)
    assert "processor" in reason
    assert loading.choose_dtype("float16", cpu) == (torch.float16, "as asked")
    with pytest.raises(ModelError, match=r"unknown dtype 'int3'; use auto, float32"):
        loading.choose_dtype("int3", cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(loading, "_bfloat16_gain", lambda: 1.1)
    assert loading.choose_dtype("auto", cpu)[0] == torch.float32
    monkeypatch.setattr(loading, "_bfloat16_gain", lambda: 3.0)
    assert loading.choose_dtype("auto", cpu)[0] == torch.bfloat16


def _broken(folder: Path, fault: str) -> None:
    weights = folder / "model.safetensors"
    if fault == "no weights":
        weights.unlink()
    elif fault == "pickle":
        weights.unlink()
        torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    elif fault == "no config":
        (folder / "config.json").unlink()
    elif fault == "bad config":
        (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": ')
    elif fault == "unknown type":
        (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    elif fault == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif fault == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif fault == "wrong shapes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    elif fault == "missing tensor":
        from safetensors.torch import load_file, save_file

        state = load_file(weights)
        state.pop("model.layers.1.mlp.up_proj.weight")
        save_file(state, weights, metadata={"format": "pt"})
    elif fault == "bad template":
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] ")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no weights", "has no weights; add model.safetensors"),
        ("pickle", "pickled (pytorch_model.bin)"),
        ("no config", "has no config.json"),
        ("bad config", "check that its files are whole"),
        ("unknown type", "no-such-model"),
        ("cut weights", "check that its files are whole"),
        ("no tokenizer", "tokenizer"),
        ("wrong shapes", "check that its files are whole"),
        ("missing tensor", "model.layers.1.mlp.up_proj.weight"),
        ("bad template", "the chat template is not valid Jinja (line 1"),
    ],
)
def test_a_broken_folder_gets_one_line(
    fault: str, words: str, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    _broken(folder, fault)
    with pytest.raises(ModelError) as caught:
        load_base(folder, dtype="float32")
    line = str(caught.value)
    assert words in line
    assert "\n" not in line
    assert str(folder) in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no/such/folder", "no such model folder"),
        ("no-such-file.gguf", "no such GGUF file"),
        ("someone/no-such-model", "cannot be loaded from the hub"),
    ],
)
def test_a_name_that_leads_nowhere_gets_one_line(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_gguf_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(ModelError, match="not a GGUF file that can be read") as caught:
        load_base(path)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_gets_one_line(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="device 'nonsense' cannot be used here"):
        load_base(tiny_folder("llama"), device="nonsense")


def test_an_architecture_without_the_interface_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(
        "bloom", vocab_size=architectures.VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    architectures.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        load_base(tmp_path, dtype="float32")
