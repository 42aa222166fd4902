"""Work beside this process: done once, in whichever process, and what it raises is raised where it is asked for."""

import os
import signal
import time

import pytest

from audit.base.usage import UsageError
from audit.base.workers import Workers, later


def slowly(value: int) -> tuple[int, int]:
    time.sleep(0.05)
    return value, os.getpid()


def fails(message: str) -> None:
    raise ValueError(message)


def test_nothing_is_done_before_it_is_asked_for_and_then_once() -> None:
    calls = []
    answer = later(calls.append, 1)
    assert calls == []
    answer(), answer()
    assert calls == [1]


def test_alone_a_process_works_when_it_is_asked() -> None:
    with Workers(1) as workers:
        waiting = workers.submit(slowly, 1)
        assert (waiting(), waiting()) == ((1, os.getpid()),) * 2


def test_who_waits_takes_a_share() -> None:
    with Workers(2) as workers:
        answers = [workers.submit(slowly, value) for value in range(40)]
        values, processes = zip(*(answer() for answer in answers), strict=True)
    assert values == tuple(range(40))
    assert os.getpid() in processes and len(set(processes)) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_is_raised_where_its_result_is_asked_for_and_nowhere_else(count: int) -> None:
    with Workers(count) as workers:
        good = [workers.submit(slowly, value) for value in range(8)]
        bad = workers.submit(fails, "given this")
        assert [answer()[0] for answer in good] == list(range(8))
        for _ in range(2):
            with pytest.raises(ValueError, match="given this"):
                bad()


def kills_a_worker(here: int) -> int:
    if os.getpid() != here:
        os.kill(os.getpid(), signal.SIGKILL)
    return here


def test_the_work_of_a_worker_that_is_killed_is_done_here() -> None:
    with Workers(3) as workers:
        answers = [workers.submit(kills_a_worker, os.getpid()) for _ in range(20)]
        assert [answer() for answer in answers] == [os.getpid()] * 20
        assert workers.submit(kills_a_worker, os.getpid())() == os.getpid()


@pytest.mark.parametrize("count", [0, -3])
def test_there_is_at_least_this_process(count: int) -> None:
    with pytest.raises(UsageError, match="expected 1 or more"):
        Workers(count)
