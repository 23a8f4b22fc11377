import os
import signal
import subprocess
import sys

import pytest

from tasks.finetune.stop import PREEMPTED, Stop
from tasks.settings import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop__signal_sets_the_flag_and_ends_nothing(number: signal.Signals) -> None:
    with Stop() as stop:
        assert not stop.wanted
        os.kill(os.getpid(), number)
        assert stop.wanted
    assert not Stop().wanted


def test_stop__handlers_are_restored_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    within = []

    def fail() -> None:
        within.append(signal.getsignal(signal.SIGTERM))
        raise KeyError

    with pytest.raises(KeyError), Stop():
        fail()
    assert within != [before[0]]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_stop__process_that_is_told_to_ends_after_its_step_with_its_status() -> None:
    script = (
        "import sys\n"
        "from tasks.finetune.stop import PREEMPTED, Stop\n"
        "with Stop() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.wanted:\n"
        "        pass\n"
        "    print('saved')\n"
        "    sys.exit(PREEMPTED)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == PREEMPTED == 75
