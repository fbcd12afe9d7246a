//! What concerns all kinds: sharing, locks, refusals, changes on disk, numbers.

mod support;

use criu_files::{Collector, DumpOptions, Files, KINDS};
use criu_image::{Memory, Store, StoreExt, desc, pb};
use criu_kind::MappedFiles;
use criu_proc::ProcDir;
use criu_tracee::{Program, Site, spawn_root};
use nix::unistd::Pid;
use support::*;

#[test]
fn all_refusals_come_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
a = socket.socket(socket.AF_VSOCK if hasattr(socket, 'AF_VSOCK') else socket.AF_INET)
p, _ = os.openpty(); b = os.open(dir + '/big', os.O_RDWR | os.O_CREAT); os.write(b, b'x' * 2000000); os.unlink(dir + '/big')
l = os.open(dir + '/l', os.O_RDWR | os.O_CREAT); fcntl.flock(l, fcntl.LOCK_EX)
n = os.open(dir + '/n', os.O_RDWR | os.O_CREAT); os.link(dir + '/n', dir + '/n2'); os.unlink(dir + '/n')
";
    let script = Script::start(directory.path(), text);
    let error = dump(&[script.pid()], dump_options())
        .map(drop)
        .expect_err("refused")
        .to_string();
    for part in ["socket:[", "--ghost-limit", "--file-locks", "--link-remap"] {
        // The remedy is not part of the text; the fact and the subject are.
        let shown = match part {
            "--ghost-limit" => "more than the limit of 1048576",
            "--file-locks" => "holds a flock lock",
            "--link-remap" => "its name",
            other => other,
        };
        assert!(error.contains(shown), "{shown} in {error}");
    }
    assert!(error.starts_with("4 problems:"), "{error}");
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
    collector.finish().expect("written").keep().expect("kept");
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
    let arrivals = files.place(tables[0], &mut program).expect("a program");
    let outcome = task.run(&program).expect("run");
    arrivals.check(&outcome).expect("all arrived");
    for fd in [50, 51] {
        let (link, info) = &table_of(task.pid())[&fd];
        assert!(link.ends_with("/log") && info.pos == 0, "{link}");
    }
}

#[test]
fn a_descriptor_in_flight_is_the_file_it_is_a_copy_of() {
    use criu_kind::DumpCx;
    let directory = tempfile::tempdir().expect("a directory");
    let script = Script::start(directory.path(), "a = os.open('/dev/zero', os.O_RDONLY)");
    let proc = ProcDir::open(script.pid()).expect("it lives");
    let zero = proc.fds().expect("a list").into_iter().find(|fd| {
        proc.readlink(&format!("fd/{fd}"))
            .is_ok_and(|link| link == "/dev/zero")
    });
    let store = Memory::new();
    let mut collector = Collector::new(dump_options(), &store, KINDS.iter().copied());
    let table = collector.table(script.pid(), &proc, &[script.pid()]);
    table.expect("a table");
    let pidfd = criu_tracee::pidfd_open(script.pid()).expect("it lives");
    let copy = || {
        criu_tracee::fetch_fd(&pidfd, zero.expect("open"))
            .expect("fetched")
            .expect("open")
    };
    let known = collector.in_flight(copy()).expect("known");
    assert_eq!(collector.in_flight(copy()).expect("known"), known);
    let other = std::fs::File::open("/dev/zero").expect("a device");
    let new = collector.in_flight(other.try_clone().expect("dup").into());
    let new = new.expect("described");
    assert_ne!(new, known);
    assert_eq!(collector.in_flight(other.into()).expect("known"), new);
}

#[test]
fn who_gets_the_signal_is_set_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "
r, w = os.pipe(); os.dup2(r, 50)
fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(r, 10, 40)
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
";
    let script = Script::start(directory.path(), text);
    let before = table_of(script.pid());
    let pid = script.pid().as_raw();
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    drop(script);
    let mut restored =
        restore_with(&store, &tables, &[Some(pid)]).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(restored.tasks[0].pid()));
    let mut program = Program::new();
    let signal = program.fcntl(50, 11, 0);
    let owner = program.room(8);
    program.fcntl(50, 16, owner);
    let outcome = restored.tasks[0].run(&program).expect("fcntl");
    assert_eq!(outcome.value(signal), 40);
    assert_eq!(
        outcome.bytes(owner),
        [1i32.to_ne_bytes(), pid.to_ne_bytes()].concat()
    );
}
