"""A MariaDB server with its default engine, which does its I/O by io_uring, fed through a pipe: no socket."""

import glob
import os
import shutil
import signal
import subprocess
import sys
import time

DATA = os.path.join(os.getcwd(), "data")


def server(**files):
    command = ["mariadbd", "--no-defaults", "--bootstrap", "--datadir=" + DATA, "--tmpdir=" + os.getcwd(), "--user=root"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **files)


def has_ring(pid):
    for link in glob.glob("/proc/%d/fd/*" % pid):
        try:
            if os.readlink(link) == "anon_inode:[io_uring]":
                return True
        except FileNotFoundError:
            # It has closed it meanwhile.
            pass
    return False


def length(number):
    return 500 + number % 1500


def run():
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    os.makedirs(DATA)
    with open("server.log", "w") as log:
        mariadb = server(stdout=log, stderr=log)
    mariadb.stdin.write("create database t;\n")
    mariadb.stdin.write("create table t.a (i int primary key, b varchar(2000)) engine=innodb;\n")
    mariadb.stdin.flush()
    progress = os.open("progress", os.O_RDWR | os.O_CREAT)
    number = 0
    while not stop:
        for _ in range(20):
            number += 1
            text = "repeat('%c', %d)" % (97 + number % 26, length(number))
            mariadb.stdin.write("insert into t.a values (%d, %s);\n" % (number, text))
        mariadb.stdin.flush()
        os.pwrite(progress, b"%-20d" % number, 0)
        if number == 200:
            deadline = time.monotonic() + 60
            while not has_ring(mariadb.pid):
                if time.monotonic() > deadline:
                    with open("wrong", "a") as file:
                        file.write("the server has no ring\n")
                    break
                time.sleep(0.1)
            open("ready", "w").close()
        time.sleep(0.03)
    mariadb.stdin.close()
    if mariadb.wait() != 0:
        with open("wrong", "a") as file:
            file.write("the server ended with %d\n" % mariadb.returncode)
    with open("result", "w") as file:
        file.write("%d\n" % number)


def check():
    with open("result") as file:
        number = int(file.read())
    out = os.path.join(os.getcwd(), "count")
    if os.path.exists(out):
        os.remove(out)
    mariadb = server(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mariadb.communicate("select count(*), sum(length(b)) into outfile '%s' from t.a;\n" % out)
    with open(out) as file:
        found = file.read().split()
    wanted = [str(number), str(sum(length(one) for one in range(1, number + 1)))]
    if found != wanted:
        sys.exit("%s rows and bytes, not %s" % (found, wanted))
    shutil.rmtree(DATA)


run() if sys.argv[1] == "run" else check()
