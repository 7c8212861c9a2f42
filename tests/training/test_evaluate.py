"""Bits per byte and tokens a pass, on modules whose figures are known."""

import lzma
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.runtime.score import windows, xz_bits_per_byte
from omnic.training.evaluate import bits_per_byte, tokens_per_pass
from omnic.training.heldout import Heldout
from tests.training.modules import Counting, Uniform, one_hot


class Letters:
    """A tokenizer of one id a letter; id 0 starts a text."""

    size = 27
    byte_lengths = (0, *[1] * 26)

    def encode(self, text, bos=False):
        return [0] * bos + [ord(c) - 96 for c in text]


TEXT = "".join(chr(97 + i * 7 % 26) for i in range(700))


@given(st.integers(1, 3000), st.integers(1, 300), st.data())
def test_windows_score_each_token_once_with_context(count, length, data):
    stride = data.draw(st.integers(1, length))
    cut = windows(count, length, stride)
    scored = [i for start, end, first in cut for i in range(first, end)]
    assert scored == list(range(count))
    assert all(end - start <= length for start, end, _ in cut)
    assert all(first - start >= length - stride for start, _, first in cut[1:])


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary():
    figure = bits_per_byte(Uniform(27), Letters(), TEXT)
    assert figure.value == pytest.approx(math.log2(27))
    assert (figure.tokens, figure.bytes) == (700, 700)


def test_a_sample_is_of_whole_windows_and_counts_its_own_bytes():
    figure = bits_per_byte(Uniform(27), Letters(), TEXT, sample=3)
    assert figure.windows == 3
    assert figure.tokens == figure.bytes < 700
    assert figure.value == pytest.approx(math.log2(27))


def test_the_tail_behind_a_short_window_is_not_scored():
    batched = bits_per_byte(Counting(27, 0), Letters(), "abcdefghij" * 30, length=64, stride=32, batch=16)
    single = bits_per_byte(Counting(27, 0), Letters(), "abcdefghij" * 30, length=64, stride=32, batch=1)
    assert batched.value == pytest.approx(single.value)
    assert batched.tokens == 300


def test_an_empty_text_has_no_figure():
    with pytest.raises(InputError, match="empty text"):
        bits_per_byte(Uniform(27), Letters(), "")


def test_xz_is_that_of_the_command():
    data = TEXT.encode()
    assert xz_bits_per_byte(TEXT) == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(data)


@pytest.mark.parametrize(("right", "value"), [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)])
def test_accepted_drafts_are_those_before_the_first_wrong_one(right, value):
    found = tokens_per_pass(
        Counting(27, right), Letters(), Heldout((), TEXT), prefixes=10, length=20, drafts=3, batch=4
    )
    assert found.value == value
    assert found.error == 0.0
    assert found.accepted == tuple(float(k <= right) for k in (1, 2, 3))
    assert found.agreement == float(right > 0)
    assert found.prefixes == 10


@pytest.mark.parametrize(("wrong", "value"), [(0, 1.0), (1, 2.0), (None, 4.0)])
def test_each_block_makes_its_own_draft_and_the_last_one_the_rest(wrong, value):
    class Two(Uniform):
        forward = Counting.forward

        def mtp_0_forward(self, hidden, next_tokens):
            assert (hidden == 0).all()
            return one_hot((next_tokens + 1 + (wrong == 0)) % self.size, self.size), hidden + 1

        def mtp_1_forward(self, hidden, next_tokens):
            # Prefix states are the first block's; re-applied, only the last one is its own.
            assert (hidden[:, :20] == 1).all()
            return one_hot((next_tokens + 1 + (wrong == 1)) % self.size, self.size), hidden + 1

    found = tokens_per_pass(Two(27), Letters(), Heldout((), TEXT), prefixes=10, length=20, drafts=3, batch=4)
    assert found.value == value


def test_a_model_without_the_block_has_no_tokens_a_pass():
    with pytest.raises(InputError, match="does not have"):
        tokens_per_pass(Uniform(27), Letters(), Heldout((), TEXT))
