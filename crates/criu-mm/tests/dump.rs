//! Out of real processes: what is written is what they have.

mod common;

use std::os::unix::fs::FileExt;

use common::{Files, Victim};
use criu_image::pages::{PageFlags, Pagemap};
use criu_image::{Memory, Store, desc, pb};
use criu_mm::{DrainOptions, Space, Stats, SurveyOptions, drain, survey};
use criu_proc::ProcDir;
use criu_tracee::{Program, Site, Tracee};

const PAGE: u64 = 4096;

const SETUP: &str = r#"
big = anon(600)                      # above the threshold of in-target writes
for i in range(0, 600, 2): put(big, i, b'page %d' % i)
secret = anon(4)
put(secret, 1, b'PROT_NONE with data')
libc.mprotect(secret, 4 * P, 0)
shared = anon(300, 0x21)
put(shared, 7, b'shared'); put(shared, 299, b'shared too')
with tempfile.NamedTemporaryFile() as f:
    f.write(b'f' * 4 * P); f.flush()
    private = libc.mmap(0, 4 * P, 3, 2, f.fileno(), 0)
    put(private, 2, b'copied')
    shfile = libc.mmap(0, 4 * P, 3, 1, f.fileno(), 0)
    put(shfile, 3, b'in the file')
named = anon(2)
put(named, 0, b'named')
libc.prctl(0x53564d41, 0, named, 2 * P, ctypes.cast(ctypes.c_char_p(b'my memory'), ctypes.c_void_p).value)
guarded = anon(8)
for i in range(8): put(guarded, i, b'g')
libc.madvise(guarded + 3 * P, P, 102)
libc.madvise(guarded, 8 * P, 16)
read_only = anon(2)
ctypes.string_at(read_only, 1)       # the zero page
"#;

fn dump(victim: &Victim, store: &Memory, in_target: bool) -> (Space, Stats, u64) {
    let mut files = Files::default();
    let mut tracee = Tracee::seize(victim.pid()).expect("seize");
    let proc = ProcDir::open(victim.pid()).expect("it lives");
    let before = std::fs::read_dir(format!("/proc/{}/fd", victim.pid()))
        .expect("fds")
        .count();
    let options = SurveyOptions {
        allow_uprobes: false,
    };
    let mut space = survey(&proc, &tracee, &mut files, &options).expect("survey");
    let rseq = tracee.threads()[0]
        .stopped()
        .expect("stopped")
        .rseq()
        .expect("ptrace");
    let rseq = rseq.map_or(0, |conf| conf.rseq_abi_pointer);
    let mut program = Program::new();
    let questions = Space::ask(&mut program);
    let outcome = tracee.run(&program).expect("run");
    space.answer(&outcome, questions);
    let mut options = DrainOptions {
        in_target,
        next_pages: 1,
    };
    let mut tracees = [tracee];
    let mut spaces = [space];
    let stats = drain(&mut tracees, &mut spaces, store, &mut options, &mut |_| {}).expect("drain");
    let [tracee] = tracees;
    tracee.release().expect("release");
    let after = std::fs::read_dir(format!("/proc/{}/fd", victim.pid()))
        .expect("fds")
        .count();
    assert_eq!(before, after, "nothing is left in its table of descriptors");
    let [space] = spaces;
    space.write(store).expect("write");
    store.finish().expect("finish");
    (space, stats, rseq)
}

#[test]
fn what_is_written_is_what_the_process_has() {
    let victim = Victim::start(SETUP);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", victim.pid())).expect("maps");
    let mut images = Vec::new();
    for in_target in [true, false] {
        let store = Memory::new();
        let (space, stats, rseq) = dump(&victim, &store, in_target);
        let id = space.id;
        let pagemap = Pagemap::read(&store, desc::PAGEMAP, id, PAGE)
            .expect("good")
            .expect("there");
        let pages = store.open("pages-1.img").expect("open").expect("there");
        assert_eq!(pages.metadata().expect("stat").len(), pagemap.pages_len());
        assert_eq!(stats.pages_written, pagemap.pages_len() / PAGE);
        assert_eq!(stats.shared_written, 2);
        let memory = std::fs::File::open(format!("/proc/{}/mem", victim.pid())).expect("mem");
        for extent in pagemap.extents() {
            assert!(extent.flags.contains(PageFlags::PRESENT));
            for page in 0..extent.nr_pages {
                let (mut theirs, mut ours) = ([0; 4096], [0; 4096]);
                memory
                    .read_exact_at(&mut theirs, extent.vaddr + page * PAGE)
                    .expect("mem");
                pages
                    .read_exact_at(&mut ours, extent.offset + page * PAGE)
                    .expect("image");
                let at = extent.vaddr + page * PAGE;
                // The kernel writes the number of the processor there when it likes.
                if (at..at + PAGE).contains(&rseq) {
                    let area = usize::try_from(rseq - at).expect("within a page");
                    theirs[area..area + 32].copy_from_slice(&ours[area..area + 32]);
                }
                let differ = theirs.iter().zip(&ours).position(|(a, b)| a != b);
                assert_eq!(
                    differ.map(|i| (i, theirs[i], ours[i])),
                    None,
                    "page {at:x}\n{maps}"
                );
            }
        }
        check_entries(&space, &maps);
        images.push((space, pagemap));
    }
    assert_eq!(images[0].0.mm.vmas, images[1].0.mm.vmas);
    // A page or two of the vdso and the stack may differ in the first visit: none here.
    assert_eq!(images[0].1.pages_len(), images[1].1.pages_len());
}

fn check_entries(space: &Space, maps: &str) {
    let mm = &space.mm;
    let guards: Vec<&pb::VmaEntry> = mm.vmas.iter().filter(|vma| vma.status == 1 << 16).collect();
    assert_eq!(guards.len(), 1);
    assert_eq!(guards[0].end - guards[0].start, PAGE);
    // vvar and vvar_vclock are one.
    assert_eq!(mm.vmas.len(), maps.lines().count() - 1 + guards.len());
    if maps.contains("[anon:my memory]") {
        assert_eq!(space.ext.vma_names[0].name, b"my memory");
    }
    assert!(mm.mm_brk >= mm.mm_start_brk && mm.mm_start_brk != 0);
    assert_eq!(mm.thp_disabled, Some(false));
    assert_eq!(mm.mm_saved_auxv.len() % 2, 0);
    let shared: Vec<_> = mm
        .vmas
        .iter()
        .filter(|vma| vma.status & 1 << 8 != 0)
        .collect();
    assert_eq!(shared.len(), 1);
    assert!(mm.vmas.iter().any(|vma| vma.madv == Some(1 << 16)));
}

/// A process without privileges, with a limit on file size that its image exceeds, and one without
/// a free descriptor: the driver writes what it cannot.
#[test]
fn what_a_process_may_not_do_is_done_for_it() {
    for hindrance in [
        "os.setgid(65534); os.setuid(65534)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
    ] {
        let victim = Victim::start(&format!("{SETUP}\nimport resource\n{hindrance}\n"));
        let store = Memory::new();
        let (space, stats, _) = dump(&victim, &store, true);
        let pagemap = Pagemap::read(&store, desc::PAGEMAP, space.id, PAGE);
        let pagemap = pagemap.expect("good").expect("there");
        assert_eq!(stats.pages_written, pagemap.pages_len() / PAGE);
        let pages = store.open("pages-1.img").expect("open").expect("there");
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut &pages, &mut all).expect("image");
        assert_eq!(all.len() as u64, pagemap.pages_len());
        let starts: std::collections::BTreeSet<&[u8]> = all
            .chunks(4096)
            .filter_map(|page| page.split(|byte| *byte == 0).next())
            .collect();
        for page in (0..600).step_by(2) {
            let text = format!("page {page}");
            assert!(starts.contains(text.as_bytes()), "{text} with {hindrance}");
        }
        assert!(starts.contains(&b"PROT_NONE with data"[..]));
    }
}
