"""Compiled code of a killed process is thrown away; that of one that ended is kept."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnic.errors import CheckFailed, InputError
from omnic.training.compile_cache import CompileCache

HOLD = """
import sys, time
from pathlib import Path
from omnic.training.compile_cache import CompileCache
with CompileCache(Path(sys.argv[1]), print) as cache:
    (cache.folder / "half.so").write_bytes(b"")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def headers(tmp_path_factory, monkeypatch):
    """Keep the headers that torch shares between processes out of the tests: in a folder of their own."""
    folder = tmp_path_factory.mktemp("headers")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def hold(run):
    """Start a process that uses the run's folder and has written half a file."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process, number):
    process.send_signal(number)
    process.wait()
    process.stdout.close()


def test_code_of_a_killed_process_is_thrown_away(tmp_path):
    end(hold(tmp_path), signal.SIGKILL)
    assert (tmp_path / "compiled" / "half.so").exists()
    said = []
    with CompileCache(tmp_path, said.append) as cache:
        assert cache.folder == tmp_path / "compiled"
        assert list(cache.folder.iterdir()) == []
    assert said == [f"{tmp_path}/compiled: compiled code of a process that was killed is thrown away and made anew"]


def test_headers_that_a_killed_process_may_have_half_written_go_too(tmp_path, headers):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    shared = Path(default_cache_dir(), "precompiled_headers")
    assert shared.is_relative_to(headers)
    shared.mkdir(parents=True)
    (shared / "a.h.gch").write_bytes(b"half")
    with CompileCache(tmp_path, print):
        assert (shared / "a.h.gch").exists()
    end(hold(tmp_path), signal.SIGKILL)
    with CompileCache(tmp_path, print):
        assert not (shared / "a.h.gch").exists()


def test_code_of_a_process_that_ended_is_kept(tmp_path):
    said = []
    for error in (None, CheckFailed("stopped by a signal")):
        try:
            with CompileCache(tmp_path, said.append) as cache:
                (cache.folder / "whole.so").touch()
                if error is not None:
                    raise error
        except CheckFailed:
            pass
        assert not (tmp_path / "compiled.in-use").exists()
    with CompileCache(tmp_path, said.append) as cache:
        assert (cache.folder / "whole.so").exists()
        cache.drop()
    assert not (tmp_path / "compiled").exists()
    assert said == []


def test_an_unforeseen_error_leaves_the_code_in_doubt(tmp_path):
    with pytest.raises(RuntimeError), CompileCache(tmp_path, print) as cache:
        (cache.folder / "half.so").touch()
        raise RuntimeError
    said = []
    with CompileCache(tmp_path, said.append) as cache:
        assert list(cache.folder.iterdir()) == []
    assert len(said) == 1


def test_a_run_that_another_process_works_on_is_refused(tmp_path):
    process = hold(tmp_path)
    try:
        with pytest.raises(InputError) as caught, CompileCache(tmp_path, print):
            pass
        assert caught.value.message == f"{tmp_path} is being trained by process {process.pid}"
        assert (tmp_path / "compiled" / "half.so").exists()
    finally:
        end(process, signal.SIGKILL)


def test_the_environment_is_as_before(tmp_path, monkeypatch):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(name, "/elsewhere")
    with CompileCache(tmp_path, print):
        assert os.environ[name] == str(tmp_path / "compiled")
    assert os.environ[name] == "/elsewhere"
    monkeypatch.delenv(name)
    with CompileCache(tmp_path, print, tmp_path / "shared") as cache:
        assert os.environ[name] == str(tmp_path / "shared")
        cache.drop()
    assert name not in os.environ and (tmp_path / "shared").is_dir()


COMPILE = """
import sys
from pathlib import Path
import torch
from omnic.training.compile_cache import CompileCache
with CompileCache(Path(sys.argv[1]), lambda text: print("said", text)) as cache:
    step = torch.compile(lambda x: (x.sin() + 1).square().sum(), dynamic=False)
    print("value", step(torch.arange(8.0)).item())
    if sys.argv[2] == "die":
        import os, signal
        libraries = list(cache.folder.rglob("*.so"))
        assert libraries
        for path in libraries:  # what a write that was cut off leaves
            path.write_bytes(b"")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_after_one_that_was_killed_while_it_compiled_compiles_anew(tmp_path):
    def run(word):
        words = [sys.executable, "-c", COMPILE, str(tmp_path), word]
        return subprocess.run(words, capture_output=True, text=True)

    wanted = (torch.arange(8.0).sin() + 1).square().sum().item()
    assert run("die").returncode == -signal.SIGKILL
    # Without the marker the broken code would be loaded, as it would from a folder that all processes share.
    marker = tmp_path / "compiled.in-use"
    text = marker.read_bytes()
    marker.unlink()
    assert run("go").returncode != 0
    marker.write_bytes(text)
    again = run("go")
    assert again.returncode == 0, again.stderr
    said, value = again.stdout.splitlines()
    assert said.endswith("compiled code of a process that was killed is thrown away and made anew")
    assert float(value.split()[1]) == pytest.approx(wanted, rel=1e-6)
    assert not marker.exists()
