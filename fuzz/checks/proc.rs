//! Any bytes as any text of /proc: no panic, and what is accepted makes sense.

use criu_proc::{
    Fdinfo, Limits, NsLink, ParseError, SignalMask, Smaps, Stat, Status, Vmas, WordSize,
};

/// Gives the bytes to every parser.
pub(crate) fn run(data: &[u8]) {
    for vma in Vmas::new(data) {
        if let Some(vma) = told(vma) {
            assert!(vma.start < vma.end && vma.size() == vma.end - vma.start);
            assert_eq!(vma.clone().into_owned(), vma);
        }
    }
    for smap in Smaps::new(data) {
        if let Some(smap) = told(smap) {
            assert!(smap.flags.codes().count() <= data.len());
            assert_eq!(smap.clone().into_owned(), smap);
        }
    }
    if let Some(info) = told(Fdinfo::parse(data)) {
        fdinfo(&info);
    }
    if let Some(limits) = told(Limits::parse(data)) {
        for (resource, limit) in limits.iter() {
            assert_eq!(limits.get(resource), limit);
        }
    }
    if let Some(mounts) = told(criu_proc::mountinfo(data)) {
        for mount in mounts {
            let _ = mount.super_options().count();
        }
    }
    for size in [WordSize::Four, WordSize::Eight] {
        if let Some(words) = told(criu_proc::auxv(data, size)) {
            assert!(words.len() <= data.len());
        }
    }
    if let Some(stat) = told(Stat::parse(data)) {
        let _ = stat.tty();
    }
    for page in criu_proc::page_entries(data) {
        let _ = (page.frame(), page.swap_slot(), page.guard());
    }
    if let Some(mask) = SignalMask::parse(data) {
        let _ = (
            mask.to_u64(),
            mask.contains(1),
            mask.contains(64),
            mask.contains(u32::MAX),
        );
    }
    told(Status::parse(data));
    told(criu_proc::cgroups(data));
    told(criu_proc::id_map(data));
    told(criu_proc::locks(data));
    told(criu_proc::syscall(data));
    told(criu_proc::timers(data));
    told(criu_proc::autogroup(data));
    told(criu_proc::timens_offsets(data));
    told(criu_proc::pids("children", data));
    told(criu_proc::decs::<u64>("decs", data));
    told(criu_proc::dec::<i32>("dec", data));
    told(criu_proc::hex::<u64>("hex", data));
    told(criu_proc::oct::<u32>("oct", data));
    told(NsLink::parse(data));
    let _ = criu_proc::wchan(data);
    let _ = criu_proc::strings(data).len();
    let _ = criu_proc::status_field(data, "Name");
}

/// A refusal is an answer, and can be printed.
fn told<T>(outcome: Result<T, ParseError>) -> Option<T> {
    outcome.map_err(|error| error.to_string()).ok()
}

/// What kinds ask of their own lines.
fn fdinfo(info: &Fdinfo) {
    for key in [
        "eventfd-count",
        "tfd",
        "clockid",
        "sigmask",
        "inotify wd",
        "lock",
        "Pid",
        "ticks",
    ] {
        let _ = info.value(key);
        told(info.dec::<u64>(key));
        told(info.int::<i64>(key));
        told(info.hex::<u64>(key));
        told(info.oct::<u32>(key));
        for line in info.lines_of(key) {
            for name in ["events", "data", "pos", "ino", "sdev", "mask", ""] {
                let _ = line.field(name);
                told(line.dec::<u64>(name));
                told(line.int::<i64>(name));
                told(line.hex::<u64>(name));
                told(line.oct::<u32>(name));
            }
            let _ = line.error("something else").to_string();
        }
    }
}
