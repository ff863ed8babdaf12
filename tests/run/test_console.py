"""Signals are noted and raised where a run can save; the clock adds up by phase."""

import io
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Future

import pytest
import torch
from rich.console import Console

from openprime.models.shape import DONE
from openprime.run.console import Bar, Clock, Interrupted, Signals, with_step_time
from support.ranks import become


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals__the_first_is_noted_and_raised_at_the_next_check(
    number: signal.Signals, capsys: pytest.CaptureFixture
):
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.check()
        assert signals.agree() == (0, False)
        os.kill(os.getpid(), number)
        assert (signals.received, False) == signals.agree() == (number, False)
        with pytest.raises(
            Interrupted, match=f"stopped by {number.name}: saved; go on with --resume"
        ) as stop:
            signals.check()
    assert stop.value.exit_code == 128 + number
    assert pickle.loads(pickle.dumps(stop.value)).exit_code == 128 + number  # as it travels between ranks
    assert signal.getsignal(number) == before
    assert "saving first" in capsys.readouterr().err


def test_signals__usr1_asks_for_one_checkpoint_and_stops_nothing():
    before = signal.getsignal(signal.SIGUSR1)
    with Signals() as signals, signals.interruptible():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        signals.check()
        assert signals.agree() == (0, True)
        assert signals.agree() == (0, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.agree() == (0, True)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals__a_second_interrupt_stops_at_once():
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_interruptible__a_signal_is_raised_at_once(number: signal.Signals):
    """Also out of what blocks, such as a thread's answer; where it is taken back, not before the next check."""
    with Signals() as signals:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
        timer.start()
        begun = time.monotonic()
        with pytest.raises(Interrupted), signals.interruptible():
            Future().result(20)
        assert time.monotonic() - begun < 5
        assert not signals.at_once
        with pytest.raises(Interrupted), signals.interruptible():  # it has not been forgotten
            pytest.fail("begun though a signal had come")
    with Signals() as signals:
        with signals.interruptible():
            signals.at_once = False
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            signals.check()


def test_signals_interruptible__one_of_several_ranks_waits_until_they_agree(monkeypatch: pytest.MonkeyPatch):
    """A signal that came before it too: what it would break off on this rank alone the others would wait for."""
    become(monkeypatch, 1, 2)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.interruptible():
            assert signals.received == signal.SIGTERM
        with pytest.raises(Interrupted):
            signals.check()


def test_signals__handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Signals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_clock__adds_up_by_phase_and_begins_anew(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 1.0, 5.0, 7.0, 10.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock.phase("a"):
        pass
    with clock.phase("b"):
        pass
    with pytest.raises(ZeroDivisionError), clock.phase("a"):
        raise ZeroDivisionError
    assert clock.take() == {"time/a": 5.0, "time/b": 2.0}
    assert clock.take() == {}


def test_clock__says_how_fast_models_worked_and_what_memory_a_gpu_gave(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 2.0, 2.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    held = {"max_memory_allocated": 3.0, "memory_allocated": 1.0, "memory_reserved": 4.0}
    for name, gib in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda gib=gib: gib * 2**30)
    called: list[str] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: called.append(name))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    clock = Clock()
    clock.peak = 40.0
    for peak in (3.0, 2.0):  # the higher one counts
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda peak=peak: peak * 2**30)
        with clock.phase("policy"):
            monkeypatch.setattr(DONE, "flops", DONE.flops + 20e12)
    assert called == ["reset_peak_memory_stats", "synchronize"] * 2
    assert clock.take() == {
        "time/policy": 4.0,
        "memory/policy_peak": 3.0,
        "memory/policy_allocated": 1.0,
        "memory/policy_reserved": 4.0,
        "speed/policy_tflops": 10.0,
        "speed/policy_mfu": 0.25,
    }
    assert clock.take() == {}


@pytest.mark.parametrize(
    ("metrics", "step"),
    [
        ({"time/rollout": 3.0, "time/policy": 2.0, "time/evaluate": 9.0, "x": 7.0}, 5.0),
        (
            {"time/wait": 1.0, "time/rollout": 3.0, "time/verify": 4.0, "time/policy": 2.0},
            3.0,
        ),  # sampled ahead
        ({"time/step": 8.0}, 8.0),  # measured
    ],
)
def test_with_step_time__is_what_its_phases_took_one_after_the_other(metrics: dict, step: float):
    assert with_step_time(metrics) == metrics | {"time/step": step}


def test_bar__is_a_line_a_report_where_there_is_no_terminal(capsys: pytest.CaptureFixture):
    with Bar(Console(), "sft", 8, 2) as bar:
        bar.report(4, {"loss": "0.5", "tok/s": "1,000"})
    assert capsys.readouterr().out.splitlines()[0].startswith("sft 4/8  loss 0.5  tok/s 1,000  left 00:00:0")
    with Bar(Console(), "sft", 8, 2) as bar:
        bar.phase("policy")
    assert "policy" not in capsys.readouterr().out
    with Bar(Console(quiet=True), "sft", 8, 2) as bar:  # another rank than the first
        bar.report(4, {"loss": "0.5"})
    assert capsys.readouterr().out == ""


def test_bar__shows_on_a_terminal_what_the_step_is_at():
    said, clock = io.StringIO(), Clock()
    with Bar(Console(file=said, force_terminal=True, width=120), "rl", 8, 2) as bar:
        clock.told = bar.phase
        for phase in (clock.phase("reference"), clock.device("rollout")):
            with phase:
                bar.progress.refresh()
        thread = threading.Thread(target=lambda: clock.device("elsewhere").__enter__())
        thread.start()
        thread.join()
    shown = said.getvalue()
    assert shown.index("reference") < shown.index("rollout")
    assert "elsewhere" not in shown
