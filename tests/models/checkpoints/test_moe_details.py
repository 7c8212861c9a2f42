"""What a random checkpoint does not show: layouts, types, codes, blocks for further tokens, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from omnic.errors import BundleError, InputError
from omnic.ir.reference import ReferenceSession
from omnic.ir.types import DType
from omnic.ir.weights import SafetensorsSource, WeightStore
from omnic.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from tests.models.checkpoints import quantised, sparse
from tests.models.checkpoints.making import Example, Original, Widened, fill, write_checkpoint
from tests.models.checkpoints.proof import Proof
from tests.models.checkpoints.sparse import SPARSE

Tensors = dict[str, NDArray[Any]]
TOKENS = np.random.default_rng(3).integers(0, 197, (1, 30))
FIRST = {e.family: e for e in reversed(SPARSE) if e.whole}


def changed(folder: Path, change: Callable[[Tensors], Mapping[str, Any]], **keys: Any) -> Path:
    """Rewrite the tensors of a folder, and keys of its configuration."""
    tensors = {n: np.array(t) for n, t in load_file(folder / "model.safetensors").items()}
    save_file({n: np.ascontiguousarray(t) for n, t in change(tensors).items()}, folder / "model.safetensors")
    return configured(folder, **keys)


def configured(folder: Path, **keys: Any) -> Path:
    """Set keys of a folder's configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def session_of(checkpoint: Checkpoint) -> ReferenceSession:
    weights = WeightStore.loaded(checkpoint.module, checkpoint.source)
    session = ReferenceSession(checkpoint.module, weights, np.float64)
    session.reset(1)
    return session


def logits_of(folder: Path) -> NDArray[np.float64]:
    """Our logits [T, V] of TOKENS, in f64."""
    return np.asarray(session_of(open_checkpoint(folder, context=256)).forward(TOKENS).logits[0])


def close(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    return bool(np.abs(ours - theirs).max() < 1e-9 * np.sqrt((theirs**2).mean()))


# -- layouts and types --------------------------------------------------------------------------------------
#: families whose tables share what other tests run
ALIKE = ("deepseek_v2", "glm4_moe", "qwen3_moe")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.slow if f in ALIKE else ()) for f in sorted(FIRST)]
)
def test_the_layout_that_transformers_computes_with_is_read_too(family: str, tmp_path: Path) -> None:
    published = write_checkpoint(FIRST[family], tmp_path / "published")
    model = AutoModelForCausalLM.from_pretrained(published)
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    one, other = (open_checkpoint(tmp_path / name, context=256, name="m") for name in ("published", "stacked"))
    if family != "gpt_oss":
        assert set(one.source.source.names()) != set(other.source.source.names())
    assert one.spec == other.spec
    stores = [WeightStore.loaded(c.module, c.source) for c in (one, other)]
    for name in one.module.weights:
        assert np.array_equal(stores[0].array(name), stores[1].array(name)), name


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_the_bias_of_a_choice_stays_f32_in_a_bf16_checkpoint(family: str, tmp_path: Path) -> None:
    def halve(tensors: Tensors) -> Tensors:
        bias = "e_score_correction_bias"
        return {n: t if n.endswith(bias) else t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}

    folder = changed(write_checkpoint(FIRST[family], tmp_path), halve, dtype="bfloat16")
    checkpoint = open_checkpoint(folder, context=256)
    assert checkpoint.spec.dtype == "bf16"
    wider = {n: t for n in checkpoint.module.weights if (t := checkpoint.source.typed(n)) is not None}
    assert set(wider) == {n for n in checkpoint.module.weights if n.endswith("select_bias")} != set()
    assert {t.element for t in wider.values()} == {DType.F32}
    assert close(logits_of(folder), Original(folder).logits(TOKENS[0]))


def test_mxfp4_experts_of_gpt_oss_are_what_their_numbers_are(tmp_path: Path) -> None:
    # As many inputs as twice the hidden dims: only being codes tells how the matrices lie.
    keys = sparse.gpt_oss(hidden_size=64, intermediate_size=32, num_local_experts=3, num_hidden_layers=2)
    example = Example("gpt_oss", "mxfp4", keys | {"rope_parameters": sparse.YARN})
    plain = write_checkpoint(example, tmp_path / "plain")
    coded = write_checkpoint(example, tmp_path / "coded")
    random = np.random.default_rng(8)
    made = {
        f"model.layers.{layer}.mlp.experts.{name}": quantised.mxfp4(random, shape)
        for layer in range(2)
        for name, shape in (("gate_up_proj", (3, 64, 64)), ("down_proj", (3, 64, 32)))
    }
    lying = {n: numbers.swapaxes(1, 2).astype(np.float32) for n, (_, numbers) in made.items()}
    packed = {n + part: array for n, (parts, _) in made.items() for part, array in parts.items()}
    changed(plain, lambda tensors: tensors | lying)
    changed(
        coded,
        lambda tensors: {n: t for n, t in tensors.items() if n not in made} | packed,
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    )
    checkpoint = open_checkpoint(coded)
    for name in ("gate", "up", "down"):
        known = checkpoint.source.typed(f"blocks.1.ffn.experts.{name}")
        assert str(known) == ("fp4<g32, e8m0>[3, 64, 32]" if name == "down" else "fp4<g32, e8m0>[3, 32, 64]")
    wanted = Original(plain).logits(TOKENS[0] % 97)
    session = session_of(checkpoint)
    assert close(np.asarray(session.forward(TOKENS % 97).logits[0]), wanted)


def test_experts_in_every_second_layer(tmp_path: Path) -> None:
    # transformers has no layers of this kind; DeepSeek's own code has (moe_layer_freq).
    example = Example("deepseek_v2", "frequency", sparse.deepseek(first_k_dense_replace=2, num_hidden_layers=4))
    folder = write_checkpoint(example, tmp_path)
    wanted = Original(folder)
    dense = {f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    theirs = wanted.model.model.layers
    theirs[3].mlp = theirs[1].mlp

    def swap(tensors: Tensors) -> Tensors:
        kept = {n: t for n, t in tensors.items() if not n.startswith("model.layers.3.mlp")}
        return kept | {f"model.layers.3.{n}": tensors[f"model.layers.1.{n}"] for n in dense}

    changed(folder, swap, moe_layer_freq=2)
    spec = open_checkpoint(folder, context=256).spec
    assert [type(layer.ffn).__name__ for layer in spec.layers()] == ["Dense", "Dense", "MoE", "Dense"]
    assert close(logits_of(folder), wanted.logits(TOKENS[0]))


def test_where_two_experts_tie_another_choice_is_the_only_difference(tmp_path: Path) -> None:
    proof = Proof(Example("mixtral", "ties", sparse.mixtral(num_local_experts=14), seed=2), tmp_path)

    def tie(tensors: Tensors) -> Tensors:
        router = tensors["model.layers.1.block_sparse_moe.gate.weight"]
        router[5] = router[9]
        return tensors

    proof.original = Original(changed(tmp_path / "checkpoint", tie))
    chosen: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for layer in proof.original.model.model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda _, __, found: chosen.append((found[2][None].numpy(), found[1][None].numpy()))
        )
    routers = [n.name for n in proof.checkpoint.module.function("forward").nodes if n.op == "router"]
    session = session_of(proof.checkpoint)
    differing = 0
    for row, unsure in zip(proof.tokens, proof.undecided, strict=True):
        chosen.clear()
        wanted = proof.original.logits(row)
        session.reset(1)
        found = np.asarray(session.forward(row[None]).logits[0])
        assert close(found[~unsure], wanted[~unsure])
        differing += int(not close(found, wanted))
        session.reset(1)
        forced = session.forward(row[None], routing=dict(zip(routers, chosen, strict=True)))
        assert close(np.asarray(forced.logits[0]), wanted)
    assert differing > 0, "transformers chose as we do at every tie"


# -- blocks for further tokens ------------------------------------------------------------------------------
def with_further_blocks(example: Example, folder: Path, depth: int) -> MtpModel:
    """Write a checkpoint with blocks for further tokens as published; return transformers' model of them in f64."""
    write_checkpoint(example, folder)
    theirs = MtpModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), depth)
    fill(theirs.layers, np.random.default_rng(4))
    layers = example.keys["num_hidden_layers"]
    more: Tensors = {}
    for name, tensor in theirs.layers.state_dict().items():
        number, _, rest = name.partition(".")
        place, array = f"model.layers.{layers + int(number)}.", tensor.numpy()
        rest = rest.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        if rest.endswith("experts.gate_up_proj"):
            for e, both in enumerate(array):
                for part, rows in zip(("gate", "up"), np.split(both, 2), strict=True):
                    more[f"{place}mlp.experts.{e}.{part}_proj.weight"] = rows
        elif rest.endswith("experts.down_proj"):
            more |= {f"{place}mlp.experts.{e}.down_proj.weight": down for e, down in enumerate(array)}
        else:
            more[place + rest] = array

    def add(tensors: Tensors) -> Tensors:
        for i in range(depth):
            more[f"model.layers.{layers + i}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
            more[f"model.layers.{layers + i}.shared_head.head.weight"] = tensors["lm_head.weight"]
        return tensors | more

    changed(folder, add, num_nextn_predict_layers=depth)
    return theirs


@pytest.mark.parametrize(
    ("family", "depth"), [pytest.param("deepseek_v3", 1, marks=pytest.mark.slow), ("deepseek_v3", 2), ("glm4_moe", 1)]
)
def test_blocks_for_further_tokens_compute_what_transformers_does(family: str, depth: int, tmp_path: Path) -> None:
    theirs = with_further_blocks(FIRST[family], tmp_path, depth)
    original = Original(tmp_path)
    with Widened():
        blocks = MtpModel(original.model, depth).double().eval()
    blocks.layers.load_state_dict({n: t.double() for n, t in theirs.layers.state_dict().items()})
    checkpoint = open_checkpoint(tmp_path, context=256)
    assert checkpoint.unread == ()
    session = session_of(checkpoint)
    ids = torch.from_numpy(TOKENS)
    with torch.no_grad(), Widened():
        hidden = original.model(ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
        state = np.asarray(session.forward(TOKENS).hidden)
        for i in range(depth):
            following = ids[:, i + 1 :]
            places = torch.arange(following.shape[1])[None]
            hidden = blocks.forward_layer(i, hidden[:, : following.shape[1]], places, None, input_ids=following)
            found = session.mtp_forward(state[:, : following.shape[1]], following.numpy(), depth=i)
            wanted = original.model.lm_head(hidden)[0].numpy()
            assert close(np.asarray(found.logits[0]), wanted), f"block {i}"
            state = np.asarray(found.hidden)


def test_a_block_for_further_tokens_after_dense_layers_has_experts(tmp_path: Path) -> None:
    example = Example("glm4_moe", "dense", sparse.glm(first_k_dense_replace=2, num_hidden_layers=2))
    with_further_blocks(example, tmp_path, 1)
    spec = open_checkpoint(tmp_path).spec
    layer = spec.mtp_layer()
    assert layer is not None
    assert [type(x.ffn).__name__ for x in (*spec.layers(), layer)] == ["Dense", "Dense", "MoE"]


def test_blocks_for_further_tokens_are_there_when_the_files_hold_them(tmp_path: Path) -> None:
    example = FIRST["glm4_moe"]
    with_further_blocks(example, tmp_path / "held", 1)
    write_checkpoint(example, tmp_path / "none")
    assert json.loads((tmp_path / "none" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    none = open_checkpoint(tmp_path / "none", name="m")
    assert none.spec.heads.mtp is None
    (effect,) = (e.effect for e in none.effects if e.key == "num_nextn_predict_layers")
    assert effect == "no effect: the files hold no block of layer 3"
    held = open_checkpoint(tmp_path / "held")
    assert held.spec.heads.mtp is not None
    assert held.spec.heads.mtp.normed
    left_out = open_checkpoint(configured(tmp_path / "held", num_nextn_predict_layers=0), name="m")
    assert left_out.spec == none.spec


def test_a_block_with_an_embedding_of_its_own_is_refused(tmp_path: Path) -> None:
    with_further_blocks(FIRST["glm4_moe"], tmp_path, 1)
    own = "model.layers.3.embed_tokens.weight"
    changed(tmp_path, lambda tensors: tensors | {own: tensors[own] + np.float32(1)})
    with pytest.raises(BundleError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.message.endswith(
        f": {own} is not the same as model.embed_tokens.weight, and the model has one for both"
    )
    assert caught.value.hint == (
        "set num_nextn_predict_layers to 0 in config.json to leave the block for further tokens out"
    )


# -- what is refused ----------------------------------------------------------------------------------------
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v3", {"scoring_func": "softmax"}, 'omnic cannot express scoring_func = "softmax"'),
    ("deepseek_v3", {"topk_method": "greedy"}, 'omnic cannot express topk_method = "greedy"'),
    ("deepseek_v3", {"n_group": 5}, "omnic cannot express n_group = 5 of 12 experts"),
    ("deepseek_v3", {"topk_group": 5}, "topk_group = 5 is not 1 to the 4 of n_group"),
    ("deepseek_v3", {"num_key_value_heads": 2}, "omnic cannot express num_key_value_heads = 2"),
    ("deepseek_v3", {"moe_layer_freq": 0}, "moe_layer_freq is 0, not 1 or more"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "omnic cannot express topk_method = noaux_tc"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, 'omnic cannot express scoring_func = "sigmoid"'),
    ("deepseek_v2", {"norm_topk_prob": True}, "omnic cannot express norm_topk_prob = true"),
    ("deepseek_v2", {"mlp_bias": True}, "omnic cannot express mlp_bias = true"),
    ("gpt_oss", {"hidden_act": "gelu"}, 'omnic cannot express hidden_act = "gelu"'),
    ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0, not 1 or more"),
    ("qwen2_moe", {"layer_types": ["sliding_attention"] * 3},
     "layer_types has sliding_attention, and use_sliding_window is false"),
    ("qwen3_moe", {"mlp_only_layers": "all"}, 'mlp_only_layers is "all", not a list of numbers'),
    ("mixtral", {"hidden_act": "relu"}, 'omnic cannot express hidden_act = "relu"'),
]  # fmt: skip


@pytest.mark.parametrize(("family", "keys", "message"), REFUSED)
def test_what_omnic_cannot_express_is_refused_by_name(
    family: str, keys: dict[str, Any], message: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(made(family), tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        open_checkpoint(configured(folder, **keys))


@pytest.mark.parametrize("family", sorted(FIRST))
def test_an_unknown_key_is_told(family: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(made(family), tmp_path)
    assert open_checkpoint(configured(folder, expert_dropout=0.1)).unread == ("expert_dropout",)


def copied(folder: Path, to: Path) -> Path:
    """Copy a configuration; its weights are linked."""
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    (to / "model.safetensors").hardlink_to(folder / "model.safetensors")
    return to


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes a family's first example, once."""
    known: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in known:
            known[family] = write_checkpoint(FIRST[family], tmp_path_factory.mktemp(family))
        return known[family]

    return get


def test_the_names_of_a_checkpoint_are_listed_as_often_for_many_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkpoint of DeepSeek-V3 has 45,000 tensors: a list of them for each would take an hour.
    calls = 0
    names = SafetensorsSource.names

    def counted(source: SafetensorsSource) -> tuple[str, ...]:
        nonlocal calls
        calls += 1
        return names(source)

    monkeypatch.setattr(SafetensorsSource, "names", counted)
    found: list[int] = []
    for layers in (1, 4):
        example = Example("qwen3_moe", f"{layers}", sparse.qwen3(num_hidden_layers=layers))
        folder = write_checkpoint(example, tmp_path / str(layers))
        calls = 0
        open_checkpoint(folder, context=256)
        found.append(calls)
    assert found[0] == found[1] < 10
