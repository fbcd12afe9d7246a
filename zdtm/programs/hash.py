"""Eight threads, each with a chain of hashes: a link is the SHA-256 of the one before."""

import hashlib
import os
import random
import signal
import sys
import threading
import time

THREADS = 8
# Every so many links one is remembered, so that the way from there to the next can be walked again.
STRIDE = 500


def walk(link, count):
    for _ in range(count):
        link = hashlib.sha256(link).digest()
    return link


def seed(number):
    return hashlib.sha256(b"python %d" % number).digest()


def wrong(text):
    with open("wrong", "a") as file:
        file.write(text + "\n")


def work(number, stones, stop):
    dice = random.Random(number)
    while not stop.is_set():
        stones.append(walk(stones[-1], STRIDE))
        at = dice.randrange(len(stones) - 1)
        if walk(stones[at], STRIDE) != stones[at + 1]:
            wrong("thread %d: the chain is broken after %d links" % (number, at * STRIDE))
        time.sleep(0.001)


def run():
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    chains = [[seed(number)] for number in range(THREADS)]
    threads = [threading.Thread(target=work, args=(number, chain, stop)) for number, chain in enumerate(chains)]
    for thread in threads:
        thread.start()
    progress = os.open("progress", os.O_RDWR | os.O_CREAT)
    while not stop.wait(0.01):
        counts = " ".join("%d" % len(chain) for chain in chains)
        os.pwrite(progress, counts.ljust(200).encode(), 0)
        if not os.path.exists("ready") and all(len(chain) > 2 for chain in chains):
            open("ready", "w").close()
    for thread in threads:
        thread.join()
    with open("result.new", "w") as file:
        for chain in chains:
            file.write("%d %s\n" % (len(chain) - 1, chain[-1].hex()))
    os.rename("result.new", "result")


def check():
    with open("result") as file:
        for number, line in enumerate(file):
            count, link = line.split()
            if walk(seed(number), int(count) * STRIDE).hex() != link:
                sys.exit("thread %d: another result after %s strides" % (number, count))
    if number != THREADS - 1:
        sys.exit("%d threads of %d" % (number + 1, THREADS))


run() if sys.argv[1] == "run" else check()
