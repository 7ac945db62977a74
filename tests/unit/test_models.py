"""Loading, saving, facts, adapters and conversion, on checkpoints of random weights in the layouts people have."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, IDS, SIZES, dream, every_family, llada, moe, seeded
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import remask
from remask.cli import main
from remask.config import LoraConfig
from remask.data.canvas import Fill, build_rows
from remask.data.collate import Collator, RowDataset, Visit
from remask.data.sources import load_examples
from remask.diffusion.token_loss import token_cross_entropy
from remask.errors import UserError
from remask.models.dream import DreamConfig, DreamModel
from remask.models.facts import facts, turn_end
from remask.models.llada import LLaDAModelLM
from remask.models.llada_moe import LLaDAMoEModelLM
from remask.models.load import load_model
from remask.models.lora import add_adapter, load_adapter
from remask.models.registry import model_class
from remask.sampling import denoise


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """A family's checkpoint in the hub's layout, sharded where asked."""

    def save(family: str, **keywords: Any) -> Path:
        folder = tmp_path / family
        model = FAMILIES[family](tokenizer)
        if family.startswith("a2d"):
            model.config.attention = "full"
        model.save_pretrained(folder, **keywords)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def logits(model: Any, ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **keywords).logits


# ---- every family ---------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_load_save_load(family: str, shard: str | None, saved: Any, tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(family, **({"max_shard_size": shard} if shard else {}))
    assert len(list(folder.glob("*.safetensors"))) == 1 or shard
    model, _ = remask.load(folder)
    assert torch.equal(logits(model, IDS), logits(FAMILIES[family](tokenizer), IDS))
    model.save_pretrained(tmp_path / "again")
    before = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_family
def test_every_place_sees_every_other(family: str, tokenizer: Any) -> None:
    model = FAMILIES[family](tokenizer)
    changed = IDS.clone()
    changed[:, -1] = 80
    assert (logits(model, IDS) - logits(model, changed))[:, 0].abs().max() > 1e-4


@every_family
def test_logits_at_chosen_positions_alone(family: str, tokenizer: Any) -> None:
    model = FAMILIES[family](tokenizer)
    chosen = tokenizer.mask_token_id == IDS
    assert torch.allclose(logits(model, IDS, positions=chosen), logits(model, IDS)[chosen], atol=1e-6)


@every_family
def test_losses_and_entropies_without_logits(family: str, tokenizer: Any) -> None:
    model, positions = FAMILIES[family](tokenizer).eval(), IDS == 257
    targets = torch.arange(int(positions.sum()))
    keywords: dict[str, Any] = {"input_ids": IDS, "positions": positions}
    whole = token_cross_entropy(model(**keywords).logits, targets)
    right = torch.autograd.grad(whole.sum(), list(model.parameters()), allow_unused=True)
    said = model(**keywords, targets=targets)
    assert said.logits is None
    assert torch.allclose(said.token_loss, whole, atol=1e-5)
    for found, other in zip(
        torch.autograd.grad(said.token_loss.sum(), list(model.parameters()), allow_unused=True), right, strict=True
    ):
        assert (found is None) == (other is None)
        assert found is None or torch.allclose(found, other, rtol=1e-4, atol=1e-5)
    seen = model(**keywords, look=lambda logits, part: (logits.clone(), targets[part])).seen
    assert torch.allclose(seen[0], model(**keywords).logits, atol=1e-5)
    assert torch.equal(seen[1], targets)


@every_family
def test_a_row_alone_is_the_same_row_left_padded(family: str, tokenizer: Any) -> None:
    """Every attended place, a row's first one included, where a shift would read the padding."""
    model = FAMILIES[family](tokenizer)
    padded = nn.functional.pad(IDS, (4, 0), value=tokenizer.pad_token_id)
    attended = nn.functional.pad(torch.ones_like(IDS), (4, 0))
    alone = logits(model, IDS, attention_mask=torch.ones_like(IDS))
    assert torch.allclose(logits(model, padded, attention_mask=attended)[:, 4:], alone, atol=1e-5)


@every_family
def test_sampling_a_row_alone_or_in_a_batch(family: str, tokenizer: Any) -> None:
    model = FAMILIES[family](tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": 8, "steps": 8, "block_length": 4, "stop_early": False}
    padded = nn.functional.pad(IDS[:1, :3], (4, 0), value=tokenizer.pad_token_id)
    batch = torch.cat([padded, torch.randint(0, 256, (1, 7), generator=torch.Generator().manual_seed(1))])
    attended = torch.ones_like(batch)
    attended[0, :4] = 0
    both = denoise(model, batch, attended, **settings)
    assert torch.equal(both[:1], denoise(model, IDS[:1, :3], **settings))
    assert torch.equal(both[1:], denoise(model, batch[1:], **settings))


@every_family
def test_gradient_checkpointing_changes_no_gradient(family: str, tokenizer: Any) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = FAMILIES[family](tokenizer).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.logsumexp(-1).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, checkpointed = gradients(False), gradients(True)
    if family.startswith("bert") or family == "modernbert":  # dropout draws anew
        assert len(plain) == len(checkpointed)
        return
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, checkpointed, strict=True))


@every_family
def test_bfloat16(family: str, saved: Any) -> None:
    model, _ = remask.load(saved(family), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert logits(model, IDS).isfinite().all()


def test_the_embedding_of_a_padding_eos_is_learned_in_dream_too(tokenizer: Any) -> None:
    """Dream's official code freezes it (its padding id); here it fills the canvas and is learned, as in LLaDA."""
    model = dream(tokenizer)
    ids = torch.tensor([[65, tokenizer.pad_token_id, 66]])
    model(input_ids=ids).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[tokenizer.pad_token_id].abs().max() > 0
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_shift_takes_a_rows_own_output_at_its_start(tokenizer: Any) -> None:
    model = dream(tokenizer)
    aligned = logits(model, IDS)
    model.config.shift = False
    raw = logits(model, IDS)
    assert torch.equal(aligned[:, 0], raw[:, 0])
    assert torch.equal(aligned[:, 1:], raw[:, :-1])


def test_mixtures_route_as_published(tokenizer: Any) -> None:
    """LLaDA-MoE's block by hand: a softmax over all experts, the top two weights as they are, SwiGLU experts."""
    model = moe(tokenizer)
    block = model.model.layers[0].mlp
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    weights, chosen = (x[0] @ block.gate.weight.T).softmax(-1).topk(2)
    expected = torch.zeros(5, 32)
    for token in range(5):
        for weight, expert in zip(weights[token], chosen[token], strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ x[0, token]).chunk(2)
            expected[token] += weight * (block.experts.down_proj[expert] @ (nn.functional.silu(gate) * up))
    with torch.no_grad():
        assert torch.allclose(block(x)[0], expected, atol=1e-5)
    assert model.model.layers[0].self_attn.q_norm.weight.shape == (8,)  # a norm for each head's width


def test_mixtures_that_call_themselves_llada(saved: Any, tokenizer: Any, tmp_path: Path) -> None:
    """As on the hub: dense and mixed checkpoints share a model type, the experts tell them apart."""
    folder = saved("llada-moe")
    change_config(folder, model_type="llada", published_type=...)
    model, _ = remask.load(folder)
    assert isinstance(model, LLaDAMoEModelLM)
    assert torch.equal(logits(model, IDS), logits(moe(tokenizer), IDS))
    model.save_pretrained(tmp_path / "again")
    saved_config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved_config["model_type"] == "llada"
    assert "published_type" not in saved_config


def test_a_trainers_resume_finds_every_expert(saved: Any, tokenizer: Any) -> None:
    """`load_state_dict` is handed the file's names, where each expert stands alone."""
    folder = saved("llada-moe")
    model = moe(tokenizer)
    other = seeded(lambda: LLaDAMoEModelLM(model.config))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    missing, unexpected = other.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not missing
    assert not unexpected
    assert torch.equal(logits(other, IDS), logits(model, IDS))


# ---- what is refused ------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llada", {"mask_token_id": 3}, "mask_token_id is 3, the tokenizer's mask token is"),
        ("llada", {"alibi": True}, "alibi=True"),
        ("llada", {"model_type": "mamba"}, "mamba"),
        ("llada", {"model_type": "nonsense"}, "nonsense"),
        ("llada-moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
        (
            "dream",
            {"model_type": "qwen2", "is_causal": ..., "architectures": ...},
            "causal model.*remask convert --to-diffusion",
        ),
        ("llada", {"n_layers": 4}, "weights are missing"),
        ("llada", {"n_layers": 2}, r"has no place for: model\.layers\.2"),
        ("llada", {"mlp_hidden_size": 40}, r"of another shape: .*gate_proj"),
        ("dream", {"eos_token_id": "end"}, "Validation error for field 'eos_token_id'.*str"),
        ("dream", {"eos_token_id": 100_000}, "outside its vocabulary"),
        ("llada", {"mask_token_id": "[MASK]"}, "config.json: mask_token_id: expected a whole number"),
        ("dream", {"stop_token_ids": 5}, "config.json: stop_token_ids: expected a list"),
        ("llada", {"shift": "perhaps"}, "config.json: shift: expected true or false"),
        ("llada", {"fill": 3}, "config.json: fill: expected text"),
        ("dream", {"prompt_style": "short"}, "config.json: prompt_style: expected compact or instruct, got 'short'"),
        ("llada", {"default_decoding": {"step": 3}}, "config.json: unknown key 'default_decoding.step'"),
        (
            "llada",
            {"default_decoding": {"steps": "many"}},
            "config.json: default_decoding.steps: expected a whole number",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_right(family: str, changes: Any, message: str, saved: Any) -> None:
    folder = saved(family)
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        remask.load(folder)
    assert str(folder) in str(caught.value) or "alibi" in message or "shared" in message


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"dtype": "float33"}, "unknown dtype 'float33'"), ({"quantization": "3bit"}, "unknown quantization '3bit'")],
)
def test_settings_of_loading_that_make_no_sense(keywords: Any, message: str, saved: Any) -> None:
    with pytest.raises(UserError, match=message):
        remask.load(saved("llada"), **keywords)


def test_a_dtype_of_torchs_own(saved: Any) -> None:
    assert remask.load(saved("llada"), dtype=torch.bfloat16)[0].dtype == torch.bfloat16  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llada", "dream", "a2d-qwen3"])
def test_the_keys_of_older_code_are_saved(family: str, saved: Any, tmp_path: Path) -> None:
    """Where only `rope_parameters` stood, it would compute other positions and say nothing."""
    scaling = {"rope_type": "linear", "factor": 4.0}
    folder = saved(family)
    change_config(folder, rope_theta=2e5, rope_scaling=scaling, rope_parameters=...)
    model, _ = remask.load(folder)
    model.save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (values["rope_theta"], values["rope_scaling"]) == (2e5, scaling)
    shutil.copytree(folder, tmp_path / "old")  # what code that knows the older keys alone reads
    change_config(tmp_path / "old", **{**values, "rope_parameters": ...})
    for again in (tmp_path / "again", tmp_path / "old"):
        assert torch.equal(logits(load_model(str(again)).eval(), IDS), logits(model, IDS))


def test_a_mask_token_that_ends_texts(tokenizer: Any) -> None:
    model = llada(tokenizer)
    model.config.eos_token_id = [tokenizer.eos_token_id, tokenizer.mask_token_id]
    with pytest.raises(UserError, match="also what ends a text"):
        facts(model, tokenizer)


def test_a_checkpoint_without_mask_token(saved: Any, tokenizer: Any) -> None:
    folder = saved("dream")
    change_config(folder, mask_token_id=None)
    assert remask.load(folder)[0].config.mask_token_id == tokenizer.mask_token_id  # the tokenizer knew
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}))
    with pytest.raises(UserError, match="no mask token"):
        remask.load(folder)


def test_a_torn_weight_file(saved: Any) -> None:
    folder = saved("dream")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="weights cannot be read"):
        remask.load(folder)


# ---- facts ----------------------------------------------------------------------------------------------------


def test_the_token_that_closes_a_turn_ends_a_text(saved: Any, tokenizer: Any) -> None:
    folder = saved("dream")
    change_config(folder, stop_token_ids=...)
    model, loaded = remask.load(folder)
    closing = tokenizer.convert_tokens_to_ids("<|end|>")
    assert turn_end(loaded) == closing
    assert facts(model, loaded).stop_ids == (tokenizer.eos_token_id, closing)
    assert facts(model, loaded).shift


# ---- adapters -------------------------------------------------------------------------------------------------


def trained(model: Any) -> Any:
    """Adapters whose B is no longer 0."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("family", ["llada", "dream", "a2d-qwen3", "modernbert"])
def test_an_adapter_saved_loaded_and_merged(family: str, saved: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of the adapter's start: a merged matrix rounds otherwise, by up to 1e-5 with an unlucky one
    folder = saved(family)
    base, _ = remask.load(folder)
    adapted = trained(add_adapter(base, LoraConfig(rank=4, targets=("all-linear",)), base_name=str(folder))).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted, IDS)
    by_base, _ = remask.load(folder, adapter=tmp_path / "adapter")
    by_itself, _ = remask.load(tmp_path / "adapter")
    assert torch.equal(logits(by_base, IDS), expected)
    assert torch.equal(logits(by_itself, IDS), expected)
    merged = by_itself.merge_and_unload()
    assert torch.allclose(logits(merged, IDS), expected, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    shutil.copy(folder / "tokenizer.json", tmp_path / "merged")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "merged")
    assert torch.equal(logits(remask.load(tmp_path / "merged")[0], IDS), logits(merged, IDS))


class Official(nn.Module):
    """Modules under LLaDA's official names, to make an adapter as the official code would."""

    def __init__(self, model: LLaDAModelLM) -> None:
        super().__init__()
        self.config = model.config
        layers = model.model.layers
        blocks = nn.ModuleList()
        for layer in layers:
            block = nn.Module()
            block.q_proj, block.k_proj = layer.self_attn.q_proj, layer.self_attn.k_proj
            block.v_proj, block.attn_out = layer.self_attn.v_proj, layer.self_attn.o_proj
            block.ff_proj, block.up_proj, block.ff_out = (
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
                layer.mlp.down_proj,
            )
            blocks.append(block)
        self.model = nn.Module()
        self.model.transformer = nn.Module()
        self.model.transformer.blocks = blocks
        self.model.transformer.ff_out = model.lm_head


@pytest.mark.parametrize(
    "targets", [["q_proj", "k_proj", "v_proj"], ["q_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]]
)
def test_an_adapter_made_for_the_official_names(targets: list[str], tokenizer: Any, tmp_path: Path) -> None:
    config = PeftLoraConfig(r=4, lora_alpha=8, target_modules=targets)
    official = trained(get_peft_model(Official(llada(tokenizer)), config))
    official.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".transformer." in name for name in names)
    loaded = load_adapter(llada(tokenizer), str(tmp_path)).eval()

    by_hand = llada(tokenizer)
    native = {
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }
    with torch.no_grad():
        for name, a in names.items():
            if "lora_A" not in name:
                continue
            delta = 2.0 * names[name.replace("lora_A", "lora_B")] @ a
            parts = name.split(".")
            if "blocks" in parts:
                layer = by_hand.model.layers[int(parts[parts.index("blocks") + 1])]
                layer.get_submodule(native[parts[-3]]).weight += delta
            else:
                by_hand.lm_head.weight += delta
    assert torch.allclose(logits(loaded, IDS), logits(by_hand, IDS), atol=1e-4)
    assert not torch.allclose(logits(loaded, IDS), logits(llada(tokenizer), IDS), atol=1e-2)


def test_an_adapter_for_another_model(saved: Any, tokenizer: Any, tmp_path: Path) -> None:
    deeper = llada(tokenizer, init_std=0.1)
    adapted = add_adapter(deeper, LoraConfig(rank=2), base_name="x")
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"match no layer: .*layers\.2"):
        remask.load(saved("dream"), adapter=tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first = min(weights)
    save_file({k: v for k, v in weights.items() if k != first}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="layers get no tensor"):
        load_adapter(llada(tokenizer), str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="no adapter that can be read"):
        load_adapter(llada(tokenizer), str(tmp_path / "nothing"))


def test_targets_that_match_nothing(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"attn_out match no layer.*o_proj"):
        add_adapter(llada(tokenizer), LoraConfig(rank=2, targets=("q_proj", "attn_out")), base_name="x")


# ---- the tokenizer of Dream -----------------------------------------------------------------------------------


@pytest.fixture
def dream_folder(shared: Path, tmp_path: Path) -> Path:
    """A folder as Dream's is on the hub: Qwen2.5's vocabulary, two more tokens, and a tokenizer class of its own."""
    source = shared / "data" / "tokenizers" / "qwen2.5"
    folder = tmp_path / "dream"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, folder)
    values = json.loads((source / "tokenizer_config.json").read_text())
    for index, token in ((151665, "<|beginoftext|>"), (151666, "<|mask|>")):
        values["added_tokens_decoder"][str(index)] = {
            **values["added_tokens_decoder"]["151643"],
            "content": token,
        }
    values |= {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "mask_token": "<|mask|>",
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    config = DreamConfig(
        **{**SIZES, "hidden_size": 8, "num_attention_heads": 2},
        intermediate_size=16,
        vocab_size=151680,
        mask_token_id=151666,
        eos_token_id=151643,
        pad_token_id=151643,
        bos_token_id=151643,
    )
    seeded(lambda: DreamModel(config)).save_pretrained(folder)
    change_config(folder, auto_map={"AutoModel": "modeling_dream.DreamModel"}, stop_token_ids=...)
    return folder


@pytest.mark.shared
def test_dreams_tokenizer_needs_no_code_of_its_own(dream_folder: Path) -> None:
    model, tokenizer = remask.load(dream_folder)
    known = facts(model, tokenizer)
    assert (known.mask_id, known.eos_ids, known.stop_ids) == (151666, (151643,), (151643, 151645))
    text = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n\n你好 — naïve"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert max(ids) < 151643
    assert tokenizer.encode("<|mask|><|beginoftext|><|im_end|>") == [151666, 151665, 151645]
    assert load_model(str(dream_folder)).config.shift


# ---- conversion -----------------------------------------------------------------------------------------------


def causal(kind: str, tokenizer: Any, folder: Path, *, vocabulary: int, tied: bool = False) -> Any:
    """A causal checkpoint whose tokenizer has no mask token."""
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[kind]
    config = config_class(
        **SIZES,
        intermediate_size=48,
        head_dim=8,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = seeded(lambda: model_class(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}))
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("room", "tied"), [(0, False), (0, True), (20, False)])
def test_a_causal_model_becomes_a_diffusion_model(
    kind: str, room: int, tied: bool, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a vocabulary that has room for a mask token, and with one that has not."""
    size = len(tokenizer)
    source = causal(kind, tokenizer, tmp_path / "causal", vocabulary=size + room, tied=tied)
    with pytest.raises(UserError, match="remask convert --to-diffusion"):
        remask.load(tmp_path / "causal")
    target = tmp_path / "diffusion"
    command = ["convert", "--to-diffusion", str(tmp_path / "causal"), "--output", str(target)]
    multiple = 1 if tied else 64
    assert main([*command, "--mask-token", "<|new|>", "--vocabulary-multiple", str(multiple)]) == 0
    assert kind in capsys.readouterr().out
    model, loaded = remask.load(target)
    known = facts(model, loaded)
    assert loaded.mask_token == "<|new|>"
    assert known.mask_id == loaded.mask_token_id == size
    assert known.shift
    assert model.config.vocab_size == (size + room if room else -(-(size + 1) // multiple) * multiple)
    table = model.get_input_embeddings().weight
    old = source.get_input_embeddings().weight
    assert torch.equal(table[:size], old[:size])
    for rows, before in ((table, old), (model.lm_head.weight, source.lm_head.weight)):
        new = rows[size : size + 1] if room else rows[size:]
        assert torch.allclose(new, before[:size].mean(0).expand_as(new), atol=1e-6)
    # The last place sees all before it, causal or not; what it says there is read one place on.
    one_layer_deep = logits(model, torch.tensor([[65, 66]]))
    with torch.no_grad():
        plain = source(torch.tensor([[65]])).logits
    assert torch.allclose(logits(model, torch.tensor([[65]]))[0, 0, :size], plain[0, 0, :size], atol=1e-5)
    assert one_layer_deep.shape[-1] == model.config.vocab_size
    changed = logits(model, torch.tensor([[65, 67]]))
    assert not torch.allclose(one_layer_deep[0, 0], changed[0, 0], atol=1e-4)  # the first place sees the second
    # transformers' own class reads the result, both ways too.
    own = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    ids = torch.tensor([[65, 66, size, 68]])
    with torch.no_grad():
        assert torch.allclose(own(ids).logits[:, :-1], logits(model, ids)[:, 1:], atol=1e-5)


def test_what_cannot_be_converted(tokenizer: Any, saved: Any, tmp_path: Path) -> None:
    assert main(["convert"]) == 2
    assert main(["convert", "--to-diffusion", str(saved("dream")), "--output", str(tmp_path / "x")]) == 2
    assert main(["convert", "--merge", str(saved("llada")), "--output", str(tmp_path / "x")]) == 2
    assert main(["convert", "--to-diffusion", str(tmp_path / "no"), "--output", str(tmp_path / "x")]) == 2
    causal("qwen2", tokenizer, tmp_path / "causal", vocabulary=300)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert main(["convert", "--to-diffusion", str(tmp_path / "causal"), "--output", str(tmp_path / "full")]) == 2
    command = ["convert", "--to-diffusion", str(tmp_path / "causal"), "--output", str(tmp_path / "x")]
    assert main([*command, "--mask-token", "a"]) == 2  # ordinary text, which would become the mask
    assert main([*command, "--mask-token", ""]) == 2
    assert main([*command, "--vocabulary-multiple", "0"]) == 2
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x*"))


def test_a_folder_that_cannot_be_written(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    causal("qwen2", tokenizer, tmp_path / "causal", vocabulary=300)
    command = ["convert", "--to-diffusion", str(tmp_path / "causal"), "--output", str(tmp_path / "link")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert main(command) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not list((tmp_path / "empty").iterdir())
    assert not list(tmp_path.glob(".*"))
    assert main(command) == 0
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_merging_by_command(saved: Any, tmp_path: Path) -> None:
    folder = saved("dream")
    base, _ = remask.load(folder)
    adapted = trained(add_adapter(base, LoraConfig(rank=4, targets=("all-linear",)), base_name=str(folder))).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted, IDS)
    for extra in ([], ["--base", str(folder)]):
        target = tmp_path / f"merged{len(extra)}"
        assert main(["convert", "--merge", str(tmp_path / "adapter"), "--output", str(target), *extra]) == 0
        assert torch.allclose(logits(remask.load(target)[0], IDS), expected, atol=1e-5)
        assert set(load_file(target / "model.safetensors")) == set(load_file(folder / "model.safetensors"))


@pytest.mark.shared
@pytest.mark.parametrize("source", ["s1k", "gsm8k"])
def test_real_rows_on_dreams_canvas(source: str, dream_folder: Path, shared: Path) -> None:
    """Prompt and response meet where the assistant's turn begins; the response is closed, then filled with EOS."""
    path = {
        "s1k": shared / "data" / "s1k" / "five_rows_with_reasoning.parquet",
        "gsm8k": shared / "data" / "gsm8k" / "train.jsonl",
    }[source]
    model, tokenizer = remask.load(dream_folder)
    known = facts(model, tokenizer)
    examples = load_examples(f"{source}={path}").examples[:50]
    rows = build_rows(examples, tokenizer, max_length=100_000, over_long="error").rows
    assert len(rows) == (5 if source == "s1k" else 50)
    header = tokenizer.encode("<|im_start|>assistant\n")
    for example, row in zip(examples, rows, strict=True):
        assert row.prompt[-len(header) :] == header
        assert example.messages[-1]["content"] in tokenizer.decode(row.prompt)
        text = tokenizer.decode(row.response)
        assert text == f"{example.completion}<|im_end|>"  # what the template writes after it opens the next turn
        whole = tokenizer.apply_chat_template(
            [*example.messages, {"role": "assistant", "content": example.completion}], tokenize=False
        )
        assert tokenizer.decode(row.prompt + row.response) + "\n" == whole  # the chat template, there and back
    collator = Collator(Fill("batch"), known.eos_ids[0], 100_000, seed=0)
    dataset = RowDataset(rows[:5])
    batch = collator([dataset[Visit(i, 0, i)] for i in range(5)])
    for i, row in enumerate(rows[:5]):
        response = batch["corruptible"][i]
        assert not response[: len(row.prompt)].any()
        assert response[len(row.prompt) :].all()
        assert batch["ids"][i, len(row.prompt) : len(row)].tolist() == row.response
        assert (batch["ids"][i, len(row) :] == 151643).all()
        assert torch.equal(batch["supervised"][i], response)


@pytest.mark.parametrize("kind", ["llada", "Dream", "qwen2"])
def test_a_config_without_its_sizes_is_refused_and_no_published_one_is_taken_for_it(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "d_model": 8, "num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"config\.json lacks num_attention_heads"):
        load_model(str(tmp_path))


# ---- checkpoints that may be something else ---------------------------------------------------------------------


def rewritten(folder: Path, **changes: Any) -> Path:
    """The folder with keys of its config changed; None takes one out."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def test_a_model_that_may_be_a_block_model_is_read_when_told_how_it_attends(saved: Any, tmp_path: Path) -> None:
    folder = rewritten(saved("a2d-qwen3"), attention=None)
    with pytest.raises(UserError, match=r"does not say how this a2d-qwen3 attends.*--model-attention full"):
        remask.load(folder)
    assert main(["generate", "--model", str(folder), "hi"]) == 2
    model, tokenizer = remask.load(folder, attention="full")
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = remask.load(tmp_path / "again")  # it is asked once
    assert torch.equal(logits(model, IDS), logits(again, IDS))
    with pytest.raises(UserError, match="attention"):
        remask.load(rewritten(folder, attention="block"))
    small = ["--decoding.max-new-tokens", "2", "--decoding.steps", "1"]
    assert main(["generate", "--model", str(saved("a2d-qwen3")), "--model-attention", "full", "hi", *small]) == 0


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"architectures": ["StableDiffcoderForCausalLM"]}),
        ("qwen3", {"auto_map": {"AutoModelForCausalLM": "modeling_efficient_dlm.EfficientDLM"}}),
        ("llama", {"auto_map": {"AutoModel": "modeling.X"}, "architectures": ["LlamaForCausalLM"]}),
    ],
)
def test_a_causal_models_type_with_code_of_its_own_is_refused(
    kind: str, changes: dict[str, Any], tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stable-DiffCoder calls itself llama and Efficient-DLM qwen3; both attend in blocks."""
    config = transformers.AutoConfig.for_model(
        kind, **SIZES, vocab_size=len(tokenizer), intermediate_size=48, head_dim=8
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    folder = rewritten(tmp_path / "m", **changes)
    for arguments in (["generate", "--model", str(folder), "hi"], ["convert", "--to-diffusion", str(folder)]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert f"it calls itself a {kind} and names code of its own" in said
        assert "remask convert --to-diffusion" not in said
    rewritten(folder, architectures=None, auto_map=None)
    assert main(["convert", "--to-diffusion", str(folder), "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_of_tied_weights_are_merged_into_the_layer_they_adapt(
    target: str, tokenizer: Any, tmp_path: Path
) -> None:
    """The output layer and the input embedding share their weights; the adapter is on one of them."""
    config = transformers.AutoConfig.for_model(
        "llama",
        **SIZES,
        vocab_size=len(tokenizer),
        intermediate_size=48,
        tie_word_embeddings=True,
        is_causal=False,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    base = model_class(config)(config)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model, _ = remask.load(tmp_path / "base")
    wrapped = get_peft_model(model, PeftLoraConfig(r=4, lora_alpha=8, target_modules=[target]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.5)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = logits(wrapped, IDS)
    flags = ["--base", str(tmp_path / "base"), "--output", str(tmp_path / "merged")]
    assert main(["convert", "--merge", str(tmp_path / "adapter"), *flags]) == 0
    assert (logits(remask.load(tmp_path / "base")[0], IDS) - expected).abs().max() > 0.01
    assert torch.allclose(logits(remask.load(tmp_path / "merged")[0], IDS), expected, atol=1e-5)
