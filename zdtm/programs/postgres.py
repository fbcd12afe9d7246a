"""A PostgreSQL server under a user of its own, and a client on its unix socket that runs transactions. No TCP."""

import glob
import os
import shutil
import signal
import subprocess
import sys
import time

HERE = os.getcwd()
DATA = os.path.join(HERE, "data")
USER = "nobody"


def program(name):
    """Debian keeps those of each version apart, and all but the client out of PATH."""
    found = shutil.which(name) or (sorted(glob.glob("/usr/lib/postgresql/*/bin/" + name)) or [None])[-1]
    if not found:
        sys.exit("no " + name)
    return found


def start(name, *arguments, **files):
    return subprocess.Popen([program(name), *arguments], user=USER, group="nogroup", extra_groups=[], **files)


def wrong(text):
    with open("wrong", "a") as file:
        file.write(text + "\n")
    sys.exit(1)


class Client:
    """One connection for the whole life."""

    def __init__(self):
        command = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", HERE, "-U", USER, "-d", "postgres"]
        with open("client.log", "a") as log:
            self.psql = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(self, text):
        self.psql.stdin.write(text + "\n")
        self.psql.stdin.flush()
        return self.psql.stdout.readline().strip()

    def works(self):
        try:
            return self.ask("select 1;") == "1"
        except BrokenPipeError:
            return False


def run():
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    os.chmod(HERE, 0o777)
    with open("server.log", "w") as log:
        start("initdb", "-D", DATA, "-U", USER, "-A", "trust", "-N", stdout=log, stderr=log).wait()
        server = start("postgres", "-D", DATA, "-k", HERE, "-c", "listen_addresses=", stdout=log, stderr=log)
    client = Client()
    for _ in range(200):
        if client.works():
            break
        time.sleep(0.05)
        client = Client()
    client.ask("create table a (i int primary key, b text); create table s (n bigint);"
               "insert into s values (0); prepare sum as select count(*) || ' ' || sum(i) || ' ' || max(s.n) from a, s; select 1;")
    progress = os.open("progress", os.O_RDWR | os.O_CREAT)
    number = 0
    while not stop:
        number += 1
        total = number * (number + 1) // 2
        answer = client.ask("begin; insert into a values (%d, repeat('x', %d)); update s set n = n + %d; commit;"
                            " execute sum;" % (number, number % 700, number))
        if answer != "%d %d %d" % (number, total, total):
            wrong("transaction %d was answered by %r" % (number, answer))
        os.pwrite(progress, b"%-20d" % number, 0)
        if number == 20:
            open("ready", "w").close()
        time.sleep(0.005)
    client.psql.stdin.close()
    if client.psql.wait() != 0:
        wrong("the client ended with %d" % client.psql.returncode)
    server.send_signal(signal.SIGINT)
    if server.wait() != 0:
        wrong("the server ended with %d" % server.returncode)
    with open("result", "w") as file:
        file.write("%d\n" % number)


def check():
    with open("result") as file:
        number = int(file.read())
    single = start("postgres", "--single", "-D", DATA, "postgres",
                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told, _ = single.communicate("select count(*) || ' ' || sum(i) || ' ' || max(s.n) as it from a, s\n")
    total = number * (number + 1) // 2
    if 'it = "%d %d %d"' % (number, total, total) not in told:
        sys.exit("%d transactions, and %s" % (number, told))
    shutil.rmtree(DATA)


run() if sys.argv[1] == "run" else check()
