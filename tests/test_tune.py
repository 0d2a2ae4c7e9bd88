"""`deit-fast tune`: wrong candidates are never chosen, slower ones neither; cut runs go on; train uses the file."""

import itertools
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from small_runs import ALONE, MINI

from deit_fast.benchmarks.timing import Timing
from deit_fast.benchmarks.tune import questions as asked
from deit_fast.benchmarks.tune.answer import Tried, choose, judge
from deit_fast.benchmarks.tune.journal import ENDED, Journal
from deit_fast.benchmarks.tune.question import Candidate, CandidateError, Question
from deit_fast.benchmarks.tune.search import WARM_UPS, Search
from deit_fast.cli import main
from deit_fast.config import Config, DataConfig, ModelConfig
from deit_fast.kernels.cpu import library
from deit_fast.tuned import apply_tuned, read_tuned, tuned_path, with_values


class Costs:
    """A workload whose turns cost as many seconds as data.prefetch says; what is odd is wrong, 8 does not fit."""

    def __init__(self):
        self.checked = []

    def check(self, config):
        cost = config.data.prefetch
        self.checked.append(cost)
        if cost % 2:
            raise CandidateError("odd")
        return 0.0

    def ready(self, config):
        if config.data.prefetch == 8:
            raise torch.OutOfMemoryError("8 GiB")
        return lambda count: lambda: lambda: count


def as_named(contenders, turns, warm_up_turns):  # noqa: ARG001
    """Timings without a clock: a candidate's name is what it costs."""
    costs = {contender: float(contender.name) for contender in contenders}
    return {contender: Timing([1] * 4, [cost] * 4, [cost] * 4) for contender, cost in costs.items()}


def prefetch_question(*values, name="prefetch", **options):
    candidates = [Candidate(str(value), {"data.prefetch": value}) for value in values]
    return Question(name, "sleep", lambda _config, _ranks: candidates, by_speed=True, **options)


def run(path, questions, workload=None, config=None, seconds=60.0, again=False, measured_with=None):
    lines = []
    names = [question.name for question in questions] if again else []
    journal = Journal(path, {"device": "mine"}, measured_with or {}, names)
    workloads = {"sleep": workload or Costs()}
    search = Search(config or Config(), ALONE, workloads, journal, time.monotonic() + seconds, lines.append)
    chosen = search.run(questions)
    return chosen, journal, lines


@pytest.fixture
def _no_clock(monkeypatch):
    monkeypatch.setattr("deit_fast.benchmarks.tune.search.time_in_turns", as_named)


@pytest.mark.usefixtures("_no_clock")
def test_the_fastest_correct_candidate_is_chosen_and_written(tmp_path):
    """1 would be the fastest, but is wrong; 8 does not fit."""
    chosen, _, lines = run(tmp_path / "a" / "tuned.yaml", [prefetch_question(6, 1, 2, 4, 8)])
    assert chosen == {"data.prefetch": 2}
    tuned = read_tuned(tmp_path / "a" / "tuned.yaml")
    assert (tuned.chosen, tuned.valid_for) == (chosen, {"device": "mine"})
    rows = yaml.safe_load(tuned.path.read_text())["questions"][0]["candidates"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["1"]["fails"] == "CandidateError: odd"
    assert by_name["8"]["fails"] == "OutOfMemoryError: 8 GiB"
    assert by_name["1"]["images_per_second"] is None
    assert by_name["2"]["times_default"] == 3
    assert lines[0].startswith("prefetch: 2 (6 ")
    assert "1 not used: CandidateError: odd" in lines[0]


def test_a_candidate_without_memory_beside_the_others_is_left_out(tmp_path, monkeypatch):
    """Alone it had enough; the rest of the question is answered."""

    class Large(Costs):
        def ready(self, config):
            repeat, calls = super().ready(config), itertools.count()

            def turn(count):
                if config.data.prefetch == 4 and next(calls) >= WARM_UPS:
                    raise torch.OutOfMemoryError("8 GiB")
                return repeat(count)()()

            return lambda count: lambda: lambda: turn(count)

    monkeypatch.setattr("deit_fast.benchmarks.tune.search.SECONDS_OF_A_TURN", 0.0)
    _, journal, lines = run(tmp_path / "t.yaml", [prefetch_question(2, 4, 6)], Large())
    assert "4 not used: OutOfMemoryError: 8 GiB" in lines[0]
    (answer,) = journal.answers.values()
    assert [one.fails is None for one in answer.candidates] == [True, False, True]


def test_what_the_user_set_is_not_asked(tmp_path):
    mine = replace(Config(), data=DataConfig(prefetch=6))
    workload = Costs()
    assert run(tmp_path / "tuned.yaml", [prefetch_question(6, 2)], workload, mine)[0] == {}
    assert workload.checked == []


@pytest.mark.usefixtures("_no_clock")
def test_what_changes_the_learning_is_only_told(tmp_path):
    chosen, journal, lines = run(tmp_path / "tuned.yaml", [prefetch_question(6, 2, only_told=True)])
    assert chosen == {}
    assert lines[0].startswith("prefetch: 2 ")
    assert read_tuned(journal.path).chosen == {}


@pytest.mark.usefixtures("_no_clock")
def test_a_run_out_of_time_is_resumed(tmp_path):
    path, both = tmp_path / "tuned.yaml", [prefetch_question(6, 2), prefetch_question(2, 4, name="more")]
    chosen, journal, _ = run(path, both, seconds=-1)
    assert (chosen, journal.left) == ({}, ["prefetch", "more"])
    run(path, both[:1])
    workload = Costs()
    _, journal, _ = run(path, both, workload)
    assert workload.checked == [2, 4]  # the first question was answered
    assert journal.left == []
    for changed in ({"again": True}, {"measured_with": {"batch": 3}}):
        workload = Costs()
        run(path, both, workload, **changed)
        assert workload.checked == [6, 2, 2, 4]


@pytest.mark.usefixtures("_no_clock")
def test_a_candidate_that_ends_the_program_twice_is_left_out(tmp_path):
    """What is tried is written down first; here the process ends as a kill ends it, past every `finally`.

    After the first end it is tried again: who killed the program may not have meant the candidate.
    """
    path, question = tmp_path / "tuned.yaml", prefetch_question(6, 2, 4)

    def ends_while_trying():
        journal = Journal(path, {"device": "mine"}, {})
        journal._trying = ["prefetch", "2"]
        journal.write()

    ends_while_trying()
    workload = Costs()
    run(path, [question], workload, seconds=-1)
    ends_while_trying()
    chosen, _, lines = run(path, [question], workload)
    assert workload.checked == [6, 4]
    assert chosen == {"data.prefetch": 4}
    assert f"2 not used: {ENDED}" in lines[0]
    assert run(path, [prefetch_question(6, 2)], again=True)[0] == {"data.prefetch": 2}


@pytest.mark.usefixtures("_no_clock")
def test_one_question_again_leaves_the_others_answers(tmp_path):
    """A later one that has set the same key keeps the last word."""
    path, first, later = tmp_path / "tuned.yaml", prefetch_question(6, 4), prefetch_question(4, 2, name="later")
    run(path, [first, later])
    workload = Costs()
    run(path, [first], workload, again=True)
    assert workload.checked == [6, 4]
    assert read_tuned(path).chosen == {"data.prefetch": 2}
    run(path, [first], again=True, seconds=-1)  # cut before it was measured again: its answer does not count
    assert [row["question"] for row in yaml.safe_load(path.read_text())["questions"]] == ["later"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_as_if_it_had_not_been(few_digits, tmp_path, number):
    """Killed while the first candidate is tried, which is then no worse than the others."""
    path = tmp_path / "tuned.yaml"
    command = [sys.executable, "-m", "deit_fast", "tune", "--config", "demo_student", "--data.path", str(few_digits)]
    command += ["--runtime.device", "cpu", "--only", "precision", "--out", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as program:
        while program.poll() is None and "trying:\n- precision" not in (path.read_text() if path.is_file() else ""):
            time.sleep(0.02)
        program.send_signal(number)
        _, errors = program.communicate(timeout=60)
    content = yaml.safe_load(path.read_text())
    if number == signal.SIGTERM:
        assert (program.returncode, errors) == (1, "deit-fast: interrupted\n")
        assert content["trying"] is None
    else:
        assert content["trying"][0] == "precision"
    assert (content["questions"], content["ended"]) == ([], [])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=200)
    (answer,) = yaml.safe_load(path.read_text())["questions"]
    assert [candidate["fails"] for candidate in answer["candidates"]] == [None, None]


@pytest.mark.usefixtures("_no_clock")
def test_a_candidate_that_takes_the_device_with_it_is_left_out_of_the_next_run(tmp_path, monkeypatch):
    """After an illegal access every call of the process fails."""
    question, path = prefetch_question(6, 3, 2), tmp_path / "tuned.yaml"
    monkeypatch.setattr("deit_fast.benchmarks.tune.search.device_works", lambda _ranks: False)
    with pytest.raises(RuntimeError, match=r"3 \(prefetch\) failed and the device with it .*run deit-fast tune again"):
        run(path, [question])
    assert run(path, [question])[0] == {"data.prefetch": 2}


def test_nothing_correct_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no candidate for prefetch works here: CandidateError: odd"):
        run(tmp_path / "tuned.yaml", [prefetch_question(1, 3)])


def test_our_own_mistake_is_not_told_as_a_candidates(tmp_path):
    """What no machine can cause ends the search, and the next run tries the candidate again."""

    class Mistaken(Costs):
        def ready(self, config):
            return lambda count: lambda: lambda: len(config, count)

    path, question = tmp_path / "tuned.yaml", prefetch_question(6, 2)
    with pytest.raises(TypeError, match="len"):
        run(path, [question], Mistaken())
    workload = Costs()
    run(path, [question], workload)
    assert workload.checked == [6, 2]


def test_the_default_stays_unless_another_is_clearly_faster():
    assert choose({"default": [1.0] * 4, "a": [1.01] * 4}) == "default"
    assert choose({"default": [1.0] * 4, "a": [0.9, 0.9, 9.0, 9.0]}) == "default"  # half of the rounds only
    assert choose({"default": [1.0] * 4, "a": [1.1] * 4, "b": [1.3, 1.3, 0.9, 1.2]}) == "b"


def test_cpu_time_decides_where_others_share_the_machine():
    """The second needed half the CPU time, though the wall clock went on while others ran."""
    timings = {"one": Timing([10] * 4, [1.0] * 4, [1.0] * 4), "two": Timing([10] * 4, [3.0] * 4, [0.5] * 4)}
    tried = [Tried("one", {"data.prefetch": 1}), Tried("two", {"data.prefetch": 2})]
    assert judge("q", tried, timings, "CPU time", {}).values == {"data.prefetch": 2}
    assert judge("q", tried, timings, "images/s", {}).values == {"data.prefetch": 1}


@pytest.mark.parametrize("compiled_kernels", [True, False])
def test_questions_on_a_cpu_and_on_a_gpu(monkeypatch, compiled_kernels):
    """Only what exists there: graphs and decoders are asked about on a GPU alone, and some kernels."""
    monkeypatch.setattr(library, "levels", lambda: ("portable",) if compiled_kernels else ())
    monkeypatch.setattr(library, "runs_attention", lambda: compiled_kernels)
    names = {question.name: question for question in asked.QUESTIONS}
    assert len(names) == len(asked.QUESTIONS)
    gpu = replace(ALONE, device=torch.device("cuda", 0))
    compiled = with_values(MINI, {"runtime.compile": True, "runtime.precision": "bf16"})
    found = {
        name: [[candidate.name for candidate in question.candidates(compiled, ranks)] for ranks in (ALONE, gpu)]
        for name, question in names.items()
        if name != "precision"  # asks the device, which need not be here
    }
    assert found["attention"] == [
        ["reference", "sdpa", "sdpa_flash", "sdpa_math", *(["triton"] if compiled_kernels else [])],
        ["sdpa", "reference", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "triton"],
    ]
    assert found["gelu_bias"] == [["reference", "triton"] if compiled_kernels else [], ["reference", "triton"]]
    assert found["batch_prep"] == [[], ["reference", "triton"]]
    assert found["cuda graphs"] == [[], ["launched", "replayed"]]
    assert found["decoder"] == [[], ["gpu", "cpu"]]
    assert len(found["teacher"][0]) == 8
    assert found["teacher compiled"][0] == ["eager", "compiled, channels_last", "compiled, contiguous"]
    with_two = with_values(compiled, {"runtime.kernels": "batch_prep,add_norm"})
    (_, third) = names["gelu_bias"].candidates(with_two, gpu)
    assert third.values == {"runtime.kernels": "batch_prep,add_norm,gelu_bias"}


def test_the_command_writes_what_train_takes_over(few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("deit_fast.benchmarks.tune.search.SECONDS_OF_A_TURN", 0.0)
    monkeypatch.setattr("deit_fast.benchmarks.tune.search.TURNS", (2, 2))
    arguments = ["--config", "demo_student", "--data.path", str(few_digits), "--runtime.device", "cpu"]
    assert main(["tune", *arguments, "--minutes", "10", "--only", "precision"]) == 0
    out = capsys.readouterr().out
    config = Config(model=ModelConfig(name="deit_mini_patch8_32", image_size_px=32))
    path = tuned_path(config, ALONE.device)
    assert str(path) in out
    chosen = read_tuned(path).chosen
    assert set(chosen) == {"runtime.precision"}
    assert apply_tuned(config, ALONE.device) == with_values(config, chosen)
    assert [row["error"] is not None for row in yaml.safe_load(path.read_text())["questions"][0]["candidates"]] == [
        True
    ] * 2
    assert main(["tune", *arguments, "--only", "prefetch,speed"]) == 2
    assert "--only speed: the questions are precision, attention" in capsys.readouterr().err
