"""SQLite in WAL mode: one thread writes transactions, another reads what was committed."""

import hashlib
import os
import signal
import sqlite3
import sys
import threading
import time

ROWS = 10


def link(before):
    return hashlib.sha256(before).digest()


def wrong(text):
    with open("wrong", "a") as file:
        file.write(text + "\n")


def connect():
    base = sqlite3.connect("base.db", isolation_level=None)
    base.execute("PRAGMA busy_timeout = 10000")
    return base


def read(stop):
    base = connect()
    last = 0
    while not stop.is_set():
        count, highest = base.execute("SELECT count(*), max(id) FROM chain").fetchone()
        if count % ROWS or count < last or count != (highest or 0):
            wrong("%d rows, highest %s, before it were %d" % (count, highest, last))
        last = count
        time.sleep(0.002)
    base.close()


def run():
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    base = connect()
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA wal_autocheckpoint = 100")
    base.execute("CREATE TABLE chain (id INTEGER PRIMARY KEY, link BLOB, filler BLOB)")
    reader = threading.Thread(target=read, args=(stop,))
    reader.start()
    progress = os.open("progress", os.O_RDWR | os.O_CREAT)
    rows, last = 0, b""
    while not stop.is_set():
        base.execute("BEGIN IMMEDIATE")
        for _ in range(ROWS):
            last = link(last)
            base.execute("INSERT INTO chain (link, filler) VALUES (?, ?)", (last, last * 20))
        base.execute("COMMIT")
        rows += ROWS
        os.pwrite(progress, (b"%d" % rows).ljust(20), 0)
        if rows == 10 * ROWS:
            open("ready", "w").close()
        stop.wait(0.001)
    reader.join()
    base.close()
    with open("result.new", "w") as file:
        file.write("%d\n" % rows)
    os.rename("result.new", "result")


def check():
    base = connect()
    (verdict,) = base.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        sys.exit("integrity_check: " + verdict)
    with open("result") as file:
        expected = int(file.read())
    count, last = 0, b""
    for number, found in base.execute("SELECT id, link FROM chain ORDER BY id"):
        count, last = count + 1, link(last)
        if number != count or found != last:
            sys.exit("row %d is not what was written" % number)
    if count != expected:
        sys.exit("%d rows, %d were committed" % (count, expected))


run() if sys.argv[1] == "run" else check()
