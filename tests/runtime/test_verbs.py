"""`omnic run` and `omnic chat` over the fake session, through the command line."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest
from rich.console import Console

from omnic import cli
from omnic.runtime.conversation import Conversation
from omnic.runtime.model import load_model
from omnic.runtime.sampling import Sampling
from omnic.verbs._terminal import ChatTerminal, visible


@pytest.fixture
def want(fake_bundle):
    model = load_model(fake_bundle("reference"))
    return lambda prompt, count=8, **options: model.generate(prompt, count, **{"greedy": True, **options})


def omnic(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_text_alone_on_stdout(fake_bundle, want, capsys):
    code, out, err = omnic(capsys, "run", fake_bundle(), "--prompt", "def f(", "--max-new", 8, "--greedy")
    assert (code, out) == (0, want("def f(").text + "\n")
    assert err.startswith("prompt 7 tokens in ") and err.rstrip().endswith("ended by length")


def test_json(fake_bundle, want, capsys):
    code, out, err = omnic(capsys, "run", fake_bundle(), "--prompt", "ab", "--max-new", 8, "--greedy", "--json")
    body = json.loads(out)
    expected = want("ab")
    assert (code, err, body["finish"]) == (0, "", "length")
    assert (body["text"], body["ids"]) == (expected.text, list(expected.ids))
    assert body["prompt_ids"] == [0, *body["prompt_ids"][1:]]
    assert body["stats"]["new_tokens"] == 8 and body["stats"]["tokens_per_s"] > 0


def test_batches(fake_bundle, want, capsys):
    arguments = ("run", fake_bundle(), "--prompt", "a", "--prompt", "bcd", "--max-new", 5, "--greedy")
    code, out, err = omnic(capsys, *arguments)
    assert (code, out) == (0, want("a", 5).text + "\n\n" + want("bcd", 5).text + "\n")
    assert err.count("tokens/s") == 2
    answers = json.loads(omnic(capsys, *arguments, "--json")[1])["answers"]
    assert [a["text"] for a in answers] == [want("a", 5).text, want("bcd", 5).text]


def test_ids_and_no_tokenizer(fake_bundle, want, capsys):
    code, out, _ = omnic(capsys, "run", fake_bundle(tokenizer=False), "--ids", "5, 7,9", "--max-new", 4, "--greedy")
    assert (code, out) == (0, " ".join(str(i) for i in want([5, 7, 9], 4).ids) + "\n")
    code, out, err = omnic(capsys, "run", fake_bundle("other", tokenizer=False), "--prompt", "x")
    assert (code, out) == (2, "")
    assert err == (
        "error: this model has no tokenizer\n  give token ids (--ids), or name a tokenizer in the spec\n"
    )


def test_chat_without_a_tokenizer_says_what_is_possible(fake_bundle, capsys, tmp_path):
    bundle = fake_bundle("other", tokenizer=False)
    code, out, err = omnic(capsys, "chat", bundle)
    assert (code, out) == (2, "")
    assert err == (
        "error: this model has no tokenizer, so it cannot chat\n"
        "  name a tokenizer in the spec and compile again; omnic run --ids takes and gives token ids\n"
    )


def test_prompt_from_a_file_or_standard_input(fake_bundle, want, capsys, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("héllo")
    bundle = fake_bundle()
    assert omnic(capsys, "run", bundle, "--prompt-file", tmp_path / "p.txt", "--greedy", "--max-new", 8)[1] == (
        want("héllo").text + "\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("héllo"))
    out = omnic(capsys, "run", bundle, "--prompt-file", "-", "--greedy", "--max-new", 8)[1]
    assert out == want("héllo").text + "\n"
    (tmp_path / "bad").write_bytes(b"ab\xff")
    code, _, err = omnic(capsys, "run", bundle, "--prompt-file", tmp_path / "bad")
    assert (code, err) == (2, f"error: {tmp_path / 'bad'}: not UTF-8 text (invalid start byte at byte 2)\n")


def test_sampling_options_reach_the_sampler(fake_bundle, want, capsys, tmp_path):
    bias = tmp_path / "bias.json"
    bias.write_text('{"20": 50.0, "<|mask|>": -5, "z": 1.5}')
    bundle = fake_bundle()
    options = ("--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01, "--seed", 7, "--allow", "8:264",
               "--repetition-penalty", 1.2, "--no-repeat-ngram", 2, "--max-run", 2, "--stop", "zzzz")  # fmt: skip
    code, out, _ = omnic(capsys, "run", bundle, "--prompt", "a", "--max-new", 20, "--json", *options)
    same = want("a", 20, greedy=False, temperature=1.5, top_k=50, top_p=0.9, min_p=0.01, seed=7, allow=(8, 264),
                repetition_penalty=1.2, no_repeat_ngram=2, max_run=2)  # fmt: skip
    assert (code, json.loads(out)["ids"]) == (0, list(same.ids))
    out = omnic(capsys, "run", bundle, "--prompt", "a", "--max-new", 5, "--greedy", "--json", "--bias", bias)[1]
    assert json.loads(out)["ids"] == [20] * 5


def test_system_and_template(fake_bundle, want, capsys, tmp_path):
    bundle = fake_bundle()
    model = load_model(bundle)
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    out = omnic(capsys, "run", bundle, "--system", "S", "--prompt", "q", "--max-new", 8, "--greedy")[1]
    assert out == model.chat(chat, 8, greedy=True).text + "\n"
    file = tmp_path / "t"
    file.write_text("<{{ system }}|{{ prompt }}>")
    options = ("--template", file, "--system", "S", "--prompt", "q", "--max-new", 8, "--greedy")
    out = omnic(capsys, "run", bundle, *options)[1]
    assert out == want("<S|q>").text + "\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "no prompt: give --prompt TEXT, --prompt-file FILE or --ids 5,7,9"),
        (("--prompt", "a", "--ids", "1"), "give the prompt once"),
        (("--ids", "1,x"), "--ids: 'x' is not a token id"),
        (("--ids", "300"), "token id 300 is outside the vocabulary 0..263"),
        (("--ids", "1", "--system", "s"), "--ids are the whole prompt"),
        (("--prompt", "a", "--greedy", "--temperature", "1"), "--greedy and --temperature exclude each other"),
        (("--prompt", "a", "--top-p", "2"), "top_p must be in (0, 1], not 2.0"),
        (("--prompt", "a", "--allow", "5"), "--allow 5: not a slice of ids"),
        (("--prompt", "a", "--max-new", "0"), "max_new must be at least 1, not 0"),
        (("--prompt", "a", "--threads", "0"), "--threads must be at least 1, not 0"),
        (("--prompt", "a" * 200), "the prompt has 201 tokens; this program holds at most 96"),
        (("--prompt", "a", "--bias", "/nothing.json"), "/nothing.json: No such file or directory"),
        (("--prompt-file", "/nothing.txt"), "/nothing.txt: No such file or directory"),
        (("--prompt", "a", "--stop", ""), "a stop string is empty"),
        (("--prompt", "a", "--bogus"), "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_command_lines(fake_bundle, capsys, arguments, message):
    code, out, err = omnic(capsys, "run", fake_bundle(), *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and "Traceback" not in err


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"ab": 1}', "'ab' is 2 tokens, not one"),
        ('{"<|mask>": 1}', "did you mean '<|mask|>'?"),
        ('{"1": "x"}', "the bias of '1' is not a number"),
        ('{"999": 1}', "bias names id 999"),
    ],
)
def test_wrong_bias_files(fake_bundle, capsys, tmp_path, text, message):
    (tmp_path / "bias").write_text(text)
    code, _, err = omnic(capsys, "run", fake_bundle(), "--prompt", "a", "--bias", tmp_path / "bias")
    assert code == 2 and message in err


def test_damaged_and_missing_bundles(fake_bundle, capsys, tmp_path):
    bundle = fake_bundle()
    (bundle / "program").write_bytes(b"fakE")
    for verb in (("run", "--prompt", "a"), ("chat",)):
        code, out, err = omnic(capsys, verb[0], bundle, *verb[1:])
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {bundle / 'program'}: its SHA-256 is not the one in manifest.json")
        err = omnic(capsys, verb[0], tmp_path / "none", *verb[1:])[2]
        assert err.startswith(f"error: {tmp_path / 'none'}: no such bundle")


def test_chat_over_a_pipe(fake_bundle, capsys, monkeypatch):
    bundle = fake_bundle()
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/clear\nhello\n"))
    code, out, _ = omnic(capsys, "chat", bundle, "--greedy", "--max-new", 6)
    expected = load_model(bundle).chat([{"role": "user", "content": "hello"}], 6, greedy=True).text.lstrip() + "\n"
    assert (code, out) == (0, expected * 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("/nonsense\n"))
    code, _, err = omnic(capsys, "chat", bundle)
    assert code == 2 and "there is no command /nonsense" in err


class Talk:
    """A chat with a person whose lines are given."""

    def __init__(self, bundle, *lines, max_new=6, sampling=None):
        self.model = load_model(bundle)
        self.talk = Conversation(self.model, "", max_new, sampling=sampling or Sampling.greedy(), stop=())
        self.err, self.out, self.lines = io.StringIO(), io.StringIO(), list(lines)
        self.chat = ChatTerminal(self.talk, Console(file=self.err, width=100), self.read, self.out)

    def read(self, prompt: str) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def run(self):
        self.chat.greet("fake")
        self.chat.loop()
        return self


def test_commands(fake_bundle, tmp_path):
    file = tmp_path / "talk.json"
    done = Talk(
        fake_bundle(), "/system Be kind.", "one \\", "line", '"""two', 'lines"""', "//slash", f"/save {file}", "/undo",
        "/set top_k 5", "/set max_new 3", "/set max_new 0",
        "/set top-p x", "/set tempo 1", "/set ban_last on", "/retri", "/save /none/where", "/help",
        "/quit", "never said",
    ).run()  # fmt: skip
    saved = json.loads(file.read_text())["messages"]
    said = [m["content"] for m in saved if m["role"] != "assistant"]
    assert said == ["Be kind.", "one \nline", "two\nlines", "/slash"]
    assert len(saved) == 7 and len(done.talk.messages) == 4
    assert done.talk.options["sampling"] == Sampling.greedy(top_k=5, ban_last=True)
    assert done.talk.max_new == 3
    shown = done.err.getvalue()
    for text in ("fake, context 96 tokens", "taken back: /slash", "top_p is a number, not 'x'",
                 "max_new must be at least 1, not 0",
                 "no sampling option tempo", "there is no command /retri", "did you mean /retry?",
                 "/none/where: No such file", "tokens/s", "context 2", "/save FILE"):  # fmt: skip
        assert text in shown, text
    assert done.lines == ["never said"]


def test_retry_draws_again_unless_greedy(fake_bundle):
    for sampling, equal in ((Sampling.greedy(), True), (Sampling(temperature=2.0), False)):
        done = Talk(fake_bundle("greedy" if equal else "warm"), "hi", "/retry", max_new=20, sampling=sampling).run()
        first, second = done.out.getvalue().split("\n", 1)[0], done.out.getvalue().rsplit("\n", 2)[-2]
        assert (first == second) is equal
        assert len(done.talk.messages) == 2


def test_an_error_does_not_end_the_chat(fake_bundle):
    done = Talk(fake_bundle(), "x" * 300, "hi").run()
    assert "this program holds at most 96" in done.err.getvalue()
    assert [m["role"] for m in done.talk.messages] == ["user", "assistant"]


def test_ctrl_c_at_the_prompt_does_not_leave(fake_bundle):
    done = Talk(fake_bundle(), KeyboardInterrupt(), "hi").run()
    assert "Ctrl-D or /quit leaves" in done.err.getvalue()
    assert len(done.talk.messages) == 2


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_the_answer_only(fake_bundle, presses):
    """The signal itself, while the session computes; a second one interrupts the call."""
    done = Talk(fake_bundle(), "hi", "again", max_new=30)
    session, before = done.model.session, signal.getsignal(signal.SIGINT)
    run, calls = session._run, []

    def pressed(call):
        calls.append(1)
        if len(calls) == 4:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        return run(call)

    session._run = pressed
    done.run()
    assert "stopped by you" in done.err.getvalue()
    assert [m["role"] for m in done.talk.messages] == ["user", "assistant"] * 2
    assert signal.getsignal(signal.SIGINT) is before
    # what follows is as if the stopped answer had been a short one
    history = done.talk.messages[:3]
    assert done.talk.messages[3]["content"] == done.model.chat(history, 30, greedy=True).text.strip()


def test_an_answer_cannot_steer_the_terminal():
    assert visible("a\x1b[2J\x7f\x9b\r\n\tb") == "a␛[2J␡\N{REPLACEMENT CHARACTER}␍\n\tb"
