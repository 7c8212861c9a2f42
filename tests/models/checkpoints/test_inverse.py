"""A table read backwards: numbers go out and come back, and what has no way back says so."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.ir.weights.recipes import Evaluator, whole
from omnic.ir.weights.sources import ArraySource
from omnic.models.checkpoints.inverse import inverse
from omnic.models.checkpoints.tensors import concat, load, reshape, rows, shift, stack, transpose


def numbers(recipe: Recipe, source: ArraySource) -> np.ndarray:
    evaluator = Evaluator("w", (), source, None, None)
    return np.asarray(evaluator.numbers(recipe, whole(evaluator.shape(recipe))))


def there_and_back(table: dict[str, Recipe], tensors: dict[str, np.ndarray]) -> None:
    """Make the weights, read the table backwards, and compare what it makes with the tensors."""
    theirs = ArraySource(tensors)
    ours = {name: numbers(recipe, theirs) for name, recipe in table.items()}
    back = inverse(table, {name: array.shape for name, array in ours.items()})
    assert back.keys() == tensors.keys()
    for name, recipe in back.items():
        found = numbers(recipe, ArraySource(ours))
        assert found.shape == tensors[name].shape, name
        assert np.array_equal(found, tensors[name]), name


def tensor(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_names_and_transposes() -> None:
    there_and_back({"a": load("x"), "b": transpose(load("y"))}, {"x": tensor(3, 4), "y": tensor(5, 2)})


def test_a_matrix_that_holds_three() -> None:
    table = {"q": rows(load("qkv"), 0, 6), "k": rows(load("qkv"), 6, 8), "v": rows(load("qkv"), 8, 10)}
    there_and_back(table, {"qkv": tensor(10, 4)})


def test_heads_that_hold_three_each() -> None:
    heads = reshape(load("qkv"), 2, 9, 4)
    table = {n: reshape(rows(heads, 3 * i, 3 * i + 3, axis=1), 6, 4) for i, n in enumerate("qkv")}
    # What is cut from the heads is reshaped again, so the way back passes three recipes.
    there_and_back(table, {"qkv": tensor(18, 4)})


def test_experts_one_by_one_and_in_one_tensor() -> None:
    there_and_back({"up": stack(load("e.0"), load("e.1"), load("e.2"))}, {f"e.{i}": tensor(4, 3) + i for i in range(3)})
    both = load("gate_up")
    there_and_back({"gate": rows(both, 0, 4, axis=1), "up": rows(both, 4, 8, axis=1)}, {"gate_up": tensor(2, 8, 3)})


def test_a_norm_around_one_and_halves_that_swap() -> None:
    table = {"norm": shift(load("n"), 1.0), "proj": concat(rows(load("p"), 3, 6, 1), rows(load("p"), 0, 3, 1), axis=1)}
    there_and_back(table, {"n": tensor(4), "p": tensor(2, 6)})


def test_a_tensor_that_is_not_covered() -> None:
    with pytest.raises(InputError, match="omnic cannot write weights of this family: 'qkv' is not covered"):
        inverse({"k": rows(load("qkv"), 6, 8)}, {"k": (2, 4)})


def test_a_recipe_without_a_way_back() -> None:
    with pytest.raises(InputError, match="no way back from 'scale'"):
        inverse({"w": Recipe("scale", {"value": 2.0}, (load("x"),))}, {"w": (2,)})
