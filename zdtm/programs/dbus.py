"""A message bus, a service on it and clients that call the service, none of which knows systemd."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time

HERE = os.getcwd()
SOCKET = os.path.join(HERE, "bus")
CALL, ANSWER, ERROR = 1, 2, 3
CLIENTS = 3
NOBODY = 65534


def wrong(text):
    with open("wrong", "a") as file:
        file.write(text + "\n")
    os._exit(1)


def padded(data, to):
    return data + bytes(-len(data) % to)


class Bus:
    """Just enough of the D-Bus protocol: little-endian, strings and unsigned numbers."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(SOCKET)
        self.buffer = b""
        self.serial = 0
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        if not self.socket.recv(4096).startswith(b"OK "):
            wrong("the bus does not know us")
        self.socket.sendall(b"BEGIN\r\n")
        self.name = self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "Hello")

    def send(self, kind, fields, signature="", body=b""):
        self.serial += 1
        if signature:
            fields = fields + [(8, "g", signature)]
        head = b""
        for code, form, value in fields:
            head = padded(head, 8) + bytes([code, 1]) + form.encode() + b"\0"
            if form == "u":
                head = padded(head, 4) + struct.pack("<I", value)
            elif form == "g":
                head += bytes([len(value)]) + value.encode() + b"\0"
            else:
                head = padded(head, 4) + struct.pack("<I", len(value)) + value.encode() + b"\0"
        start = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), self.serial, len(head))
        self.socket.sendall(padded(start + head, 8) + body)

    def take(self, count):
        while len(self.buffer) < count:
            data = self.socket.recv(4096)
            if not data:
                raise EOFError
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def receive(self):
        start = self.take(16)
        kind, length, serial, head = start[1], *struct.unpack("<III", start[4:])
        text, fields, at = self.take(head + -head % 8), {}, 0
        while at < head:
            at += -at % 8
            code, form = text[at], chr(text[at + 2])
            at += 4
            if form == "u":
                fields[code] = struct.unpack_from("<I", text, at)[0]
                at += 4
            elif form == "g":
                fields[code] = text[at + 1:at + 1 + text[at]].decode()
                at += text[at] + 2
            else:
                size = struct.unpack_from("<I", text, at)[0]
                fields[code] = text[at + 4:at + 4 + size].decode()
                at += size + 5
        return kind, serial, fields, self.take(length)

    def call(self, to, path, member, signature="", body=b""):
        self.send(CALL, [(1, "o", path), (6, "s", to), (2, "s", to if ":" not in to else "it.Self"), (3, "s", member)], signature, body)
        serial = self.serial
        while True:
            kind, _, fields, body = self.receive()
            if kind in (ANSWER, ERROR) and fields.get(5) == serial:
                break
        if kind == ERROR:
            wrong("%s was answered by %s" % (member, body))
        if fields.get(8) == "s":
            return body[4:-1].decode()
        return struct.unpack("<I", body)[0] if fields.get(8) == "u" else None


def text(value):
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def serve():
    bus = Bus()
    if bus.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "RequestName", "su", padded(text("it.Counts"), 4) + struct.pack("<I", 4)) != 1:
        wrong("the name is taken")
    counts = {}
    while True:
        try:
            kind, serial, fields, _ = bus.receive()
        except EOFError:
            return
        if kind == CALL:
            counts[fields[7]] = counts.get(fields[7], 0) + 1
            bus.send(ANSWER, [(5, "u", serial), (6, "s", fields[7])], "u", struct.pack("<I", counts[fields[7]]))


def ask(which):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    bus = Bus()
    name, number = bus.name, 0
    while not stop:
        number += 1
        told = bus.call("it.Counts", "/", "Next")
        if told != number or bus.name != name:
            wrong("call %d was answered by %s" % (number, told))
        with open("progress", "a") as file:
            file.write("%d %d\n" % (which, number))
        time.sleep(0.01)
    os._exit(0)


def forked(what, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            what(*arguments)
        except BaseException as error:
            wrong(repr(error))
        os._exit(0)
    return pid


def run():
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    # Of root's bus the kernel's audit is told, by a netlink socket.
    os.chown(HERE, NOBODY, NOBODY)
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with open("bus.conf", "w") as file:
        file.write("<busconfig><type>session</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>"
                   "<policy context='default'><allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy>"
                   "</busconfig>" % SOCKET)
    with open("bus.log", "w") as log:
        bus = subprocess.Popen(["dbus-daemon", "--config-file=bus.conf", "--nofork", "--nopidfile"], stdout=log, stderr=log)
    while not os.path.exists(SOCKET):
        time.sleep(0.02)
    service = forked(serve)
    time.sleep(0.3)
    clients = [forked(ask, which) for which in range(CLIENTS)]
    while not os.path.exists("progress") or sum(1 for _ in open("progress")) < 30:
        time.sleep(0.02)
    open("ready", "w").close()
    while not stop:
        signal.pause()
    for client in clients:
        os.kill(client, signal.SIGTERM)
        if os.waitpid(client, 0)[1] != 0:
            wrong("a client failed")
    bus.terminate()
    bus.wait()
    if os.waitpid(service, 0)[1] != 0:
        wrong("the service failed")
    open("result", "w").close()


def check():
    last = [0] * CLIENTS
    for line in open("progress"):
        which, number = map(int, line.split())
        if number != last[which] + 1:
            sys.exit("client %d: %d after %d" % (which, number, last[which]))
        last[which] = number


run() if sys.argv[1] == "run" else check()
