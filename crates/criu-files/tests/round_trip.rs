//! Files of a real process: dumped, made again, placed in a new task, compared.
//!
//! The processes are Python scripts that print a line when they are ready. Needs root, as a dump does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use criu_files::{Collector, DumpOptions, Files, KINDS, RestoreOptions, Validation};
use criu_image::id::FdTableId;
use criu_image::{Memory, Store, StoreExt, desc, pb};
use criu_kind::MappedFiles;
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::{Nursery, Program, Site, Tracee, spawn_root};
use nix::unistd::Pid;

const PRELUDE: &str = "
import os, sys, select, socket, signal, time, fcntl, struct, ctypes
dir = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
";

struct Script(Child);

impl Script {
    fn start(directory: &std::path::Path, text: &str) -> Self {
        let text = format!("{PRELUDE}{text}\nprint('ready', flush=True)\ntime.sleep(1000)\n");
        let mut child = Command::new("python3")
            .args(["-c", &text])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

fn dump_options() -> DumpOptions {
    DumpOptions {
        ghost_limit: 1 << 20,
        link_remap: false,
        evasive_devices: false,
        file_locks: false,
        validation: Validation::BuildId,
        external: Vec::new(),
    }
}

fn restore_options() -> RestoreOptions {
    RestoreOptions {
        validation: Validation::BuildId,
        skip_permissions: false,
        inherited: Vec::new(),
        root: None,
    }
}

/// Dumps all files of processes, stopped meanwhile.
fn dump(pids: &[Pid], options: DumpOptions) -> criu_kind::Result<(Memory, Vec<FdTableId>)> {
    let store = Memory::new();
    let held = Tracee::seize_all(pids, None)?;
    let mut tables = Vec::new();
    let mut collector = Collector::new(options, &store, KINDS.iter().copied());
    for tracee in &held {
        let proc = ProcDir::open(tracee.pid())?;
        let table = collector.table(tracee.pid(), &proc)?;
        tables.push(table.id);
        let fs = collector.fs(tracee.pid(), &proc)?;
        store.write_entry(desc::FS, tracee.pid().as_raw().cast_unsigned(), &fs)?;
        collector.exe(tracee.pid())?;
    }
    collector.finish()?.keep();
    store.finish()?;
    Ok((store, tables))
}

fn nursery() -> Nursery {
    let start = 0x2000_0000_0000 + 0x1_0000_0000 * u64::from(std::process::id() % 1000);
    (0..)
        .find_map(|step| Nursery::map(start + step * 0x100_0000, 1).ok())
        .expect("a hole")
}

struct Restored<'s> {
    _files: Files<'s>,
    tasks: Vec<Tracee>,
    _nursery: Nursery,
}

/// Makes the files and a new task for each table.
fn restore<'s>(store: &'s Memory, tables: &[FdTableId]) -> criu_kind::Result<Restored<'s>> {
    restore_with(store, tables, &vec![None; tables.len()])
}

/// The same, with pids where tasks must have theirs.
fn restore_with<'s>(
    store: &'s Memory,
    tables: &[FdTableId],
    pids: &[Option<i32>],
) -> criu_kind::Result<Restored<'s>> {
    let mut files = Files::load(store, restore_options(), KINDS.iter().copied())?;
    files.check()?;
    files.open_all()?;
    let nursery = nursery();
    let mut tasks = Vec::new();
    for (table, pid) in tables.iter().zip(pids) {
        let pid: Vec<i32> = pid.iter().copied().collect();
        let task = spawn_root(&nursery, &pid, 0)?;
        files.set_tasks([(*table, (task.pid().as_raw().cast_unsigned()).into())]);
        tasks.push(task);
    }
    for stage in [Files::place, Files::settle] {
        for (table, task) in tables.iter().zip(&mut tasks) {
            let mut program = Program::new();
            stage(&mut files, *table, &mut program)?;
            task.run(&program)?;
        }
    }
    for (table, task) in tables.iter().zip(&mut tasks) {
        let mut program = Program::new();
        files.arm(*table, &mut program)?;
        task.run(&program)?;
    }
    Ok(Restored {
        _files: files,
        tasks,
        _nursery: nursery,
    })
}

fn table_of(pid: Pid) -> BTreeMap<i32, (String, Fdinfo)> {
    let proc = ProcDir::open(pid).expect("it lives");
    let fds = proc.fds().expect("a list");
    fds.into_iter()
        .map(|fd| {
            let link = proc
                .readlink(&format!("fd/{fd}"))
                .expect("open")
                .to_string_lossy()
                .into_owned();
            (fd, (link, proc.fdinfo(fd).expect("open")))
        })
        .collect()
}

/// Both have the same numbers, flags, positions and links, but for the numbers of pipes.
fn assert_same(before: &BTreeMap<i32, (String, Fdinfo)>, after: &BTreeMap<i32, (String, Fdinfo)>) {
    let shown = |table: &BTreeMap<i32, (String, Fdinfo)>| -> Vec<String> {
        table
            .iter()
            .map(|(fd, (link, info))| {
                let link = if link.starts_with("pipe:") {
                    "pipe"
                } else {
                    link
                };
                let mut lines: Vec<String> = info
                    .lines
                    .iter()
                    .map(|line| String::from_utf8_lossy(&line.text).into_owned())
                    .filter(|line| !line.starts_with("eventfd-id") && !line.starts_with("it_value"))
                    .map(|line| line.split(" pos:").next().unwrap_or("").to_owned())
                    .collect();
                lines.sort(); // Targets of epoll come in the order of their addresses.
                format!(
                    "{fd} {link} pos {} flags {:o} {lines:?}",
                    info.pos, info.flags
                )
            })
            .collect()
    };
    assert_eq!(shown(before), shown(after));
}

fn round_trip(text: &str) -> (tempfile::TempDir, Script, Memory) {
    let directory = tempfile::tempdir().expect("a directory");
    let script = Script::start(directory.path(), text);
    let before = table_of(script.pid());
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(script.pid()));
    let restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(restored.tasks[0].pid()));
    drop(restored);
    (directory, script, store)
}

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
fn all_refusals_come_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
a = socket.socket(socket.AF_VSOCK if hasattr(socket, 'AF_VSOCK') else socket.AF_INET)
m = os.memfd_create('x'); b = os.open(dir + '/big', os.O_RDWR | os.O_CREAT); os.write(b, b'x' * 2000000); os.unlink(dir + '/big')
l = os.open(dir + '/l', os.O_RDWR | os.O_CREAT); fcntl.flock(l, fcntl.LOCK_EX)
n = os.open(dir + '/n', os.O_RDWR | os.O_CREAT); os.link(dir + '/n', dir + '/n2'); os.unlink(dir + '/n')
";
    let script = Script::start(directory.path(), text);
    let error = dump(&[script.pid()], dump_options())
        .map(drop)
        .expect_err("refused")
        .to_string();
    for part in [
        "socket:[",
        "/memfd:x",
        "--ghost-limit",
        "--file-locks",
        "--link-remap",
    ] {
        // The remedy is not part of the text; the fact and the subject are.
        let shown = match part {
            "--ghost-limit" => "more than the limit of 1048576",
            "--file-locks" => "holds a flock lock",
            "--link-remap" => "its name",
            other => other,
        };
        assert!(error.contains(shown), "{shown} in {error}");
    }
    assert!(error.starts_with("5 problems:"), "{error}");
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
            )
            .expect("a table");
        assert_eq!(names(), ["link_remap", "n2"]);
    }
    assert_eq!(names(), ["n2"], "a dump that fails takes them back");
    let (store, tables) = dump(&[script.pid()], options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(), ["link_remap", "n2"]);
    let restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(restored.tasks[0].pid()));
    restored._files.remove_names().expect("removed");
    assert_eq!(names(), ["n2"]);
}

#[test]
fn locks_are_taken_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT); b = os.dup(a); fcntl.flock(a, fcntl.LOCK_SH)
fcntl.lockf(a, fcntl.LOCK_EX, 10, 5); fcntl.lockf(a, fcntl.LOCK_SH, 0, 100)
c = os.open(dir + '/a', os.O_RDWR); fcntl.fcntl(c, 37, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 20, 5, 0))
d = os.open(dir + '/d', os.O_RDONLY | os.O_CREAT); fcntl.fcntl(d, 1024, fcntl.F_RDLCK)
";
    let script = Script::start(directory.path(), text);
    let options = DumpOptions {
        file_locks: true,
        ..dump_options()
    };
    let held = |pid: Pid| {
        let mut all: Vec<String> = Vec::new();
        for (fd, (_, info)) in table_of(pid) {
            all.extend(
                info.locks
                    .iter()
                    .map(|l| format!("{fd} {:?} {:?} {} {:?}", l.kind, l.access, l.start, l.end)),
            );
        }
        all
    };
    let before = held(script.pid());
    assert_eq!(before.len(), 8, "{before:?}");
    let (store, tables) = dump(&[script.pid()], options).unwrap_or_else(|error| panic!("{error}"));
    let locks = store
        .entries::<pb::FileLockEntry>(desc::FILE_LOCKS, ())
        .expect("well formed")
        .expect("there");
    assert_eq!(locks.len(), 5);
    drop(script);
    let restored = restore_with(&store, &tables, &[Some(locks[0].pid)])
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(before, held(restored.tasks[0].pid()));
}

#[test]
fn what_processes_share_stays_shared() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT); r, w = os.pipe(); p = select.epoll()
pid = os.fork()
if pid == 0:
    x, y = os.pipe(); p.register(x, select.EPOLLIN); own = os.open(dir + '/a', os.O_RDWR)
    print(os.getpid(), file=open(dir + '/pid.new', 'w'), flush=True); os.rename(dir + '/pid.new', dir + '/pid')
    time.sleep(1000)
while not os.path.exists(dir + '/pid'): time.sleep(0.01)
";
    let script = Script::start(directory.path(), text);
    let child = std::fs::read_to_string(directory.path().join("pid")).expect("written");
    let child = Pid::from_raw(child.trim().parse().expect("a pid"));
    let pids = [script.pid(), child];
    let before = pids.map(table_of);
    let (store, tables) = dump(&pids, dump_options()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tables.len(), 2);
    let files = store
        .entries::<pb::FileEntry>(desc::FILES, ())
        .expect("well formed")
        .expect("there");
    let regular = files
        .iter()
        .filter(|file| {
            file.reg
                .as_ref()
                .is_some_and(|reg| reg.name.ends_with(b"/a"))
        })
        .count();
    assert_eq!(regular, 2);
    assert_eq!(files.iter().filter(|file| file.epfd.is_some()).count(), 1);
    let restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    for (before, task) in before.iter().zip(&restored.tasks) {
        assert_same(before, &table_of(task.pid()));
    }
    // The child added a target to the set of both; the parent never had it.
    let targets = |pid: Pid| {
        table_of(pid)
            .values()
            .map(|(_, info)| info.lines_of("tfd").count())
            .sum::<usize>()
    };
    assert_eq!(targets(restored.tasks[0].pid()), 1);
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("a child");
}

#[test]
fn files_of_processes_are_opened_when_these_exist() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
m = os.open('/proc/self/status', os.O_RDONLY); os.read(m, 5); n = os.dup(m)
d = os.open('/proc/%d' % os.getpid(), os.O_RDONLY | os.O_DIRECTORY)
pid = os.fork()
if pid == 0: time.sleep(1000)
z = os.open('/proc/%d/stat' % pid, os.O_RDONLY); os.kill(pid, 9); os.waitpid(pid, 0)
";
    let script = Script::start(directory.path(), text);
    let before = table_of(script.pid());
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    let tree = pb::PstreeEntry {
        pid: script.pid().as_raw().cast_unsigned(),
        ..pb::PstreeEntry::default()
    };
    store.write_entry(desc::PSTREE, (), &tree).expect("written");
    store.finish().expect("visible");
    let files = Files::load(&store, restore_options(), KINDS.iter().copied()).expect("well formed");
    let helpers: Vec<i32> = files
        .helper_pids()
        .map(|pid| pid.get().cast_signed())
        .collect();
    assert_eq!(helpers.len(), 1);
    drop(files);
    let pid = script.pid().as_raw();
    drop(script);
    let nursery = nursery();
    let helper = spawn_root(&nursery, &helpers, 0).expect("the pid is free");
    let restored =
        restore_with(&store, &tables, &[Some(pid)]).unwrap_or_else(|error| panic!("{error}"));
    drop(helper);
    assert_same(&before, &table_of(restored.tasks[0].pid()));
}

#[test]
fn changed_files_are_told_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
a = [os.open(dir + '/' + n, os.O_RDWR | os.O_CREAT) for n in 'abcd']
log = os.open(dir + '/log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
";
    let script = Script::start(directory.path(), text);
    let (store, _) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    let at = |name: &str| directory.path().join(name);
    std::fs::remove_file(at("a")).expect("there");
    std::fs::write(at("b"), "grown").expect("there");
    std::fs::set_permissions(at("c"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("there");
    std::fs::write(at("log"), "grown").expect("there");
    let files = Files::load(&store, restore_options(), KINDS.iter().copied()).expect("well formed");
    let error = files.check().expect_err("changed").to_string();
    for part in [
        "3 problems",
        "/a: it is not there",
        "/b: its size was 0 and is 5",
        "/c: its mode was",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn directories_and_umask() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "os.mkdir(dir + '/r'); os.mkdir(dir + '/r/w'); os.chdir(dir + '/r/w'); os.umask(0o57); os.chroot(dir + '/r')";
    let script = Script::start(directory.path(), text);
    let (store, _) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    let fs: pb::FsEntry = store
        .entry(desc::FS, script.pid().as_raw().cast_unsigned())
        .expect("there")
        .message;
    let mut files =
        Files::load(&store, restore_options(), KINDS.iter().copied()).expect("well formed");
    files.open_all().expect("opened");
    let nursery = nursery();
    let mut task = spawn_root(&nursery, &[], 0).expect("a task");
    let mut program = Program::new();
    files.fs_program(&fs, &mut program).expect("known files");
    task.run(&program).expect("run");
    for name in ["cwd", "root"] {
        let link = |pid: Pid| std::fs::read_link(format!("/proc/{pid}/{name}")).expect("it lives");
        assert_eq!(link(task.pid()), link(script.pid()));
    }
    assert_eq!(
        ProcDir::open(task.pid())
            .and_then(|proc| proc.status())
            .expect("it lives")
            .umask,
        Some(0o57)
    );
}

#[test]
fn ten_thousand_descriptors() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
for i in range(2400):
    os.open('/dev/null', os.O_RDONLY); libc.eventfd(0, 0); os.pipe()
";
    let script = Script::start(directory.path(), text);
    let start = std::time::Instant::now();
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    let dumped = start.elapsed();
    let restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    eprintln!(
        "9 600 descriptors: dump {dumped:?}, restore {:?}",
        start.elapsed() - dumped
    );
    assert!(
        ProcDir::open(restored.tasks[0].pid())
            .and_then(|proc| proc.fds())
            .expect("it lives")
            .len()
            > 9_600
    );
    // Quadratic would be minutes.
    assert!(start.elapsed().as_secs() < 30);
}

#[test]
fn mapped_files_and_executables_are_files_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
import mmap
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT); os.write(a, b'x' * 8192)
shared = mmap.mmap(a, 8192); private = mmap.mmap(a, 4096, mmap.MAP_PRIVATE)
os.close(a); os.unlink(dir + '/a')
";
    let script = Script::start(directory.path(), text);
    let pid = script.pid();
    let store = Memory::new();
    let mut collector = Collector::new(dump_options(), &store, KINDS.iter().copied());
    let maps = ProcDir::open(pid)
        .and_then(|proc| proc.read("maps"))
        .expect("it lives");
    let mut ids = Vec::new();
    for line in String::from_utf8_lossy(&maps)
        .lines()
        .filter(|line| line.contains("/a (deleted)"))
    {
        let (start, end) = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'))
            .expect("a range");
        let address = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        let writable = line.contains("rw-s");
        ids.push(
            collector
                .mapped(pid, address(start)..address(end), writable)
                .expect("mapped"),
        );
    }
    let exe = collector.exe(pid).expect("python3");
    assert_eq!(collector.exe(pid).expect("python3"), exe);
    collector.finish().expect("written").keep();
    store.finish().expect("visible");
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);

    let mut files =
        Files::load(&store, restore_options(), KINDS.iter().copied()).expect("well formed");
    files.check().expect("python3 is still there");
    files.open_all().expect("opened");
    let stat = |id| {
        let fd = criu_kind::FileFds::fd(&files, id).expect("open");
        let path = format!("/proc/self/fd/{fd}");
        let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("open");
        let flags = flags
            .lines()
            .nth(1)
            .expect("flags")
            .trim_end()
            .chars()
            .last()
            .expect("a digit");
        (
            nix::sys::stat::stat(path.as_str()).expect("open").st_ino,
            flags,
        )
    };
    let (one, other) = (stat(ids[0]), stat(ids[1]));
    assert_eq!(one.0, other.0, "one inode");
    assert_ne!(one.1, other.1, "open for reading, and for both");
    assert_eq!(
        stat(exe).0,
        nix::sys::stat::stat(format!("/proc/{pid}/exe").as_str())
            .expect("it lives")
            .st_ino
    );
}

#[test]
fn a_given_descriptor_takes_the_place_of_a_pipe_and_of_a_file() {
    use std::os::fd::AsRawFd;
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
a = os.open(dir + '/a', os.O_RDWR | os.O_CREAT); os.write(a, b'hello'); os.dup2(a, 50)
r, w = os.pipe(); os.dup2(w, 51)
";
    let script = Script::start(directory.path(), text);
    let pipe = table_of(script.pid())[&51].0.clone();
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    std::fs::remove_file(directory.path().join("a")).expect("there");
    let log = std::fs::File::create(directory.path().join("log")).expect("a file");
    let path = directory
        .path()
        .join("a")
        .to_string_lossy()
        .trim_start_matches('/')
        .to_owned();
    let mut options = restore_options();
    options.inherited = vec![(pipe, log.as_raw_fd()), (path, log.as_raw_fd())];
    let mut files = Files::load(&store, options, KINDS.iter().copied()).expect("well formed");
    files.check().expect("what is given need not be there");
    files.open_all().expect("opened");
    let nursery = nursery();
    let mut task = spawn_root(&nursery, &[], 0).expect("a task");
    let mut program = Program::new();
    files.place(tables[0], &mut program).expect("a program");
    task.run(&program).expect("run");
    for fd in [50, 51] {
        let (link, info) = &table_of(task.pid())[&fd];
        assert!(link.ends_with("/log") && info.pos == 0, "{link}");
    }
}
