//! Into new tasks: they have the memory that was dumped, mapping for mapping and byte for byte.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::{Files, Victim};
use criu_image::{Memory, Store};
use criu_mm::{
    DrainOptions, FillJob, Ground, Materials, Segments, Shared, Space, SpaceImage, SurveyOptions,
    clear, drain, fill, finish, survey,
};
use criu_proc::{MapName, ProcDir};
use criu_tracee::arch::Regs;
use criu_tracee::{Nursery, Program, Site, Tracee, spawn_root};
use nix::unistd::Pid;

const SETUP: &str = r#"
big = anon(600)
for i in range(0, 600, 2): put(big, i, b'page %d' % i)
secret = anon(4)
put(secret, 1, b'PROT_NONE with data')
libc.mprotect(secret, 4 * P, 0)
reserve = anon(1 << 28, 0x4022, 0)   # a terabyte of nothing
large = anon(1 << 19)                # 2 GiB, read-only, one page of it
put(large, 1 << 18, b'in the middle')
libc.mprotect(large, P << 19, 1)
shared = anon(300, 0x21)
put(shared, 7, b'shared'); put(shared, 299, b'shared too')
libc.munmap(shared, 5 * P)           # a window with an offset
with tempfile.NamedTemporaryFile() as f:
    f.write(b'f' * 4 * P); f.flush()
    private = libc.mmap(0, 4 * P, 3, 2, f.fileno(), 0)
    put(private, 2, b'copied')
    shfile = libc.mmap(0, 4 * P, 3, 1, f.fileno(), 0)
    put(shfile, 3, b'in the file')
guarded = anon(8)
for i in range(8): put(guarded, i, b'g')
libc.madvise(guarded + 3 * P, P, 102)
libc.madvise(guarded, 8 * P, 16)
for advice in 10, 14, 18: libc.madvise(anon(2, 0x22, 1 << (advice - 10) % 3), 2 * P, advice)
locked = anon(3); put(locked, 1, b'locked')
assert libc.mlock(locked, 3 * P) == 0
droppable = libc.mmap(0, 4 * P, 3, 0x28, -1, 0)
huge = libc.mmap(0, 4 << 20, 3, 0x40022, -1, 0)  # only where pages are set aside for it
if huge != 2**64 - 1: put(huge, 700, b'huge')
grows = libc.mmap(0x10000000, 4 * P, 3, 0x100122, -1, 0)
put(grows, 3, b'down')
"#;

/// Everything of a process that this crate is to keep.
#[derive(Debug, PartialEq)]
struct Portrait {
    /// Mappings with their flags; neighbours that are alike are one.
    maps: Vec<(u64, u64, String)>,
    stat: Vec<u64>,
    auxv: Vec<u8>,
    exe: std::path::PathBuf,
    cmdline: Vec<u8>,
}

fn portrait(pid: Pid, skip: impl Fn(u64) -> bool) -> Portrait {
    let smaps = std::fs::read(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut maps: Vec<(u64, u64, String)> = Vec::new();
    for smap in criu_proc::Smaps::new(&smaps) {
        let smap = smap.expect("well-formed");
        let vma = &smap.vma;
        // "ac" and "gu": it was writable, or one mapping with guard pages, once; soft-dirty is not state.
        let flags: Vec<_> = smap
            .flags
            .codes()
            .filter(|code| !["ac", "sd", "gu"].contains(code))
            .collect();
        // Objects without a name are others.
        let inode = if matches!(vma.name, MapName::DevZero | MapName::AnonHugepage) {
            0
        } else {
            vma.inode
        };
        let text = format!(
            "{:?} {} {inode} {:?} {flags:?}",
            vma.perms, vma.dev, vma.name
        );
        match maps.last_mut() {
            _ if skip(vma.start) => {}
            Some(last) if last.1 == vma.start && last.2 == text => last.1 = vma.end,
            _ => maps.push((vma.start, vma.end, text)),
        }
    }
    let proc = ProcDir::open(pid).expect("it lives");
    let stat = proc.stat().expect("stat");
    Portrait {
        maps,
        stat: vec![
            stat.startcode,
            stat.endcode,
            stat.start_data,
            stat.end_data,
            stat.start_brk,
            stat.startstack,
            stat.arg_start,
            stat.arg_end,
            stat.env_start,
            stat.env_end,
        ],
        auxv: proc.read("auxv").expect("auxv"),
        exe: std::fs::read_link(format!("/proc/{pid}/exe")).expect("exe"),
        cmdline: proc.read("cmdline").expect("cmdline"),
    }
}

/// All of a process's readable memory: address, and a page.
fn content(pid: Pid, maps: &[(u64, u64, String)]) -> Vec<(u64, Vec<u8>)> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("mem");
    let mut all = Vec::new();
    for (start, end, name) in maps {
        let huge = end - start > 1 << 29;
        if name.contains("Vvar") || name.contains("Vsyscall") {
            continue;
        }
        let middle = start + (end - start) / 2;
        let (start, end) = if huge {
            (middle, middle + 4096)
        } else {
            (*start, *end)
        };
        for at in (start..end).step_by(4096) {
            let mut page = vec![0; 4096];
            // Guard pages and holes of files cannot be read, there or here.
            let read = memory.read_exact_at(&mut page, at).is_ok();
            all.push((at, if read { page } else { Vec::new() }));
        }
    }
    all
}

fn dump(pids: &[Pid], store: &Memory) -> (Vec<Space>, Files) {
    let (spaces, files, _) = dump_with_registers(pids, store);
    (spaces, files)
}

type Registers = (criu_tracee::NativeRegs, Vec<u8>);

fn dump_with_registers(pids: &[Pid], store: &Memory) -> (Vec<Space>, Files, Vec<Registers>) {
    let mut files = Files::default();
    let mut tracees = Tracee::seize_all(pids, None).expect("seize");
    let mut spaces = Vec::new();
    let mut registers = Vec::new();
    for tracee in &mut tracees {
        let thread = &tracee.threads()[0];
        registers.push((
            thread.natural().reborn(criu_tracee::arch::Next::Resume),
            thread.mask().to_vec(),
        ));
        let proc = ProcDir::open(tracee.pid()).expect("it lives");
        let options = SurveyOptions {
            allow_uprobes: false,
        };
        let mut space = survey(&proc, tracee, &mut files, &options).expect("survey");
        let mut program = Program::new();
        let questions = Space::ask(&mut program);
        let outcome = tracee.run(&program).expect("run");
        space.answer(&outcome, questions);
        spaces.push(space);
    }
    let mut options = DrainOptions {
        in_target: true,
        next_pages: 1,
    };
    drain(&mut tracees, &mut spaces, store, &mut options, &mut |_| {}).expect("drain");
    for tracee in tracees.into_iter().rev() {
        tracee.release().expect("release");
    }
    for space in &spaces {
        space.write(store).expect("write");
    }
    store.finish().expect("finish");
    (spaces, files, registers)
}

/// A task with the memory of an image, and the nursery it was born with.
fn rebuild(image: &[SpaceImage; 1], files: &Files, store: &Memory) -> (Nursery, Tracee) {
    let shared = Shared::create(image, store).expect("shared memory");
    let ground = Ground::find(image, 1).expect("a hole");
    let nursery = ground.nursery().expect("mapped");
    let mut tracees = [spawn_root(&nursery, &[], 0).expect("born")];
    clear(&mut tracees[0], &ground).expect("cleared");
    shared.fill(&mut tracees[0]).expect("shared memory");
    let jobs = [FillJob {
        tracee: 0,
        image: &image[0],
        parent: None,
    }];
    let materials = Materials {
        ground: &ground,
        files,
        shared: &shared,
        segments: &Segments::default(),
    };
    fill(&mut tracees, &jobs, &materials, &mut |_| ()).expect("filled");
    finish(&mut tracees, &jobs, &ground, files).expect("finished");
    let [tracee] = tracees;
    (nursery, tracee)
}

/// Lets a task run that was rebuilt.
fn wake(mut tracee: Tracee, registers: &Registers) -> Pid {
    let pid = tracee.pid();
    let (regs, mask) = registers.clone();
    tracee.threads_mut()[0].set_natural(regs, mask);
    tracee.leave().expect("left");
    tracee.detach().expect("detached");
    pid
}

fn end(pid: Pid) {
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("our child");
    nix::sys::wait::waitpid(pid, None).expect("our child");
}

/// Whether what is looked at changes in the next two seconds.
fn moves(look: impl Fn() -> u8) -> bool {
    let first = look();
    (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        look() != first
    })
}

#[test]
fn a_process_comes_back() {
    let victim = Victim::start(SETUP);
    let store = Memory::new();
    let (spaces, files) = dump(&[victim.pid()], &store);
    let before = portrait(victim.pid(), |_| false);
    let bytes = content(victim.pid(), &before.maps);

    let images = [SpaceImage::load(&store, spaces[0].id).expect("good")];
    let (nursery, mut tracee) = rebuild(&images, &files, &store);
    let mut program = Program::new();
    let brk = program.brk(0);
    let brk = tracee.run(&program).expect("run").value(brk);
    assert_eq!(brk.cast_unsigned(), images[0].mm.mm_brk);

    let pid = tracee.pid();
    let after = portrait(pid, |at| nursery.range().contains(&at));
    for (one, other) in before.maps.iter().zip(&after.maps) {
        assert_eq!(one, other);
    }
    assert_eq!(before, after);
    let found = content(pid, &after.maps);
    for ((at, one), (_, other)) in bytes.iter().zip(&found) {
        let differ = one.iter().zip(other).filter(|(a, b)| a != b).count();
        // The number of the processor, in the area of rseq(2).
        assert!(
            one.len() == other.len() && differ <= 16,
            "{differ} bytes at {at:x}"
        );
    }
    assert_eq!(bytes.len(), found.len());
}

/// Frames of the pages of a range, by `/proc/PID/pagemap`.
fn frames(pid: Pid, start: u64, pages: u64) -> Vec<Option<u64>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("pagemap");
    let mut bytes = vec![0; usize::try_from(pages * 8).expect("small")];
    pagemap
        .read_exact_at(&mut bytes, start / 4096 * 8)
        .expect("pagemap");
    criu_proc::page_entries(&bytes)
        .map(criu_proc::PageEntry::frame)
        .collect()
}

const FAMILY: &str = r#"
import array
big = anon(2000, 0x22, 3, 0x20000000)
for i in range(2000): put(big, i, b'page %d' % i)
gone = anon(16, 0x22, 3, 0x30000000)
for i in range(16): put(gone, i, b'unmapped by the child')
short = anon(16, 0x22, 3, 0x31000000)
for i in range(16): put(short, i, b'cut by the child')
longer = anon(16, 0x22, 3, 0x32000000)
for i in range(16): put(longer, i, b'grown by the child')
dropped = anon(16, 0x22, 3, 0x33000000)
for i in range(16): put(dropped, i, b'thrown away by the child')
private = anon(4, 0x22, 3, 0x34000000)
libc.madvise(private, 4 * P, 10)
put(private, 0, b'not for children')
shared = anon(8, 0x21, 3, 0x35000000)
put(shared, 1, b'both see it')
r, w = os.pipe()
child = os.fork()
if child == 0:
    libc.prctl(1, 9, 0, 0, 0)  # dies with the parent
    for i in range(0, 2000, 16): put(big, i, b'changed by the child')
    libc.munmap(gone, 16 * P)
    libc.munmap(short + 8 * P, 8 * P)
    libc.mremap.restype = ctypes.c_void_p
    assert libc.mremap(ctypes.c_void_p(longer), ctypes.c_size_t(16 * P), ctypes.c_size_t(20 * P), 0) == longer
    put(longer, 18, b'more')
    libc.madvise(dropped + 4 * P, 4 * P, 4)
    libc.mprotect(dropped, 16 * P, 1)
    put(shared, 2, b'from the child')
    os.write(w, b'x')
    time.sleep(1000)
    os._exit(0)
os.read(r, 1)
# Its memory is compared with what it was in the dump: it must have come to rest.
while open('/proc/%d/stat' % child).read().split()[2] != 'S': pass
"#;

#[test]
fn a_family_comes_back_and_shares_what_it_shared() {
    let victim = Victim::start(FAMILY);
    let parent = victim.pid();
    let child = ProcDir::open(parent)
        .expect("it lives")
        .children()
        .expect("children")[0];
    let store = Memory::new();
    let (spaces, files) = dump(&[parent, child], &store);
    let before: Vec<_> = [parent, child]
        .iter()
        .map(|pid| portrait(*pid, |_| false))
        .collect();
    let bytes: Vec<_> = [parent, child]
        .iter()
        .zip(&before)
        .map(|(pid, p)| content(*pid, &p.maps))
        .collect();
    let same = |one: Pid, other: Pid| {
        let pairs =
            frames(one, 0x2000_0000, 2000)
                .into_iter()
                .zip(frames(other, 0x2000_0000, 2000));
        pairs
            .map(|(one, other)| one.is_some() && one == other)
            .collect::<Vec<_>>()
    };
    let shared_before = same(parent, child);
    assert_eq!(shared_before.iter().filter(|same| **same).count(), 1875);

    let images = spaces
        .iter()
        .map(|space| SpaceImage::load(&store, space.id).expect("good"));
    let images: Vec<SpaceImage> = images.collect();
    let shared = Shared::create(&images, &store).expect("shared memory");
    let ground = Ground::find(&images, 1).expect("a hole");
    let nursery = ground.nursery().expect("mapped");
    let materials = Materials {
        ground: &ground,
        files: &files,
        shared: &shared,
        segments: &Segments::default(),
    };
    let mut root = spawn_root(&nursery, &[], 0).expect("born");
    clear(&mut root, &ground).expect("cleared");
    shared.fill(&mut root).expect("shared memory");
    let mut tracees = vec![root];
    let jobs = [
        FillJob {
            tracee: 0,
            image: &images[0],
            parent: None,
        },
        FillJob {
            tracee: 1,
            image: &images[1],
            parent: Some(&images[0]),
        },
    ];
    fill(&mut tracees, &jobs[..1], &materials, &mut |_| ()).expect("filled");
    let mut program = Program::new();
    let mut args = [0u64; 11];
    args[0] = 0x2000; // CLONE_PTRACE
    args[4] = 17; // SIGCHLD
    let args = program.bytes(
        args.iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect::<Vec<u8>>(),
    );
    let born = program.clone3(args, 88);
    let born = tracees[0].run(&program).expect("cloned").value(born);
    let born = Pid::from_raw(i32::try_from(born).expect("a pid"));
    tracees.push(Tracee::adopt(born, born, &nursery).expect("held"));
    let stats = fill(&mut tracees, &jobs[1..], &materials, &mut |_| ()).expect("filled");
    assert!(stats.pages_skipped_cow > 1900, "{stats:?}");
    assert!(stats.pages_restored < 400, "{stats:?}");
    finish(&mut tracees, &jobs, &ground, &files).expect("finished");

    for index in 0..2 {
        let pid = tracees[index].pid();
        let after = portrait(pid, |at| nursery.range().contains(&at));
        for (one, other) in before[index].maps.iter().zip(&after.maps) {
            assert_eq!(one, other);
        }
        assert_eq!(before[index], after);
        let found = content(pid, &after.maps);
        for ((at, one), (_, other)) in bytes[index].iter().zip(&found) {
            let differ = one.iter().zip(other).filter(|(a, b)| a != b).count();
            assert!(
                one.len() == other.len() && differ <= 16,
                "{differ} bytes at {at:x}"
            );
        }
    }
    assert_eq!(same(tracees[0].pid(), tracees[1].pid()), shared_before);
}

const CLOCK: &str = r#"
with tempfile.NamedTemporaryFile() as f:
    f.write(b'\0' * P); f.flush()
    ticks = mmap.mmap(f.fileno(), P)
print('ready', flush=True)
while True:
    time.sleep(0.001)
    assert time.time() > 1.7e9
    ticks[0] = (ticks[0] + 1) % 256
"#;

/// It runs: code, stack, heap, thread-local storage and the vdso are where they were; also where the
/// vdso is another one and the old one leads to it.
#[test]
fn a_process_goes_on() {
    for proxy in [false, true] {
        let victim = Victim::start(CLOCK);
        let store = Memory::new();
        let (spaces, files, registers) = dump_with_registers(&[victim.pid()], &store);
        drop(victim);
        if proxy {
            rename_a_function_of_the_vdso(&store);
        }
        let images = [SpaceImage::load(&store, spaces[0].id).expect("good")];
        let (nursery, tracee) = rebuild(&images, &files, &store);
        let pid = wake(tracee, &registers[0]);
        let link = |name: &String| name.contains("/tmp/tmp");
        let (id, _) = files
            .links
            .iter()
            .find(|(_, name)| link(name))
            .expect("mapped");
        let moves = moves(|| {
            let mut byte = [0];
            files.open[id].read_exact_at(&mut byte, 0).expect("file");
            byte[0]
        });
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
        end(pid);
        assert!(moves, "the process stands still\n{maps}");
        assert!(
            !maps.contains(&format!("{:x}-", nursery.range().start)),
            "{maps}"
        );
        // Where it was, or where it was parked.
        let vdso = maps
            .lines()
            .find(|line| line.ends_with("[vdso]"))
            .expect("there");
        let home = spaces[0]
            .mm
            .vmas
            .iter()
            .find(|vma| vma.status & 1 << 3 != 0)
            .expect("there");
        assert_eq!(
            !vdso.starts_with(&format!("{:x}-", home.start)),
            proxy,
            "{maps}"
        );
    }
}

/// So that it looks like that of another kernel.
fn rename_a_function_of_the_vdso(store: &Memory) {
    let mut pages = store
        .read("pages-1.img")
        .expect("read")
        .expect("there")
        .to_vec();
    let name = b"\0__vdso_getcpu\0";
    let at = pages
        .windows(name.len())
        .position(|window| window == name)
        .expect("a vdso");
    pages[at + 10] = b'x';
    store.insert("pages-1.img", &pages).expect("replaced");
}

const RING: &str = r#"
ctx = ctypes.c_ulong(0)
libc.syscall.restype = ctypes.c_long
assert libc.syscall(206, 100, ctypes.byref(ctx)) == 0
f = open('/proc/self/maps')
out = os.memfd_create('x')
def submit(data):
    iocb = (ctypes.c_ulong * 8)()
    iocb[0] = data; iocb[2] = 1 | out << 32
    buf = ctypes.create_string_buffer(b'hello'); iocb[3] = ctypes.addressof(buf); iocb[4] = 5
    p = (ctypes.c_void_p * 1)(ctypes.addressof(iocb))
    assert libc.syscall(209, ctx, ctypes.c_long(1), p) == 1
def reap(n):
    ev = (ctypes.c_ulong * (4 * n))()
    got = libc.syscall(208, ctx, ctypes.c_long(n), ctypes.c_long(n), ev, None)
    assert got == n, got
for turn in range(TURNS):
    for i in range(50): submit(i)
    reap(50)
for i in range(21): submit(1000 + i)
reap(4)
"#;

#[test]
fn rings_of_asynchronous_requests_keep_their_events() {
    // Not yet once around the ring; and with its end in the middle of the waiting events.
    for turns in ["1", "5"] {
        let victim = Victim::start(&RING.replace("TURNS", turns));
        let store = Memory::new();
        let (spaces, files) = dump(&[victim.pid()], &store);
        let images = [SpaceImage::load(&store, spaces[0].id).expect("good")];
        let ring = images[0].mm.aios[0];
        let (_nursery, mut tracee) = rebuild(&images, &files, &store);
        let mut program = Program::new();
        let events = program.room(32 * 64);
        let args = [ring.id.into(), 0.into(), 64.into(), events.into(), 0.into()];
        let got = program.call(criu_tracee::Sysno::io_getevents, args);
        let outcome = tracee.run(&program).expect("it is a ring");
        assert_eq!(outcome.value(got), 17);
        for (index, event) in outcome.bytes(events).chunks(32).take(17).enumerate() {
            assert_eq!(event[..8], (1004 + index as u64).to_ne_bytes());
        }
    }
}

/// nanosleep(2) and a count, for ever; in 32-bit code.
const COMPAT: &str = r#"
.globl _start
.data
counter: .long 0
ts: .long 0, 1000000
.text
_start:
1:  mov $162, %eax
    mov $ts, %ebx
    xor %ecx, %ecx
    int $0x80
    incl counter
    jmp 1b
"#;

#[test]
fn a_32_bit_process_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, binary) = (dir.path().join("a.S"), dir.path().join("a"));
    std::fs::write(&source, COMPAT).expect("written");
    let built = std::process::Command::new("gcc")
        .args(["-m32", "-nostdlib", "-static", "-o"])
        .args([&binary, &source])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("skipped: gcc does not build 32-bit programs here");
        return;
    }
    let victim = Victim(
        std::process::Command::new(&binary)
            .spawn()
            .expect("it runs"),
    );
    std::thread::sleep(std::time::Duration::from_millis(100));
    let store = Memory::new();
    let (spaces, files, registers) = dump_with_registers(&[victim.pid()], &store);
    let before = portrait(victim.pid(), |_| false);
    drop(victim);
    let images = [SpaceImage::load(&store, spaces[0].id).expect("good")];
    let (nursery, tracee) = rebuild(&images, &files, &store);
    let mut after = portrait(tracee.pid(), |at| nursery.range().contains(&at));
    // Until it runs 32-bit code the kernel shows it the vsyscall page.
    after
        .maps
        .retain(|(start, ..)| *start < 0xffff_ffff_0000_0000);
    assert_eq!(before, after);
    let pid = wake(tracee, &registers[0]);
    let memory = File::open(format!("/proc/{pid}/mem")).expect("mem");
    let data = spaces[0]
        .mm
        .vmas
        .iter()
        .find(|vma| vma.prot & 2 != 0)
        .expect("data")
        .start;
    let moves = moves(|| {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, data).expect("mem");
        byte[0]
    });
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    end(pid);
    assert!(moves, "it stands still: {status}");
}
