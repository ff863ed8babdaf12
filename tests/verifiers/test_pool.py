"""The pool: order, limits, crashes, and that nothing is left behind."""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from openprime.config import VerifyConfig
from openprime.types import Group, Prompt, Response, UserError, Verdict
from openprime.verifiers import pool as pool_module
from openprime.verifiers.cases import read_tests, unpack_tests
from openprime.verifiers.math import verify_math
from openprime.verifiers.pool import Pool, VerifierError
from openprime.verifiers.worker import limited
from support.programs import READ, bench_row, packed

MATH = Prompt("m:0", (1, 2), "What is x?", "12", {"big": object()})
"""With a column that cannot be sent anywhere: mathematics needs none."""

USER = """
import os, time
from pathlib import Path

def score(prompts, completions, **columns):
    outcomes = []
    for text in completions:
        if text == "hang":
            while True:
                time.sleep(1)
        if text == "die":
            with open("deaths", "a") as file:
                file.write("x")
            os.kill(os.getpid(), 9)
        if text == "die once" and not Path("died").exists():
            Path("died").touch()
            os._exit(3)
        if text == "raise":
            raise KeyError("my own mistake")
        if text == "wait":
            time.sleep(0.2)
        outcomes.append(float(os.getpid() % 1000) / 1000 if text == "pid" else 1.0)
    return outcomes
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prompt:
    """A prompt whose verifier does what the response says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "obedient.py").write_text(USER)
    return Prompt("u:0", (), "do it", None, {"level": 1}, "obedient:score")


def verdicts(pool: Pool, prompt: Prompt, texts: list[str]) -> list[Verdict]:
    """All verdicts, when they are there."""
    return [future.result(timeout=60) for future in pool.submit(prompt, texts)]


def descendants(pid: int) -> set[int]:
    """Processes below one, zombies included."""
    children: dict[int, set[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), set()).add(int(path.parent.name))
    found: set[int] = set()
    fresh = children.get(pid, set())
    while fresh:
        found |= fresh
        fresh = {child for parent in fresh for child in children.get(parent, set())}
    return found


def until(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within a minute."""
    for _ in range(1200):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no process and no descriptor."""
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    before = descendants(os.getpid())
    yield
    assert until(lambda: descendants(os.getpid()) <= before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # noqa: PTH208


def test_submit__verdicts_are_those_of_the_verifier_in_order(nothing_left: None):
    texts = [rf"so \boxed{{{i}}}" for i in range(60)] + ["#### 12.0", "no answer", r"\boxed{3 \cdot 2^2}"]
    with Pool(workers=2) as pool:
        found = verdicts(pool, MATH, texts)
    wanted = verify_math(MATH, texts)
    assert [(v.outcome, v.reason) for v in found] == [(v.outcome, v.reason) for v in wanted]
    assert all(v.seconds > 0 for v in found)
    assert [v.reason for v in found].count("right") == 3


def test_judge__groups_get_their_verdicts(nothing_left: None):
    groups = [
        Group(MATH, tuple(Response((1,), (-1.0,), f"#### {i + k}", False) for k in range(3)), 4)
        for i in range(9, 13)
    ]
    with Pool(workers=2) as pool:
        judged = pool.judge(groups)
    assert [[r.outcome for r in g.responses] for g in judged] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert all(r.verify_seconds > 0 for g in judged for r in g.responses)


def test_submit__any_thread_may_ask(nothing_left: None):
    found: dict[int, list[str]] = {}
    with Pool(workers=2) as pool:

        def ask(i: int) -> None:
            found[i] = [v.reason for v in verdicts(pool, MATH, [f"#### {k}" for k in range(i, i + 20)])]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(5):
        assert found[i] == ["right" if k == 12 else "wrong" for k in range(i, i + 20)]


def test_pool__a_verifier_that_hangs_is_killed_and_the_next_one_answers(user: Prompt, nothing_left: None):
    with Pool(VerifyConfig(seconds=0.5, workers=1)) as pool:
        hung = pool.submit(user, ["hang", "fine"])
        after = pool.submit(user, ["fine"])
        assert [f.result(60) for f in hung] == [Verdict(None, "timeout", 0.5)] * 2
        assert after[0].result(60).outcome == 1.0


def test_pool__a_slow_answer_is_a_timeout_and_wrong(monkeypatch: pytest.MonkeyPatch, nothing_left: None):
    """The time is measured here; what needs SymPy cannot be done in a hundred microseconds."""
    monkeypatch.setattr(pool_module, "MATH_SECONDS", 1e-4)
    prompt = Prompt("m:1", (), "Simplify.", r"\sin^2 x + \frac{\ln x}{2}", {})
    with Pool(workers=1) as pool:
        (verdict,) = verdicts(pool, prompt, [r"\boxed{\frac{\ln x + 2 \sin^2 x}{2}}"])
        monkeypatch.setattr(pool_module, "MATH_SECONDS", 30.0)
        assert verdict == Verdict(0.0, "timeout", 1e-4)
        assert verdicts(pool, prompt, [r"\boxed{\frac{\ln x + 2 \sin^2 x}{2}}"])[0].reason == "right"


def test_pool__only_the_slow_one_of_several_answers_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None
):
    asked, ask = [], pool_module._Worker.ask

    def late(worker: pool_module._Worker, job: pool_module._Job) -> tuple:
        asked.append(len(job.responses))
        answer = ask(worker, job)
        if "#### 5" in job.responses:
            raise TimeoutError
        return answer

    monkeypatch.setattr(pool_module._Worker, "ask", late)
    with Pool(workers=1) as pool:
        found = verdicts(pool, MATH, ["#### 12", "#### 5", "#### 6", "nothing"])
    assert [v.reason for v in found] == ["right", "timeout", "wrong", "no_answer"]
    assert [v.outcome for v in found] == [1.0, 0.0, 0.0, 0.0]
    assert asked == [4, 1, 1, 1, 1]


def test_pool__the_import_of_math_verify_is_on_nobodys_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
):
    """Mathematics in a user's function included."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_mine.py").write_text(
        "from openprime.types import Prompt\n"
        "from openprime.verifiers.math import verify_math\n"
        "def score(prompts, completions, answer, **columns):\n"
        "    return [v.outcome for v in verify_math(Prompt('', (), prompts[0], answer[0]), completions)]\n"
    )
    answer = r"\int_0^1 x^2 dx"  # nothing else decides this one
    texts = [r"\boxed{1/3}", r"\boxed{1/4}"]
    monkeypatch.setattr(pool_module, "MATH_SECONDS", 20.0)
    seen, receive = [], pool_module.receive

    def keep(*args: object) -> tuple:
        seen.append(receive(*args))  # pyright: ignore[reportArgumentType]
        return seen[-1]

    for name in ("math", "of_mine:score"):
        with Pool(VerifyConfig(workers=1, seconds=20.0)) as pool:
            pool.prepare(["math", name])
            monkeypatch.setattr(pool_module, "receive", keep)
            prompt = Prompt("p", (), "Simplify.", answer, {"answer": answer}, name)
            assert [v.outcome for v in verdicts(pool, prompt, texts)] == [1.0, 0.0]
            assert [answer[0] for answer in seen] == ["begun", "loading", "begun", "verdicts"]
        monkeypatch.setattr(pool_module, "receive", receive)
        seen.clear()


def test_pool__a_worker_that_dies_is_tried_once_more(user: Prompt, tmp_path: Path, nothing_left: None):
    with Pool(workers=1) as pool:
        assert verdicts(pool, user, ["die once"])[0].outcome == 1.0
        assert verdicts(pool, user, ["die"]) == [Verdict(None, "crash", 0.0)]
        assert (tmp_path / "deaths").read_text() == "xx"
        assert verdicts(pool, user, ["fine"])[0].outcome == 1.0


def test_pool__what_a_users_function_raises_leaves_its_group_out_and_is_shown(
    user: Prompt, nothing_left: None
):
    with Pool(workers=1) as pool:
        with pytest.warns(UserWarning, match="my own mistake"):
            assert verdicts(pool, user, ["fine", "raise"]) == [Verdict(None, "crash", 0.0)] * 2
        assert "obedient.py" in pool.complaint
        assert verdicts(pool, user, ["fine"])[0].outcome == 1.0
        failed = Group(user, (Response((1,), (0.0,), "raise", False),), 0)
        with pytest.raises(VerifierError, match=r"failed on every response.*\n(.*\n)*.*my own mistake"):
            pool.judge([failed])


def test_pool__a_fault_of_our_own_is_no_verdict_and_no_end(
    user: Prompt, monkeypatch: pytest.MonkeyPatch, nothing_left: None
):
    """What cannot be sent, and a process that cannot be started."""
    odd = dataclasses.replace(user, columns={"it": lambda: None})
    with Pool(workers=1) as pool:
        with pytest.warns(UserWarning, match="pickle"):
            assert verdicts(pool, odd, ["fine"]) == [Verdict(None, "no_verdict")]
        assert verdicts(pool, user, ["fine"])[0].outcome == 1.0
    monkeypatch.setattr(pool_module.sys, "executable", "/nowhere/python")
    with Pool(workers=1) as pool:
        with pytest.warns(UserWarning, match="nowhere"):
            assert verdicts(pool, user, ["fine"]) == [Verdict(None, "no_verdict")]
        with pytest.raises(FileNotFoundError):
            pool.prepare(["math"])
        monkeypatch.undo()
        assert verdicts(pool, MATH, ["#### 12"])[0].outcome == 1.0


def test_pool__too_few_verdicts_of_a_class_are_shown_and_hold_nobody_up(
    user: Prompt, tmp_path: Path, nothing_left: None
):
    (tmp_path / "short.py").write_text(
        "class Judge:\n    def __call__(self, prompt, responses):\n        return []\n"
    )
    with Pool(workers=1) as pool:
        with pytest.warns(UserWarning, match="short:Judge: 0 verdicts for 2 responses"):
            found = verdicts(pool, dataclasses.replace(user, verifier="short:Judge"), ["a", "b"])
        assert found == [Verdict(None, "crash")] * 2


def test_limited__memory_is_bounded_for_one_answer():
    def greedy(prompt: Prompt, responses: object) -> list[Verdict]:
        return [Verdict(1.0, str(len(bytearray(1 << 30))))]

    assert limited(greedy, 1 << 28)(MATH, ["a"]) == [Verdict(0.0, "rejected")]
    assert limited(greedy, 1 << 32)(MATH, ["a"])[0].outcome == 1.0, "and the limit goes with the answer"


def test_pool__workers_are_replaced_after_a_number_of_jobs(user: Prompt, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "JOBS_PER_WORKER", 3)
    with Pool(workers=1) as pool:
        pids = [verdicts(pool, user, ["pid"])[0].outcome for _ in range(7)]
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] == pids[5] != pids[6]


def test_submit__waits_while_too_many_jobs_do(user: Prompt, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "WAITING", 2)
    with Pool(workers=1) as pool:
        futures = []
        for _ in range(6):
            futures += pool.submit(user, ["wait"])
            assert sum(not f.done() for f in futures) <= 4, "two wait, one is under way, one is handed over"
        assert [f.result(60).outcome for f in futures] == [1.0] * 6


def test_close__ends_what_runs_and_cancels_what_waits(user: Prompt, nothing_left: None):
    pool = Pool(VerifyConfig(workers=1, seconds=1000))
    running, waiting = pool.submit(user, ["hang"]), pool.submit(user, ["fine"])
    assert until(lambda: len(descendants(os.getpid())) > 0)
    pool.close()
    assert waiting[0].cancelled()
    assert running[0].result(5).outcome is None
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(user, ["fine"])
    pool.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "no verifier 'maths'; valid are math, code"),
        ("nowhere:score", "no module nowhere"),
        ("obedient:gone", "has no function gone"),
        ("broken:score", "the verifier broken:score does not load:\n(.*\n)*.*ZeroDivisionError"),
    ],
)
def test_prepare__what_does_not_load_is_said_at_the_start(
    user: Prompt, tmp_path: Path, name: str, message: str
):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with Pool(workers=1) as pool:
        with pytest.raises(VerifierError, match=message):
            pool.prepare(["math", name])
        pool.prepare(["math", "obedient:score"])


def test_admit__tests_are_parsed_once_and_those_that_cannot_be_are_left_out(nothing_left: None):
    good = json.dumps({"inputs": ["1", "2"], "outputs": ["1", "4"], "fn_name": None})
    prompts = [Prompt(f"c:{i}", (), "", tests, {"x": 1}, "code") for i, tests in enumerate([good, "{", good])]
    prompts.append(Prompt("m:0", (), "", "7", {"x": 1}))
    said: list[str] = []
    with Pool(workers=1) as pool:
        admitted = pool.admit(prompts, said.append)
        assert [p.id for p in admitted] == ["c:0", "c:2", "m:0"]
        assert len(said) == 1
        assert said[0].startswith("1 of 4 prompts have tests that cannot be judged: left out (c:1: ")
        assert pool.sandbox.startswith("strict")
        assert pool.metrics() == {"verify/strict_sandbox": 1.0}
        with pytest.raises(ValueError, match="1 of 1 prompts"):
            pool.admit(prompts[1:2], said.append)
        assert [(p.answer, p.columns) for p in admitted] == [(good, {}), (good, {}), ("7", {"x": 1})]
        assert unpack_tests(admitted[0].tests) == read_tests({}, good)
        assert pool.admit(admitted, said.append) == admitted
        texts = [f"```python\nprint(input() {end})\n```" for end in ("", "* 2", "+ 1")]
        found = [[(v.outcome, v.reason) for v in verdicts(pool, p, texts)] for p in (prompts[0], admitted[0])]
        assert found[0] == found[1] == [(0.5, "partial"), (0.0, "wrong"), (0.0, "crash")]


def test_admit__in_training_rows_that_a_constant_solves_are_left_out():
    tests = [{"inputs": ["1", "2"], "outputs": outputs} for outputs in (["0", "0"], ["1", "2"], ["a", "a\n"])]
    prompts = [Prompt(f"c:{i}", (), "", json.dumps(t), {}, "code") for i, t in enumerate(tests)]
    said: list[str] = []
    with Pool(workers=1) as pool:
        assert [p.id for p in pool.admit(prompts, said.append)] == ["c:0", "c:1", "c:2"]
        assert said == []
        assert [p.id for p in pool.admit(prompts, said.append, training=True)] == ["c:1"]
        text = "prompts have tests that one answer passes, whatever the input: left out (c:0: print('0'))"
        assert said == [f"2 of 3 {text}"]
        with pytest.raises(UserError, match="1 of 1 prompts have tests that one answer passes"):
            pool.admit(prompts[:1], said.append, training=True)


def test_admit__tests_that_import_what_programs_cannot_are_left_out_by_name():
    row = {"test_list": ["assert f(1) == 1"], "test_imports": ["import no_such_package as np"]}
    lists = {"test_list": ["assert f([2, 1]) == [1, 2]"], "test_imports": ["import sortedcontainers"]}
    prompts = [
        Prompt(f"c:{i}", (), "", None, r, "code")
        for i, r in enumerate([row, {**row, "test_imports": []}, lists])
    ]
    said: list[str] = []
    with Pool(workers=1) as pool:
        kept = pool.admit(prompts, said.append)
        (verdict,) = verdicts(pool, prompts[0], ["```python\ndef f(x): return x\n```"])
        assert "no_such_package, which programs cannot" in verdict.note
        if find_spec("sortedcontainers") is None:  # it is allowed where it is installed
            assert [p.id for p in kept] == ["c:1"]
            return
        text = "```python\nfrom sortedcontainers import SortedList\ndef f(x): return list(SortedList(x))\n```"
        assert [v.reason for v in verdicts(pool, kept[-1], [text])] == ["right"]
    assert [p.id for p in kept] == ["c:1", "c:2"]
    assert "(c:0: its tests import no_such_package, which programs cannot: install it and name" in said[0]


def test_admit__integers_of_many_digits_are_read():
    """Python's own limit is 4,300 of them."""
    zeros, row = "0" * 9000, '{"fn_name": "f", "inputs": [[1], [2]], "outputs": [%s, %s]}'
    rows = [row % (f"1{zeros}", f"1{zeros}0"), row % (f"1{zeros}", f"1{zeros}")]
    prompts = [Prompt(f"c:{i}", (), "", text, {}, "code") for i, text in enumerate(rows)]
    said: list[str] = []
    with Pool(workers=1) as pool:
        (prompt,) = pool.admit(prompts, said.append, training=True)
        texts = [f"```python\ndef f(x): return 10 ** (x + {n})\n```" for n in (8999, 9000)]
        assert [v.reason for v in verdicts(pool, prompt, texts)] == ["right", "wrong"]
    assert said[0].endswith("left out (c:1: return one integer)")


def test_admit__a_small_text_that_unpacks_to_gigabytes_is_left_out_and_costs_the_trainer_nothing():
    """They took two GiB here where the tests were read in this process."""
    bomb = packed("[" + '{"":0},' * 6_000_000 + "{}]")
    assert len(bomb) < 200_000
    row = bench_row(READ[:1], bomb)
    prompts = [Prompt(f"c:{i}", (), "", None, r, "code") for i, r in enumerate([row, bench_row(READ, [])])]
    said: list[str] = []
    with Pool(workers=1) as pool:
        pool.prepare(["code"])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert [p.id for p in pool.admit(prompts, said.append)] == ["c:1"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert said == [
        "1 of 2 prompts have tests that cannot be judged: left out "
        "(c:0: tests that take more than 1024 MiB of memory to read)"
    ]


PARENT = """
import json, sys, time
from openprime.config import VerifyConfig
from openprime.types import Prompt
from openprime.verifiers.pool import Pool

user = Prompt("u:0", (), "do it", None, {}, "obedient:score")
tests = json.dumps({"inputs": [""], "outputs": ["x"]})
code = Prompt("c:0", (), "", tests, {}, "code")
pool = Pool(VerifyConfig(workers=2, code={"seconds": 1000.0, "total_seconds": 1000.0}))
pool.prepare(["code"])
user_future = pool.submit(user, ["hang"])
code_future = pool.submit(code, ["```python\\nwhile True: pass\\n```"])
if sys.argv[1] == "exit":
    time.sleep(1)
    sys.exit(7)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "exit"])
def test_pool__no_process_outlives_the_parent(user: Prompt, end: object):
    """Not a worker in a user's function, nor a sandbox with a program that loops."""
    root = str(Path(pool_module.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(end)], stdout=subprocess.PIPE, text=True, env=environment
    )
    if end == "exit":
        assert parent.wait(60) == 7
        return  # that it ends is the point; its workers are looked for below in the other cases
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    assert until(lambda: len(descendants(parent.pid)) >= 4)  # two workers, a zygote, a program
    time.sleep(0.5)
    below = descendants(parent.pid)
    parent.send_signal(end)  # pyright: ignore[reportArgumentType]
    parent.wait()
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below)), json.dumps(sorted(below))
    parent.stdout.close()


SOAK = Path(__file__).parents[2] / "benchmarks" / "verifier_soak.py"


@pytest.mark.skipif(not SOAK.is_file(), reason="needs the repository's benchmarks")
def test_pool__hostile_answers_and_programs_between_ordinary_ones(tmp_path: Path):
    """Nothing lost, nothing rewarded that must not be, no file, process or descriptor left."""
    root = str(Path(pool_module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(SOAK), "--count", "250", "--hostile", "0.4", "--workers", "2"],
        env=os.environ | {"PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost, nothing left" in done.stdout
    assert list(tmp_path.iterdir()) == []
