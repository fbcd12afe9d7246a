#!/usr/bin/env python3
"""A shell with job control in a terminal, spoken to all the while.

run    holds the terminal; the shell has one job that works and one that is stopped because it reads
check  the numbers of the answers are one after the other
"""
import os
import pty
import select
import signal
import sys
import time

finish = False


def on_term(*_):
    global finish
    finish = True


def ask(master, text, wanted):
    """Types a line and waits for a line of the answer."""
    os.write(master, text.encode() + b"\n")
    found, deadline = b"", time.monotonic() + 20
    while wanted.encode() + b"\r\n" not in found:
        if time.monotonic() > deadline:
            with open("wrong", "a") as wrong:
                wrong.write(f"{text!r} was answered by {found!r}\n")
            sys.exit(1)
        if select.select([master], [], [], 0.1)[0]:
            found += os.read(master, 4096)


def run():
    signal.signal(signal.SIGTERM, on_term)
    pid, master = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "> "
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    ask(master, "while sleep 0.1; do :; done & echo start''ed", "started")
    ask(master, "cat > /dev/null & sleep 0.3; echo stop''ped", "stopped")
    ask(master, "sleep 0.2; tty > name; ps -o tty= -p $$ > was; echo rea''dy", "ready")
    open("ready", "w").close()
    count = 0
    while not finish:
        count += 1
        # Two jobs, and the terminal is still the one it was.
        ask(
            master,
            f'tty | cmp - name && ps -o tty= -p $$ | cmp - was && echo "{count}:$(jobs -p | wc -l):$(jobs -s | wc -l):"',
            f"{count}:2:1:",
        )
        with open("progress", "a") as progress:
            progress.write(f"{count}\n")
    # A key ends what is in the foreground.
    os.write(master, b"sleep 1000\n")
    time.sleep(0.3)
    os.write(master, b"\x03")
    ask(master, "kill -9 %1 %2; wait; echo o''ver", "over")
    # Once more: the shell stays the first time if it has not heard yet that its stopped job is dead.
    os.write(master, b"exit\nexit\n")
    while True:
        try:
            if not os.read(master, 4096):
                break
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    with open("result", "w") as result:
        result.write(f"{count} {status}\n")


def check():
    with open("result") as result:
        count, _ = result.read().split()
    with open("progress") as progress:
        numbers = [int(line) for line in progress]
    sys.exit(numbers != list(range(1, int(count) + 1)))


{"run": run, "check": check}[sys.argv[1]]()
