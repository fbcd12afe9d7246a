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
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
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
        file_locks: false,
        validation: Validation::BuildId,
        external: Vec::new(),
    }
}

fn restore_options() -> RestoreOptions {
    RestoreOptions {
        validation: Validation::BuildId,
        skip_permissions: false,
        evasive_devices: false,
        inherited: Vec::new(),
        root: None,
    }
}

/// Dumps all files of processes, stopped meanwhile.
fn dump(pids: &[Pid], options: DumpOptions) -> criu_kind::Result<(Memory, Vec<FdTableId>)> {
    let store = Memory::new();
    let held = Tracee::seize_all(pids)?;
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
    collector.finish(true)?;
    store.finish()?;
    Ok((store, tables))
}

fn nursery() -> Nursery {
    let start = 0x2000_0000_0000 + 0x1_0000_0000 * u64::from(std::process::id() % 1000);
    (0..).find_map(|step| Nursery::map(start + step * 0x100_0000, 1).ok()).expect("a hole")
}

struct Restored<'s> {
    files: Files<'s>,
    tasks: Vec<Tracee>,
    _nursery: Nursery,
}

/// Makes the files and a new task for each table.
fn restore<'s>(store: &'s Memory, tables: &[FdTableId]) -> criu_kind::Result<Restored<'s>> {
    let mut files = Files::load(store, restore_options(), KINDS.iter().copied())?;
    files.check()?;
    files.open_all()?;
    let nursery = nursery();
    let mut tasks = Vec::new();
    for table in tables {
        let task = spawn_root(&nursery, &[], 0)?;
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
    Ok(Restored { files, tasks, _nursery: nursery })
}

fn table_of(pid: Pid) -> BTreeMap<i32, (String, Fdinfo)> {
    let proc = ProcDir::open(pid).expect("it lives");
    let fds = proc.fds().expect("a list");
    fds.into_iter()
        .map(|fd| {
            let link = proc.readlink(&format!("fd/{fd}")).expect("open").to_string_lossy().into_owned();
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
                let link = if link.starts_with("pipe:") { "pipe" } else { link };
                let lines: Vec<String> = info
                    .lines
                    .iter()
                    .map(|line| String::from_utf8_lossy(&line.text).into_owned())
                    .filter(|line| !line.starts_with("eventfd-id") && !line.starts_with("it_value"))
                    .map(|line| line.split(" pos:").next().unwrap_or("").to_owned())
                    .collect();
                format!("{fd} {link} pos {} flags {:o} {lines:?}", info.pos, info.flags)
            })
            .collect()
    };
    assert_eq!(shown(before), shown(after));
}

fn round_trip(text: &str) -> (tempfile::TempDir, Script, Memory) {
    let directory = tempfile::tempdir().expect("a directory");
    let script = Script::start(directory.path(), text);
    let before = table_of(script.pid());
    let (store, tables) = dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
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
    let data = store.entries::<pb::PipeDataEntry>(desc::PIPES_DATA, ()).expect("well formed").expect("there");
    let lengths: Vec<u32> = data.iter().map(|entry| entry.bytes).collect();
    assert_eq!(lengths, [10_000, 12, 500_000, 0]);
    let ext = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ()).expect("well formed").expect("there");
    let packets: Vec<u32> = ext.iter().filter_map(|entry| entry.pipe.clone()).flat_map(|pipe| pipe.packets).collect();
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
        assert_eq!((outcome.value(got), outcome.bytes(room)), (2, &expected[..2]));
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
mask = struct.pack('Q', 1 << 9); q = libc.signalfd(-1, mask, 8, 0o4000)
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
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0);
}
