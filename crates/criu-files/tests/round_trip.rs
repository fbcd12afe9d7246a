//! Files of each kind: dumped, made again, placed in a new task, compared.

mod support;

use criu_files::{Collector, DumpOptions, KINDS};
use criu_image::{Memory, StoreExt, desc, pb};
use criu_proc::ProcDir;
use criu_tracee::{Program, Site, Tracee};
use nix::unistd::Pid;
use support::*;

#[test]
fn plain_files() {
    round_trip(
        "
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT | os.O_APPEND); os.write(a, b'hello'); os.lseek(a, 2, 0)
b = os.dup2(a, 40, True)
c = os.open(dir + '/a', os.O_RDONLY | os.O_NONBLOCK)
d = os.open(dir, os.O_RDONLY)
e = os.open(dir, os.O_PATH)
os.symlink('a', dir + '/link'); f = os.open(dir + '/link', os.O_PATH | os.O_NOFOLLOW)
g = os.open('/dev/null', os.O_RDWR); h = os.open('/dev/urandom', os.O_RDONLY)
i = os.open('/proc/sys/kernel/ostype', os.O_RDONLY); os.read(i, 3)
j = os.open(dir + '/strange (deleted)', os.O_RDWR | os.O_CREAT)
os.set_inheritable(g, True)
k = os.open(dir.encode() + b'/\\xff\\n\\xfe', os.O_RDWR | os.O_CREAT)
",
    );
}

#[test]
fn pipes() {
    let (_directory, _script, store) = round_trip(
        "
r, w = os.pipe(); os.write(w, b'x' * 10000)
w2 = os.open('/proc/self/fd/%d' % w, os.O_WRONLY | os.O_NONBLOCK)
r2 = os.dup(r)
pr, pw = os.pipe2(os.O_DIRECT | os.O_NONBLOCK); [os.write(pw, m) for m in (b'one', b'three', b'four')]
br, bw = os.pipe(); fcntl.fcntl(bw, 1031, 1 << 20); os.write(bw, b'y' * 500000)
lonely_r, lonely_w = os.pipe(); os.close(lonely_w)
both = os.open('/proc/self/fd/%d' % r, os.O_RDWR)
",
    );
    let data = store
        .entries::<pb::PipeDataEntry>(desc::PIPES_DATA, ())
        .expect("well formed")
        .expect("there");
    let lengths: Vec<u32> = data.iter().map(|entry| entry.bytes).collect();
    assert_eq!(lengths, [10_000, 12, 500_000, 0]);
    let ext = store
        .entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())
        .expect("well formed")
        .expect("there");
    let packets: Vec<u32> = ext
        .iter()
        .filter_map(|entry| entry.pipe.clone())
        .flat_map(|pipe| pipe.packets)
        .collect();
    assert_eq!(packets, [3, 5, 4]);
}

#[test]
fn restored_pipes_hold_what_the_old_ones_hold() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
pr, pw = os.pipe2(os.O_DIRECT | os.O_NONBLOCK); [os.write(pw, m) for m in (b'one', b'three', b'four')]
os.dup2(pr, 50); os.dup2(pw, 51); os.close(pr); os.close(pw)
";
    let script = Script::start(directory.path(), text);
    let (store, tables) = dump(&[script.pid()], dump_options()).expect("dump");
    let mut restored = restore(&store, &tables).expect("restore");
    for expected in [&b"one"[..], b"three", b"four"] {
        let mut program = Program::new();
        let room = program.room(2);
        let got = program.read(50, room, 2);
        let outcome = restored.tasks[0].run(&program).expect("read");
        // Two bytes of each packet; the rest of it is lost, as in packet mode.
        assert_eq!(
            (outcome.value(got), outcome.bytes(room)),
            (2, &expected[..2])
        );
    }
}

#[test]
fn fifos() {
    round_trip(
        "
os.mkfifo(dir + '/f'); r = os.open(dir + '/f', os.O_RDONLY | os.O_NONBLOCK); w = os.open(dir + '/f', os.O_WRONLY)
os.write(w, b'data'); b = os.open(dir + '/f', os.O_RDWR); p = os.open(dir + '/f', os.O_PATH)
os.mkfifo(dir + '/g'); g = os.open(dir + '/g', os.O_RDWR); os.write(g, b'gone'); os.unlink(dir + '/g')
",
    );
}

#[test]
fn events() {
    round_trip(
        "
e = libc.eventfd(7, 0); os.write(e, struct.pack('Q', 1 << 40))
s = libc.eventfd(3, 0o4001)
p = select.epoll(); p.register(e, select.EPOLLIN | select.EPOLLET)
r, w = os.pipe(); p.register(r, select.EPOLLIN)
moved = os.dup2(r, 60); gone = os.dup2(w, 61); p.register(61, select.EPOLLOUT | select.EPOLLONESHOT)
os.close(61)
inner = select.epoll(); p.register(inner.fileno(), select.EPOLLIN)
mask = struct.pack('Q', 1 << 9) + bytes(120); q = libc.signalfd(-1, mask, 0o4000)
t = libc.timerfd_create(1, 0o4000); libc.timerfd_settime(t, 0, struct.pack('qqqq', 100, 0, 500, 0), None)
u = libc.timerfd_create(0, 0)
",
    );
}

#[test]
fn unlinked_files() {
    let (directory, ..) = round_trip(
        "
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT, 0o640); os.write(a, b'content'); os.fchown(a, 12, 34)
a2 = os.open(dir + '/a', os.O_RDONLY); os.read(a2, 3)
try: os.setxattr(dir + '/a', 'user.note', b'kept')
except OSError: pass
os.unlink(dir + '/a')
s = os.open(dir + '/sparse', os.O_RDWR | os.O_CREAT); os.pwrite(s, b'end', 1 << 30); os.unlink(dir + '/sparse')
t = os.open(dir, os.O_RDWR | os.O_TMPFILE); os.write(t, b'tmp'); os.close(t)
os.mkdir(dir + '/d'); os.mkdir(dir + '/d/e'); f = os.open(dir + '/d/e/f', os.O_RDWR | os.O_CREAT); os.unlink(dir + '/d/e/f')
d = os.open(dir + '/d', os.O_RDONLY); os.chdir(dir + '/d/e'); os.rmdir(dir + '/d/e'); os.rmdir(dir + '/d')
",
    );
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("a directory")
            .count(),
        0
    );
}

/// Reads from a descriptor of a held task.
fn pread(task: &mut Tracee, fd: i32, length: usize, at: u64) -> Vec<u8> {
    let mut program = Program::new();
    let room = program.room(length);
    let got = program.pread64(fd, room, length, at);
    let outcome = task.run(&program).expect("pread");
    outcome.bytes(room)[..usize::try_from(outcome.value(got)).expect("a length")].to_vec()
}

#[test]
fn unlinked_files_keep_content_owner_times_and_attributes() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let text = "
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT); os.write(a, b'content'); os.dup2(a, 50)
os.fchown(a, 12, 34); os.fchmod(a, 0o4751); os.setxattr(a, 'user.note', b'kept'); os.setxattr(a, 'trusted.t', b't')
os.utime(a, ns=(1000000001, 2000000002))
os.dup2(os.open(dir + '/a', os.O_RDONLY), 51)
os.unlink(dir + '/a')
s = os.open(dir + '/sparse', os.O_RDWR | os.O_CREAT); os.pwrite(s, b'end', 1 << 30); os.dup2(s, 52); os.unlink(dir + '/sparse')
t = os.open(dir, os.O_RDWR | os.O_TMPFILE); os.write(t, b'tmp'); os.dup2(t, 53)
";
    let script = Script::start(directory.path(), text);
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    let mut restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    let task = &mut restored.tasks[0];
    let stat = |pid: Pid, fd: i32| {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).expect("open");
        let times = (
            meta.atime(),
            meta.atime_nsec(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.size(),
            meta.nlink(),
            meta.blocks() < 100,
            times,
        )
    };
    for fd in [50, 51, 52, 53] {
        assert_eq!(stat(script.pid(), fd), stat(task.pid(), fd), "fd {fd}");
    }
    for fd in [50, 51] {
        assert_eq!(pread(task, fd, 100, 0), b"content");
    }
    assert_eq!(pread(task, 52, 100, (1 << 30) - 1), b"\0end");
    assert_eq!(pread(task, 53, 100, 0), b"tmp");
    let ext = store
        .entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())
        .expect("well formed")
        .expect("there");
    let names: Vec<String> = ext
        .iter()
        .filter_map(|entry| entry.ghost.clone())
        .flat_map(|ghost| ghost.xattrs)
        .map(|xattr| String::from_utf8(xattr.name).expect("text"))
        .filter(|name| !name.starts_with("security."))
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let inode = |fd: i32| {
        nix::sys::stat::stat(format!("/proc/{}/fd/{fd}", task.pid()).as_str())
            .expect("open")
            .st_ino
    };
    assert_eq!(inode(50), inode(51));
    let copy = directory.path().join("linked");
    nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        format!("/proc/{}/fd/53", task.pid()).as_str(),
        nix::fcntl::AT_FDCWD,
        &copy,
        nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW,
    )
    .expect("a file born without a name may get one");
    assert_eq!(std::fs::read(copy).expect("there"), b"tmp");
}

#[test]
fn files_with_other_names_get_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
n = os.open(dir + '/n', os.O_RDWR | os.O_CREAT); os.write(n, b'data'); os.link(dir + '/n', dir + '/n2'); os.unlink(dir + '/n')
m = os.open(dir + '/n2', os.O_RDONLY)
";
    let script = Script::start(directory.path(), text);
    let before = table_of(script.pid());
    let names = || {
        let entries = std::fs::read_dir(directory.path()).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("one").file_name())
            .map(|name| {
                name.to_string_lossy()
                    .split('.')
                    .next()
                    .unwrap_or("")
                    .to_owned()
            })
            .collect();
        names.sort();
        names
    };
    let options = DumpOptions {
        link_remap: true,
        ..dump_options()
    };
    {
        let store = Memory::new();
        let mut collector = Collector::new(options.clone(), &store, KINDS.iter().copied());
        collector
            .table(
                script.pid(),
                &ProcDir::open(script.pid()).expect("it lives"),
                &[script.pid()],
            )
            .expect("a table");
        assert_eq!(names(), ["link_remap", "n2"]);
    }
    assert_eq!(names(), ["n2"], "a dump that fails takes them back");
    let (store, tables) = dump(&[script.pid()], options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(), ["link_remap", "n2"]);
    let mut restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(restored.tasks[0].pid()));
    restored.files.remove_names().expect("removed");
    assert_eq!(names(), ["n2"]);
}
