"""Servers that are dumped under load, and their clients, which are not.

run NAME PORT     becomes the server
settle NAME PORT  waits until it answers, and says that it is ready
client NAME PORT  until SIGTERM: connections that are never made anew, every answer checked; in the end both sides must
                  have counted the same
Nothing ever listens but on the loopback interface.
"""

import glob
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

HERE = os.getcwd()
HOST = "127.0.0.1"
PATIENCE = 60
BIG = 100_000_000

NGINX = """
worker_processes 2; daemon off; pid {here}/nginx.pid; error_log {here}/error.log; user www-data;
events {{ worker_connections 64; }}
http {{
    access_log off; log_format path $uri; keepalive_requests 1000000000; keepalive_timeout 600; sendfile on;
    client_body_temp_path {here}/t1; proxy_temp_path {here}/t2; fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4;
    scgi_temp_path {here}/t5;
    server {{
        listen 127.0.0.1:{port}; root {here}/www;
        location /big {{ limit_rate 25m; }}
        location /small {{ access_log {here}/access.log path; }}
    }}
}}
"""


def postgres(name):
    """Debian keeps the programs of each version apart, and all but clients out of PATH."""
    found = shutil.which(name) or (sorted(glob.glob("/usr/lib/postgresql/*/bin/" + name)) or [None])[-1]
    return found or sys.exit("no " + name)


def become(user):
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def serve(name, port):
    os.chmod(HERE, 0o777)
    if name == "redis":
        return ["redis-server", "--bind", HOST, "--port", port, "--save", "", "--dir", HERE, "--daemonize", "no"]
    if name == "memcached":
        return ["memcached", "-u", "nobody", "-l", HOST, "-p", port]
    if name == "nginx":
        os.mkdir("www")
        with open("www/small", "w") as file:
            file.write("hello\n")
        with open("www/big", "wb") as file:
            block = hashlib.sha512(b"big").digest() * 15625
            for _ in range(BIG // len(block)):
                file.write(block)
        with open("nginx.conf", "w") as file:
            file.write(NGINX.format(here=HERE, port=port))
        return ["nginx", "-p", HERE, "-c", HERE + "/nginx.conf", "-e", HERE + "/error.log"]
    if name == "postgres":
        become("nobody")
        data = HERE + "/data"
        subprocess.run([postgres("initdb"), "-D", data, "-U", "nobody", "-A", "trust", "-N"],
                       stdout=subprocess.DEVNULL, check=True)
        return [postgres("postgres"), "-D", data, "-k", HERE, "-p", port, "-c", "listen_addresses=" + HOST]
    sys.exit("no server " + name)


class Failed(Exception):
    pass


class Connection:
    """One for the whole life of a client."""

    def __init__(self, port):
        self.socket = socket.create_connection((HOST, port))
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def line(self):
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise Failed("the server has closed the connection")
        return line.strip()

    def exchange(self, sent, wanted):
        self.socket.sendall(sent)
        for line in wanted:
            got = self.line()
            if got != line:
                raise Failed("%r was answered by %r, not %r" % (sent, got, line))

    def get(self, path, take):
        """HTTP; `take` is given the body."""
        self.socket.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        status, length = self.line(), None
        while line := self.line():
            name, _, value = line.lower().partition(b":")
            if name == b"content-length":
                length = int(value)
        if b" 200 " not in status + b" " or length is None:
            raise Failed("%r was answered by %r" % (path, status))
        while length:
            part = self.stream.read(min(length, 1 << 16))
            if not part:
                raise Failed("the server has closed the connection")
            length -= len(part)
            take(part)


class Load:
    """Threads with a connection each, until there is a failure or the end."""

    def __init__(self, port):
        self.port = int(port)
        self.over = threading.Event()
        self.failure = None
        self.counts = []
        self.threads = []
        self.longest = 0

    def start(self, work):
        number = len(self.counts)
        self.counts.append(0)
        connection = Connection(self.port)

        def all_of_it():
            try:
                while not self.over.is_set():
                    start = time.monotonic()
                    work(connection, number, self.counts[number])
                    self.longest = max(self.longest, time.monotonic() - start)
                    self.counts[number] += 1
            except (Failed, OSError) as error:
                self.failure = self.failure or "client %d after %d: %r" % (number, self.counts[number], error)
                self.over.set()

        self.threads.append(threading.Thread(target=all_of_it))
        self.threads[-1].start()

    def last(self):
        """Connections of their own ask for the sums, when nobody counts any more."""
        return Connection(self.port)


def redis(load, _):
    def work(connection, number, count):
        key = b"k%d" % number
        connection.exchange(b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(key), key), [b":%d" % (count + 1)])
    for _ in range(4):
        load.start(work)
    yield
    for number, count in enumerate(load.counts):
        text = b"%d" % count
        load.last().exchange(b"GET k%d\r\n" % number, [b"$%d" % len(text), text])


def memcached(load, _):
    for number in range(4):
        load.last().exchange(b"set k%d 0 0 1\r\n0\r\n" % number, [b"STORED"])

    def work(connection, number, count):
        connection.exchange(b"incr k%d 1\r\n" % number, [b"%d" % (count + 1)])
    for _ in range(4):
        load.start(work)
    yield
    for number, count in enumerate(load.counts):
        text = b"%d" % count
        load.last().exchange(b"get k%d\r\n" % number, [b"VALUE k%d 0 %d" % (number, len(text)), text, b"END"])


def nginx(load, _):
    with open("www/big", "rb") as file:
        wanted = hashlib.sha256(file.read()).hexdigest()

    def small(connection, _, __):
        body = []
        connection.get(b"/small", body.append)
        if b"".join(body) != b"hello\n":
            raise Failed("a wrong body: %r" % body)

    def big(connection, number, _):
        sums = hashlib.sha256()
        def take(part):
            sums.update(part)
            load.counts[number] += 1
        connection.get(b"/big", take)
        if sums.hexdigest() != wanted:
            raise Failed("a transfer has a wrong checksum")
    for work in [small, small, small, big]:
        load.start(work)
    yield
    with open("access.log", "rb") as file:
        served = file.read().count(b"/small\n")
    if served != sum(load.counts[:3]):
        raise Failed("%d were served, not %d" % (served, sum(load.counts[:3])))


def counter(load, _):
    def work(connection, number, count):
        body = []
        connection.get(b"/%d" % number, body.append)
        if int(b"".join(body)) != count + 1:
            raise Failed("%d was answered by %r" % (count + 1, body))
    for _ in range(4):
        load.start(work)
    yield
    for number, count in enumerate(load.counts):
        work(load.last(), number, count)


def pgbench(load, port):
    words = ["psql", "-XqAt", "-h", HOST, "-p", port, "-U", "nobody", "-d", "postgres"]
    # One more connection for the whole life.
    psql = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rows():
        psql.stdin.write("select count(*) from pgbench_history;\n")
        psql.stdin.flush()
        return int(psql.stdout.readline())

    words = [postgres("pgbench"), "-h", HOST, "-p", port, "-U", "nobody"]
    with open("pgbench.log", "w") as log:
        subprocess.run([*words, "-i", "-q", "postgres"], stdout=log, stderr=log, check=True)
        # Its progress goes to the log as well.
        bench = subprocess.Popen([*words, "-n", "-c", "4", "-j", "2", "-P", "1", "-T", "100000", "postgres"],
                                 stdout=subprocess.PIPE, stderr=log, text=True)
    load.counts = [0]

    def watch():
        while not load.over.is_set() and bench.poll() is None:
            try:
                load.counts[0] = rows()
            except (OSError, ValueError) as error:
                load.failure = repr(error)
                break
            time.sleep(0.05)
        load.over.set()
    load.threads.append(threading.Thread(target=watch))
    load.threads[-1].start()
    yield
    # The end of its time.
    bench.send_signal(signal.SIGALRM)
    told, _ = bench.communicate(timeout=PATIENCE)
    facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    processed = facts["number of transactions actually processed"].split("/")[0].strip()
    load.counts = [rows()]
    psql.stdin.close()
    if psql.wait() != 0 or bench.returncode != 0 or [int(processed)] != load.counts or load.counts == [0]:
        raise Failed("pgbench ended with %d: %s processed, %s rows" % (bench.returncode, processed, load.counts))


CLIENTS = {"redis": redis, "memcached": memcached, "nginx": nginx, "postgres": pgbench}


def client(name, port):
    load = Load(port)
    # What all threads inherit: only the first is told.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    steps = CLIENTS.get(name, counter)(load, port)
    next(steps)
    progress = os.open("progress", os.O_RDWR | os.O_CREAT)
    while not load.over.is_set() and not signal.sigtimedwait([signal.SIGTERM], 0.01):
        # When all have been served, all are connected.
        if all(load.counts):
            os.pwrite(progress, b"%-20d" % sum(load.counts), 0)
    early = load.over.is_set()
    load.over.set()
    for thread in load.threads:
        thread.join()
    try:
        if load.failure or early:
            raise Failed(load.failure or "it ended early")
        next(steps, None)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
    with open("result", "w") as file:
        file.write("%s %.3f\n" % (load.counts, load.longest))


def settle(name, port):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if name == "postgres":
                subprocess.run(["psql", "-h", HOST, "-p", port, "-U", "nobody", "-d", "postgres", "-c", "select 1"],
                               check=True, capture_output=True)
            else:
                Connection(int(port)).socket.close()
            return open("ready", "w").close()
        except (OSError, subprocess.SubprocessError):
            time.sleep(0.05)
    sys.exit("the server does not answer")


VERB, NAME, PORT = sys.argv[1:]
if VERB == "run":
    WORDS = serve(NAME, PORT)
    os.execvp(WORDS[0], WORDS)
{"client": client, "settle": settle}[VERB](NAME, PORT)
