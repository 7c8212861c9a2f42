"""Whole runs of the scaled presets: exact repetition, resumption at any step, typed refusals."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from omnic.errors import BundleError, CheckFailed, InputError
from omnic.spec import load_spec, parse_spec, scale
from omnic.training import phase as phases
from omnic.training.config import TrainConfig
from omnic.training.progress import Progress
from omnic.training.trainer import Request, train

SMALL = {"sequence": 32, "batch": 4, "distill_batch": 2, "evaluate_windows": 2, "checkpoint_seconds": 1e-9, "warmup": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = random.Random(0)
    for i in range(8):
        names = ["".join(words.choices("abcdefgiklmnoprstuvw", k=words.randrange(3, 9))) for _ in range(150)]
        lines = [f"def {name}_{i}({name[:2]}): return {words.randrange(999)}" for name in names]
        (folder / f"{i}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def short_evaluation():
    """The figures of a model of a few steps mean nothing: a tenth of the text, eight prefixes."""
    from omnic.training import trainer
    from omnic.training.heldout import Heldout, heldout

    held = heldout()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "heldout", lambda: Heldout(held.modules, held.text[:4000]))
        patch.setattr(trainer, "_PREFIXES", 8)
        yield
    torch.use_deterministic_algorithms(False)


def request_of(out, text, preset="tiny", **options):
    config = TrainConfig(corpus=str(text), **{**SMALL, **options.pop("config", {})})
    options = {"steps": 8, "distill_steps": 3, "mode": "eager-f32", "threads": 1, **options}
    spec = options.pop("spec", None) or scale(load_spec(preset))
    return Request(spec=spec, out=out, config=config, **options)


def run(request):
    return train(request, Progress(quiet=True))


def log_of(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "seconds"} for e in entries]


def weights_of(folder):
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def straight(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    return run(request_of(out, text))


def same(a, b):
    left, right = weights_of(a), weights_of(b)
    assert left.keys() == right.keys()
    return log_of(a) == log_of(b) and all(torch.equal(left[k], right[k]) for k in left)


def test_a_run_leaves_all_it_promises(straight):
    names = {p.name for p in straight.out.iterdir()}
    assert {"run.json", "result.json", "log.jsonl", "tokenizer.json", "card.md", "checkpoints"} <= names
    assert [(e["phase"], e["step"]) for e in log_of(straight.out)] == (
        [("train", i) for i in range(8)] + [("distill", i) for i in range(3)]
    )
    facts = json.loads((straight.out / "result.json").read_text())
    assert facts == straight.facts
    assert facts["ratio_to_xz"] == pytest.approx(facts["bits_per_byte"]["value"] / facts["xz_bits_per_byte"])
    assert facts["reproduce"] in (straight.out / "card.md").read_text()
    assert set(weights_of(straight.out)) > {"embed", "final_norm", "mtp.proj"}


def test_the_loss_falls(straight):
    losses = [e["loss"] for e in log_of(straight.out) if e["phase"] == "train"]
    assert losses[-1] < losses[0] - 0.05


def test_the_same_request_gives_the_same_bits_and_another_seed_others(straight, text, tmp_path):
    run(request_of(tmp_path / "again", text))
    assert same(straight.out, tmp_path / "again")
    run(request_of(tmp_path / "other", text, seed=1))
    assert not same(straight.out, tmp_path / "other")


@pytest.mark.parametrize("cut", [1, 5, 8, 10])
def test_a_run_cut_at_any_step_goes_on_to_the_same_bits(straight, text, tmp_path, monkeypatch, cut):
    class Cut(BaseException):
        pass

    made = 0
    one = phases.Phase._one

    def until(self, clock):
        nonlocal made
        if made == cut:
            raise Cut
        made += 1
        return one(self, clock)

    out = tmp_path / "cut"
    monkeypatch.setattr(phases.Phase, "_one", until)
    with pytest.raises(Cut):
        run(request_of(out, text))
    monkeypatch.setattr(phases.Phase, "_one", one)
    # A log line that no checkpoint has, and half a line, are what a killed process leaves.
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps({"phase": "train", "step": 99, "global_step": 99, "loss": 0}) + '\n{"phase": "tr')
    run(request_of(out, text))
    assert same(straight.out, out)


def test_a_finished_run_is_left_as_it_is(straight, text):
    before = (straight.out / "log.jsonl").stat().st_mtime_ns
    again = run(request_of(straight.out, text))
    assert again.facts == straight.facts
    assert (straight.out / "log.jsonl").stat().st_mtime_ns == before


def test_a_folder_of_another_run_needs_force(straight, text, tmp_path):
    with pytest.raises(InputError, match=r"holds a run with another seed, steps"):
        run(request_of(straight.out, text, seed=3, steps=9))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"exists and is no training run"):
        run(request_of(tmp_path / "mine", text))


def test_a_damaged_checkpoint_is_an_error_and_not_a_fresh_start(text, tmp_path, monkeypatch):
    out = tmp_path / "damaged"
    one = phases.Phase._one

    def until(self, clock):
        if self.state.step == 4:
            raise CheckFailed("enough")
        return one(self, clock)

    monkeypatch.setattr(phases.Phase, "_one", until)
    with pytest.raises(CheckFailed, match="enough"):
        run(request_of(out, text))
    newest = max((out / "checkpoints").iterdir())
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"weights.safetensors is damaged"):
        run(request_of(out, text))


def test_experts_and_latent_attention_train_too(text, tmp_path):
    result = run(request_of(tmp_path / "moe", text, preset="tiny_moe", steps=4))
    assert result.facts["tokens_per_pass"]["drafts"] == 3


NOISY = """omnic: 1
model: noisy
vocab: {size: 300}
context: 256
chunk: 32
blocks:
  - width: 32
    attention: {kind: mha, heads: 2}
    ffn: {kind: moe, hidden: 24, experts: 6, top_k: 2, groups: [3, 3], group_gate: true, select_bias: true, NOISE}
heads: {mtp: {kind: block}}
"""


def test_a_run_with_noise_in_its_routers_resumes_to_the_same_bits(text, tmp_path, monkeypatch):
    noise = "router: {temperature: 1.5, gumbel: 0.5, gaussian: 0.1, jitter: 0.02, dropout: 0.2}"
    spec = parse_spec(NOISY.replace("NOISE", noise), "noisy.yaml")
    config = {"importance_weight": 0.1, "z_weight": 0.01}
    request = {"spec": spec, "steps": 6, "config": config}
    run(request_of(tmp_path / "straight", text, **request))
    one = phases.Phase._one

    def until(self, clock):
        if self.name == "train" and self.state.step == 3:
            raise CheckFailed("enough")
        return one(self, clock)

    monkeypatch.setattr(phases.Phase, "_one", until)
    with pytest.raises(CheckFailed, match="enough"):
        run(request_of(tmp_path / "cut", text, **request))
    monkeypatch.setattr(phases.Phase, "_one", one)
    torch.rand(1000)  # what the process drew before does not matter
    run(request_of(tmp_path / "cut", text, **request))
    assert same(tmp_path / "straight", tmp_path / "cut")
    plain = parse_spec(NOISY.replace("NOISE", "activation: swiglu"), "noisy.yaml")
    run(request_of(tmp_path / "plain", text, **{**request, "spec": plain}))
    assert log_of(tmp_path / "plain")[1] != log_of(tmp_path / "straight")[1]
    assert weights_of(tmp_path / "straight")["blocks.0.ffn.select_bias"].abs().max() > 0


def test_a_run_of_an_omnic_that_had_fewer_keys_is_found_again(straight, text):
    about = straight.out / "run.json"
    known = json.loads(about.read_text())
    del known["config"]["z_weight"]
    known["spec"]["key_of_then"] = None
    about.write_text(json.dumps(known))
    assert run(request_of(straight.out, text)).facts == straight.facts
    with pytest.raises(InputError, match=r"holds a run with another config$"):
        run(request_of(straight.out, text, config={"z_weight": 0.1}))


def test_a_loss_that_is_no_number_stops_the_run(text, tmp_path, monkeypatch):
    request = request_of(tmp_path / "nan", text, config={"muon_rate": 1e30, "adam_rate": 1e30})
    with pytest.raises(CheckFailed, match=r"the loss of train step \d is (nan|inf): the training diverged"):
        run(request)


def test_memory_over_the_limit_is_refused_with_the_cheapest_changes(text, tmp_path):
    with pytest.raises(InputError) as caught:
        run(request_of(tmp_path / "big", text, memory=700_000_000, config={"batch": 512, "sequence": 128}))
    assert "are allowed" in caught.value.message
    assert caught.value.hint is not None
    assert "--set batch=" in caught.value.hint


def test_a_budget_becomes_a_number_of_steps_and_is_kept(text, tmp_path):
    began = time.perf_counter()
    result = run(request_of(tmp_path / "budget", text, hours=0.005, steps=None, distill_steps=None, mode=None))
    spent = time.perf_counter() - began
    assert result.facts["train"]["schedule"]["steps"] >= 10
    # Eighteen seconds on a machine that others may use: the bar of 5 % is for real budgets.
    assert 0.5 * 18 < spent < 2.0 * 18
    assert result.facts["probe"]["measured"].keys() >= {"eager-f32"}


def test_requests_that_cannot_be_carried_out(text, tmp_path):
    with pytest.raises(InputError, match="needs a budget or a number of steps"):
        request_of(tmp_path, text, steps=None)
    with pytest.raises(InputError, match="needs a budget or a number of steps"):
        request_of(tmp_path, text, hours=1.0)
    with pytest.raises(InputError, match=r"a budget of -1 hours"):
        request_of(tmp_path, text, steps=None, hours=-1)
    with pytest.raises(InputError, match="unknown mode 'fast'"):
        request_of(tmp_path, text, mode="fast")
    with pytest.raises(InputError, match="at least one thread, not 0"):
        request_of(tmp_path, text, threads=0)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training.test_trainer import request_of, run
run(request_of(Path({out!r}), {text!r}, steps=30))
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_no_run(text, tmp_path):
    """Fifty kills spread over three runs; each run still ends with the uninterrupted run's bits."""
    from tests.conftest import ROOT

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def script(out):
        return [sys.executable, "-c", SCRIPT.format(root=str(ROOT), out=str(out), text=str(text))]

    began = time.perf_counter()
    subprocess.run(script(tmp_path / "whole"), check=True, env=environment)
    whole = time.perf_counter() - began
    moments = random.Random(1)
    kills = 0
    for attempt in range(3):
        out = tmp_path / f"killed{attempt}"
        while kills < 17 * (attempt + 1):
            process = subprocess.Popen(script(out), env=environment, stderr=subprocess.PIPE)
            time.sleep(moments.uniform(0.05, whole))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        subprocess.run(script(out), check=True, env=environment)
        assert same(tmp_path / "whole", out)
