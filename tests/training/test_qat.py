"""Training in few bits: numbers begin as their codes, learn through the rounding, and are written as codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.packing import QTensor
from omnic.ir.types import ElementType, Storage, parse_element
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.base import parse_pass
from omnic.spec import Spec, load_spec, scale
from omnic.targets.torch.library import fake_quant
from omnic.targets.torch.session import TorchSession
from omnic.targets.torch.training import load_training_module
from omnic.training.coded import Coded
from omnic.training.data import Tokens
from omnic.training.module import build_module, export_weights
from omnic.training.qat import Latents, QatConfig, starting_codes, train_quantised
from omnic.training.student import Distillation, Student, without_head

KINDS = ["t2<g32>", "t2<row, f32>", "i4<g32>", "i4<g32, asym>", "i8<row>", "i5<g32, asym, f32>", "i3<g32, asym, f32>",
         "i2<g32>", "nf4<g32>", "fp4<g32>"]


def storage(text: str) -> Storage:
    element = parse_element(text)
    assert isinstance(element, Storage)
    return element


def numbers(shape: tuple[int, ...] = (24, 96)) -> np.ndarray:
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.float32(0.05)
    w[..., 3, :32] = 0
    return w


@pytest.mark.parametrize(
    "text", ["t2<g32>", "t2<row, f32>", "i4<g32>", "i4<g32, asym>", "i8<row>", "i3<g32, asym, f32>", "i2<g32>"]
)
def test_the_rounding_of_the_op_is_the_packings_to_the_bit(text: str) -> None:
    type, w = storage(text), numbers()
    x = torch.tensor(w, requires_grad=True)
    y = fake_quant(x, type.kind, type.group, type.asym, type.scale)
    # w + (rounded - w) is rounded once more in f32, by less than a millionth of the group's largest number.
    want = packing.decode(packing.quantise(w, type))
    assert np.abs(y.detach().numpy() - want).max() <= 1e-7
    y.sum().backward()
    assert x.grad is not None and bool((x.grad == 1).all()), "straight through"


@pytest.mark.parametrize("shape", [(24, 96), (2, 8, 96)])
@pytest.mark.parametrize("text", KINDS)
def test_a_weight_begins_as_its_codes_and_gives_what_they_decode_to(text: str, shape: tuple[int, ...]) -> None:
    w = numbers(shape)
    q = packing.quantise(w, storage(text))
    coded = Coded(w, q)
    found = coded.tensor()
    assert np.array_equal(found.codes, q.codes)
    assert np.array_equal(packing.decode(found), packing.decode(q))
    with torch.no_grad():
        coded.latent += 0.4 * torch.randn(coded.latent.shape, generator=torch.Generator().manual_seed(0))
        coded.factor += 0.1
    moved = coded.tensor()
    assert not np.array_equal(moved.codes, q.codes)
    assert np.array_equal(packing.decode(moved), coded().detach().numpy())
    packed = packing.pack_codes(moved.codes, moved.type)
    assert np.array_equal(packing.unpack_codes(packed, moved.type, moved.shape), moved.codes), "codes are in range"


def test_numbers_keep_their_places_inside_the_cells_of_their_codes() -> None:
    w = numbers()
    q = packing.quantise(w, storage("t2<g32>"))
    shifted = QTensor(np.where(q.codes == 0, np.int8(1), q.codes), q.scale, None, q.type)
    same, other = Coded(w, q), Coded(w, shifted)
    held = np.abs(same.latent.detach().numpy() * same.unit.numpy()).reshape(w.shape) - np.abs(w)
    assert np.abs(held).max() < 0.03 * q.scale.astype(float).max(), "only what lies on an edge is moved"
    moved = other.latent.detach().numpy().reshape(w.shape)[q.codes == 0]
    assert np.allclose(moved[moved < 0.6], 0.52) and moved.min() > 0.5


def test_gradients_go_to_numbers_and_scales() -> None:
    w = numbers()
    coded = Coded(w, packing.quantise(w, storage("i4<g32>")))
    g = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    (coded() * g).sum().backward()
    grouped = g.unflatten(-1, (-1, 32))
    assert coded.latent.grad is not None and coded.factor.grad is not None
    assert torch.allclose(coded.latent.grad, grouped * coded.scale())
    assert torch.allclose(coded.factor.grad, (grouped * coded.levels()).sum(-1, keepdim=True) * coded.unit, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "width", "message"),
    [
        ("i4<g32, s4>", 64, "@w: i4<g32, s4> cannot be trained, its scales share a row"),
        ("i4<g32>", 80, "@w: i4<g32> cannot be trained, 32 does not divide 80"),
    ],
)
def test_a_type_that_cannot_be_trained_is_named(text: str, width: int, message: str) -> None:
    from omnic.training.coded import check_trainable

    with pytest.raises(InputError) as caught:
        check_trainable("w", storage(text), width)
    assert caught.value.message == message


class Small:
    """A small model with weights, and its matrices in t2<g32>."""

    def __init__(self, folder: Path, preset: str = "tiny") -> None:
        self.spec: Spec = scale(load_spec(preset))
        self.front = build(self.spec)
        self.source = folder / "start.safetensors"
        export_weights(build_module(self.front, 1), self.spec, self.source)
        self.store = WeightStore.load(self.front, self.source)
        packed = parse_pass("int4-packing{kind=t2, group=32}").run(self.front).module
        self.elements: dict[str, ElementType] = {n: w.type.element for n, w in packed.weights.items()
                                                 if isinstance(w.type.element, Storage)}

    def student(self) -> Student:
        return Student(self.front, self.store, starting_codes(self.front, self.store, self.elements), self.elements)


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe"])
def test_the_cheap_loss_is_the_divergence_to_second_order(preset: str, tmp_path: Path) -> None:
    small = Small(tmp_path, preset)
    fine = {n: storage("i8<g16>") if e == storage("t2<g32>") or e == storage("t2<g16>") else e
            for n, e in small.elements.items()}
    student = Student(small.front, small.store, starting_codes(small.front, small.store, fine), fine)
    student.rounded.clear()  # the head's own rounding is no part of the cheap loss
    loss = Distillation(small.front, small.store, student, 0.5)
    tokens = torch.randint(0, small.spec.vocab.size, (4, 48), generator=torch.Generator().manual_seed(0))
    cheap, whole = loss(tokens, 0.0), loss(tokens, 0.5)
    assert 0 < whole.item() < 0.01
    assert cheap.item() == pytest.approx(whole.item(), rel=0.25)
    cheap.backward()
    assert all(p.grad is not None for n, p in student.named_parameters() if p.requires_grad)


def test_a_head_with_a_softcap_has_no_cheap_loss(tmp_path: Path) -> None:
    small = Small(tmp_path)
    assert without_head(small.front) is not None
    capped = load_spec("tiny").model_copy(deep=True)
    capped = capped.model_copy(update={"softcap": capped.softcap.model_copy(update={"logits": 30.0})})
    assert without_head(build(scale(capped))) is None


def test_an_optimiser_goes_on_from_its_state(tmp_path: Path) -> None:
    small = Small(tmp_path)
    tokens = torch.randint(0, small.spec.vocab.size, (2, 32), generator=torch.Generator().manual_seed(0))

    def steps(student: Student, optimizer: Latents, count: int) -> None:
        loss = Distillation(small.front, small.store, student, 0.0)
        for _ in range(count):
            loss(tokens, 0.0).backward()
            optimizer.step(1.0)

    whole = small.student()
    steps(whole, Latents(whole, QatConfig()), 4)
    half = small.student()
    first = Latents(half, QatConfig())
    steps(half, first, 2)
    other = small.student()
    other.load_state_dict(half.state_dict())
    second = Latents(other, QatConfig())
    second.load_state({n: t.clone() for n, t in first.state().items()})
    steps(other, second, 2)
    for (name, a), b in zip(whole.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe"])
def test_a_compile_of_what_is_written_keeps_the_codes(preset: str, tmp_path: Path) -> None:
    small = Small(tmp_path, preset)
    out = tmp_path / "trained.safetensors"
    ids = np.random.default_rng(0).integers(0, small.spec.vocab.size, 4000).astype(np.uint16)
    config = QatConfig(batch=2, sequence=32, rate=0.2, factor_rate=0.01, warmup=1)
    found = train_quantised(small.spec, small.elements, Tokens(ids, "", ""), out, weights=small.source, cpu_seconds=1.0,
                            config=config)
    assert found.steps >= 1 and np.isfinite(found.last)
    after = WeightStore.load(small.front, out)
    name = "blocks.0.attn.q"
    began = packing.quantise(small.store.array(name), storage("t2<g32>"))
    trained = after.quantised(name)
    assert not np.array_equal(trained.codes, began.codes)
    assert np.array_equal(after.array("embed"), small.store.array("embed"))
    for text in ("kind=t2, group=32", "kind=i4, group=64", "kind=nf4, group=64"):
        packed = parse_pass(f"int4-packing{{{text}}}").run(after.module).module
        kept = after.with_module(packed).quantised(name)
        assert str(kept.type) == "t2<g32>"
        assert all(np.array_equal(a, b) for a, b in zip(kept.parts().values(), trained.parts().values(), strict=True))
    window = np.random.default_rng(1).integers(0, small.spec.vocab.size, (1, 24))
    want = load_training_module(after.module, after).eval()(torch.from_numpy(window))["logits"].detach().numpy()
    logits = TorchSession.of(after.module, after).forward(window).logits
    assert np.abs(logits - want).max() <= 2e-5 * np.sqrt(np.mean(np.square(want)))
