"""`omnic tokenizer build` and `omnic train` from the command line: exit codes and messages."""

import json

import pytest

from omnic.cli import main
from omnic.errors import InputError
from omnic.training.config import TrainConfig


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.py").write_text("\n".join(f"def f_{i}(x): return x * {i}" for i in range(300)))
    return folder


def test_tokenizer_build_is_repeatable_and_does_not_overwrite(text, tmp_path, capsys):
    out = tmp_path / "tokenizer.json"
    command = ["tokenizer", "build", "--vocab-size", "300", "--corpus", str(text), "-o", str(out)]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["size"] == 300
    assert facts["heldout_bytes_per_token"] > 1
    first = out.read_bytes()
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes() == first
    assert main(["tokenizer", "build", "--vocab-size", "290", "--corpus", str(text), "-o", str(out)]) == 2
    assert "exists and is another tokenizer" in capsys.readouterr().err
    assert out.read_bytes() == first
    assert main([*command, "--force"]) == 0


def test_tokenizer_build_takes_the_size_of_a_spec_or_refuses_both(text, tmp_path, capsys):
    out = str(tmp_path / "t.json")
    assert main(["tokenizer", "build", "--spec", "tiny", "--vocab-size", "5", "--corpus", str(text), "-o", out]) == 2
    assert "--vocab-size 5 is not the spec's vocab.size 4096" in capsys.readouterr().err
    assert main(["tokenizer", "build", "--corpus", str(tmp_path / "none"), "-o", out]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["tokenizer", "build", "-o", str(tmp_path / "no" / "t.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a training needs a budget or a number of steps"),
        (["--steps", "1", "--budget-hours", "1"], "a training needs a budget or a number of steps, not both"),
        (["--steps", "0"], "a training needs at least one step, not 0"),
        (["--steps", "1", "--set", "sequence=4096"], "tiny has a context of 1024 tokens; training reads"),
        (["--steps", "1", "--set", "muon_rat=1"], "did you mean 'muon_rate'?"),
        (["--steps", "1", "--set", "batch=x"], "--set batch=x: batch is a whole number"),
        (["--steps", "1", "--set", "batch"], "--set 'batch' is not NAME=VALUE"),
        (["--steps", "1", "--set", "betas=1"], "--set betas=1: betas is numbers separated by commas"),
        (["--steps", "1", "--set", "batch=0"], "batch must be at least 1, not 0"),
        (["--steps", "1", "--memory", "lots"], "--memory lots:"),
        (["--steps", "1", "--mode", "fast"], "unknown mode 'fast'"),
        (["--steps", "1", "--corpus", "no/such/folder"], "corpus 'no/such/folder' is not a folder"),
    ],
)
def test_wrong_training_commands_exit_with_2_and_say_why(tmp_path, capsys, options, message):
    assert main(["train", "tiny", "-o", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_spec_is_an_input_error(capsys):
    assert main(["train", "tinny", "--steps", "1"]) == 2
    assert "tiny" in capsys.readouterr().err


def test_a_recipe_is_read_back_from_its_json():
    config = TrainConfig(batch=3, betas=(0.8, 0.9))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="unknown training option 'batches'"):
        TrainConfig.from_dict({"batches": 3})
