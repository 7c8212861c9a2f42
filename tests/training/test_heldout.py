"""The held-out text is fixed, chosen by hash, and cut out of everything else."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from omnic.training.heldout import BLOCK, choose, heldout, line_blocks


def test_the_committed_text_is_the_one_the_figures_name():
    held = heldout()
    assert held.size == 129244
    assert held.sha256 == "e183d2c33756dc2df1a407a4e34e6a131424738deae0b4d953c77e4aea1f340d"
    assert len(held.modules) == 32


def test_each_module_has_its_own_text():
    held = heldout()
    texts = held.texts()
    assert "".join(texts) == held.text
    assert [hashlib.sha256(t.encode()).hexdigest() for t in texts] == [m.sha256 for m in held.modules]


def test_the_modules_are_those_of_lowest_sha1():
    sizes = {m.path: m.size for m in heldout().modules}
    assert set(choose(sizes, 131072)) == set(sizes)
    ranks = [hashlib.sha1(m.path.encode()).hexdigest() for m in heldout().modules]
    assert ranks == sorted(ranks)


def test_the_choice_passes_over_tests_tables_and_what_does_not_fit():
    sizes = {
        "a.py": 2000,
        "test/b.py": 2000,
        "encodings/c.py": 2000,
        "pydoc_data/d.py": 2000,
        "small.py": 10,
        "big.py": 5000,
    }
    assert choose(sizes, 32768) == ("a.py",)
    many = {f"m{i}.py": 1500 for i in range(100)}
    assert 0.9 * 32768 < sum(many[p] for p in choose(many, 32768)) <= 32768


def test_a_held_out_module_is_known_by_its_path_in_any_version():
    held = heldout()
    path = held.modules[0].path
    assert held.owns(path)
    assert held.owns("lib/python3.12/" + path)
    assert not held.owns("x" + path)


def test_a_shared_block_is_cut_and_the_rest_stays_apart():
    held = heldout()
    stolen = held.texts()[0].splitlines(keepends=True)[5:20]
    assert sum(len(line.encode()) for line in stolen) >= BLOCK
    assert held.without_shared_blocks("before = 1\n" + "".join(stolen) + "after = 2\n") == (
        "before = 1\n",
        "after = 2\n",
    )


def test_a_short_shared_run_stays():
    held = heldout()
    text = "mine = 1\n" + held.texts()[0].splitlines(keepends=True)[0] + "mine = 2\n"
    assert held.without_shared_blocks(text) == (text,)


LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=90).map(lambda s: s + "\n"), max_size=12
)


@given(LINES, LINES, LINES, LINES, LINES)
def test_no_run_of_whole_lines_of_that_size_survives(a, b, shared, c, d):
    """Whatever surrounds a run of at least BLOCK bytes, one of its blocks is found in both texts."""
    if sum(len(line.encode()) for line in shared) < BLOCK:
        return
    left = {digest for *_, digest in line_blocks(a + shared + b)}
    right = {digest for *_, digest in line_blocks(c + shared + d)}
    assert left & right


def test_blocks_are_the_shortest_of_their_size():
    lines = ["x" * 99 + "\n"] * 4
    assert [(first, last) for first, last, _ in line_blocks(lines)] == [(0, 2), (1, 3), (2, 4)]
