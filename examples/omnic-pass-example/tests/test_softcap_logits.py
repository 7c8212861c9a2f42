"""Text IR in, text IR out, and the numbers of before and after under the reference."""

import numpy as np
import pytest
from omnic_pass_example.softcap_logits import SoftcapLogits

from omnic.ir.reference import Interpreter
from omnic.ir.text import parse_module, print_module
from omnic.passes.base import OptionError, parse_pass, run_pass

GIVEN = """
module @m {
  dim B in 1..4
  dim T in 1..8
  weight @w : f32[6, 4] = normal(std = 1.0)
  func @forward(%x: f32[B, T, 4]) -> (%logits: f32[B, T, 6]) {
    %logits = lm_head(%x, @w) : f32[B, T, 6]
    return logits = %logits
  }
}
"""
RESULT = GIVEN.replace("lm_head(%x, @w)", "lm_head(%x, @w) {softcap = 5.0}")


def test_given_becomes_result():
    result = run_pass(parse_module(GIVEN), SoftcapLogits(5.0))  # run_pass verifies what the pass made
    assert print_module(result.module).strip() == RESULT.strip()
    assert [str(r) for r in result.remarks] == ["softcap-logits: applied (/lm_head.0)"]


def test_numbers():
    module = parse_module(GIVEN)
    x = np.random.default_rng(0).standard_normal((1, 3, 4))
    w = {"w": np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32) * 4}
    before = Interpreter(module, w).run({"x": x})["logits"]
    after = Interpreter(SoftcapLogits(5.0).run(module).module, w).run({"x": x})["logits"]
    assert np.allclose(after, 5.0 * np.tanh(before / 5.0), rtol=0, atol=1e-12)
    assert (after.argmax(-1) == before.argmax(-1)).all()


def test_a_cap_that_is_there_stays():
    result = SoftcapLogits(9.0).run(parse_module(RESULT))
    assert not result.changed
    assert [str(r) for r in result.remarks] == ["softcap-logits: it has a soft cap of 5.0 (/lm_head.0)"]


def test_by_name_with_its_option():
    assert parse_pass("softcap-logits{cap=20}") == SoftcapLogits(20.0)
    with pytest.raises(OptionError, match=r"option 'cap' of pass 'softcap-logits' must be 1\.\.1000, got 0"):
        parse_pass("softcap-logits{cap=0}")
