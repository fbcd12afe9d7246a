"""Streams of bytes that both ends know beforehand.

serve ADDRESS PORT   sends what it is sent back, line by line; or a stream without end
talk ADDRESS PORT    until SIGTERM: both at once, every byte checked
tables               the tables of nf_tables, a name a line
"""

import hashlib
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time

PART = 1 << 16
PATIENCE = 60


def part(number):
    """Part of the stream, each different."""
    return hashlib.shake_128(b"%d" % number).digest(PART)


def serve(address, port):
    listener = socket.create_server((address, int(port)))
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    open("ready", "w").close()
    while True:
        for key, _ in selector.select():
            if key.data is None:
                stream, _ = listener.accept()
                kind = stream.recv(1)
                stream.setblocking(False)
                if kind == b"i":
                    selector.register(stream, selectors.EVENT_READ, [])
                else:
                    selector.register(stream, selectors.EVENT_WRITE, [0, b""])
            elif not key.data:
                text = key.fileobj.recv(4096)
                if not text:
                    selector.unregister(key.fileobj)
                elif key.fileobj.send(text) != len(text):
                    sys.exit("a line does not fit")
            else:
                if not key.data[1]:
                    key.data[1] = part(key.data[0])
                    key.data[0] += 1
                try:
                    key.data[1] = key.data[1][key.fileobj.send(key.data[1]):]
                except OSError:
                    selector.unregister(key.fileobj)


def talk(address, port):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    over, wrong, counts = threading.Event(), [], [0, 0]

    def connected(kind):
        stream = socket.create_connection((address, int(port)))
        stream.settimeout(PATIENCE)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(kind)
        return stream

    def interactive(stream):
        lines = stream.makefile("rb")
        while not over.is_set():
            text = b"line %d\n" % counts[0]
            stream.sendall(text)
            heard = lines.readline()
            if heard != text:
                raise OSError("%r was answered by %r" % (text, heard))
            counts[0] += 1
            time.sleep(0.005)

    def bulk(stream):
        lines = stream.makefile("rb")
        while not over.is_set():
            if lines.read(PART) != part(counts[1]):
                raise OSError("part %d is wrong" % counts[1])
            counts[1] += 1

    def work(body, stream):
        try:
            body(stream)
        except OSError as error:
            wrong.append("%s: %r" % (body.__name__, error))
            over.set()

    pairs = [(interactive, connected(b"i")), (bulk, connected(b"b"))]
    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    while not over.is_set() and not signal.sigtimedwait([signal.SIGTERM], 0.01):
        if all(counts):
            with open("progress.new", "w") as file:
                file.write("%d %d\n" % tuple(counts))
            os.rename("progress.new", "progress")
    over.set()
    for thread in threads:
        thread.join()
    if wrong:
        sys.exit(wrong[0])


def tables():
    """NFT_MSG_GETTABLE of all families."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    netlink.send(struct.pack("=IHHII", 20, 10 << 8 | 1, 0x301, 1, 0) + bytes(4))
    while True:
        answer = netlink.recv(1 << 16)
        while answer:
            length, kind = struct.unpack_from("=IH", answer)
            if kind in (2, 3):
                return
            body, answer = answer[20:length], answer[(length + 3) & ~3:]
            while body:
                size, name = struct.unpack_from("=HH", body)
                if name == 1:
                    print(body[4:size - 1].decode())
                body = body[(size + 3) & ~3:]


{"serve": serve, "talk": talk, "tables": tables}[sys.argv[1]](*sys.argv[2:])
