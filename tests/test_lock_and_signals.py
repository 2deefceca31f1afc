"""One process at a time in a directory, and signals that are noted once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from unigen.cli import main
from unigen.lock import DirectoryInUse, locked
from unigen.signals import Ended, asked_to_end

ROOT = Path(__file__).parents[1]

SECOND = """
import sys
from pathlib import Path
from unigen.lock import DirectoryInUse, locked
for trial in range(20):
    try:
        with locked(Path(sys.argv[1])):
            print("held")
    except DirectoryInUse as error:
        print(error)
"""


def other(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_second_process_is_refused_twenty_times_and_told_who_holds_the_directory(tmp_path):
    with locked(tmp_path):
        lines = other(SECOND, str(tmp_path)).stdout.splitlines()
        assert len(lines) == 20
        assert all(f"{tmp_path} is in use by process {os.getpid()} on " in line for line in lines)
        with pytest.raises(DirectoryInUse, match="wait for it, or name a new directory"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_lock_ends_with_its_process_even_by_kill_9(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from unigen.lock import locked
with locked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert other(script, str(tmp_path)).returncode == -signal.SIGKILL
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("written", [b"", b"not json", b"[]", b'{"process": "x"}'])
def test_a_lock_file_that_says_nonsense_still_locks(tmp_path, written):
    with locked(tmp_path):
        (tmp_path / "lock").write_bytes(written)
        with pytest.raises(DirectoryInUse, match="in use by another process"), locked(tmp_path):
            pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_is_noted_and_the_former_handler_comes_back(number, code):
    former = signal.getsignal(number)
    with asked_to_end() as asked:
        assert not asked() and asked.code == 0
        os.kill(os.getpid(), number)
        assert asked() and asked.code == code
    assert signal.getsignal(number) is former


def test_a_second_signal_ends_the_process_at_once():
    script = """
import os, signal, time
from unigen.signals import asked_to_end
with asked_to_end() as asked:
    os.kill(os.getpid(), signal.SIGINT)
    print(asked.code, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    print("still here", flush=True)
"""
    ended = other(script)
    assert (ended.returncode, ended.stdout.split()) == (143, ["130"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_where_nothing_is_lost_a_signal_ends_on_the_spot(number, code):
    former = signal.getsignal(number)
    with pytest.raises(Ended, match=number.name) as raised, asked_to_end(at_once=True):
        os.kill(os.getpid(), number)
        raise AssertionError("went on")
    assert raised.value.code == code and isinstance(raised.value, KeyboardInterrupt)
    assert signal.getsignal(number) is former


def test_a_signal_within_is_known_outside_too():
    with asked_to_end(at_once=True) as outer:
        with asked_to_end() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner() and outer.code == 143


def test_a_second_signal_after_a_first_one_within_ends_the_process_at_once():
    script = """
import os, signal, time
from unigen.signals import asked_to_end
with asked_to_end(at_once=True):
    with asked_to_end() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        print(asked.code, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
    print("still here", flush=True)
"""
    ended = other(script)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (130, ["143"], "")


def test_a_signal_while_data_are_downloaded_ends_the_command_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    class Answer(contextlib.nullcontext):
        def read(self, *size: int) -> bytes:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("went on")

    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **keywords: Answer(Answer()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("UNIGEN_DATA", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--data", "mnist", "--out", str(tmp_path / "out")])
    assert ended.value.code == 143 and not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "the same command" in capsys.readouterr().err


def test_outside_the_main_thread_nothing_is_touched():
    former, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with asked_to_end() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGTERM) is former))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
