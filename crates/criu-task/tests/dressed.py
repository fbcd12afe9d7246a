"""A process of two threads that has some of everything, for round_trip.rs."""
import ctypes, os, resource, signal, struct, threading, time

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)


def prctl(*args):
    call("prctl", *[ctypes.c_ulong(a) if isinstance(a, int) else a for a in args])


def timer(number, clock, value):
    # struct sigevent: value, signal, notify (SIGEV_SIGNAL), padding.
    event = ctypes.create_string_buffer(struct.pack("QiiQ", 0x5EED, 40, 0, 0) + bytes(40))
    id = ctypes.c_int(-1)
    call("syscall", 222, clock, event, ctypes.byref(id))  # timer_create
    assert id.value == number, id.value
    call("syscall", 223, number, 0, struct.pack("qqqq", 7, 8, value, 0), None)


def other():
    prctl(15, b"other thread")
    prctl(29, 77777)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    me = threading.get_native_id()
    libc.syscall(234, os.getpid(), me, signal.SIGUSR1)  # tgkill
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(3))
    ready.release()
    time.sleep(1000)


ready = threading.Semaphore(0)
signal.signal(signal.SIGTRAP, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, 42})
for n in (1, 2):
    # struct siginfo: signal, errno, code SI_QUEUE, padding, pid, uid, value.
    info = struct.pack("iiiiiiQ", 42, 0, -1, 0, os.getpid(), 0, n) + bytes(96)
    call("syscall", 129, os.getpid(), 42, info)  # rt_sigqueueinfo
signal.setitimer(signal.ITIMER_REAL, 5000.5, 3)
timer(0, 1, 0)
timer(1, 1, 0)
timer(2, 0, 6000)
call("syscall", 226, 1)  # timer_delete: a gap
if os.environ.get("MANY_TIMERS"):
    for n in range(3, 1500):
        timer(n, 1, 0)
        call("syscall", 226, n)
    timer(1500, 1, 6000)
stack = (ctypes.c_char * 65536)()
call("sigaltstack", struct.pack("QiiQ", ctypes.addressof(stack), 0, 0, 65536), None)
resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))
os.setpriority(os.PRIO_PROCESS, 0, 3)
os.sched_setaffinity(0, {0})
call("syscall", 251, 1, 0, 2 << 13 | 6)  # ioprio_set: best effort, level 6
call("syscall", 324, 1 << 4, 0, 0)  # membarrier: register private expedited
prctl(36, 1)  # subreaper
prctl(41, 1, 0, 0, 0)  # no huge pages
prctl(29, 123456)
call("personality", 0x0040000)  # no address randomization
threading.Thread(target=other, daemon=True).start()
ready.acquire()
prctl(15, b"(dressed) ")
if os.environ.get("NO_NEW_PRIVS"):
    prctl(38, 1, 0, 0, 0)
if os.environ.get("FILTERED"):
    # seccomp: allow everything, in two filters, the second for all threads
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("HHIQ", 1, 0, 0, ctypes.addressof(allow))
    call("syscall", 317, 1, 1 | 2, program)
    call("syscall", 317, 1, 1, program)
if os.environ.get("AS_USER"):
    os.setgroups([4, 27])
    prctl(24, 21, 0, 0, 0)
    prctl(28, 1 << 2, 0, 0, 0)  # keep capabilities while ids change
    os.setresgid(100, 101, 102)
    os.setresuid(1000, 1001, 1002)
    # capset: only CAP_NET_RAW and CAP_SETPCAP, inheritable as well
    some = 1 << 13 | 1 << 8
    call("capset", struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", some, some, some, 0, 0, 0))
    prctl(47, 2, 13, 0, 0)
    prctl(28, 1 << 5 | 1 << 6, 0, 0, 0)
prctl(1, 9)
prctl(4, 1, 0, 0, 0)
print("ready", flush=True)
time.sleep(1000)
