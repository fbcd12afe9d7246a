//! Texts of /proc, parsed. Left out: the kernel's part, printing them.
#![allow(
    missing_docs,
    reason = "criterion's macros make public items without documentation"
)]

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use criu_proc::{Smaps, Stat, Status, Vmas};

const MAPPINGS: u64 = 10_000;

/// By turns anonymous, of a library, and with a name of its own.
fn line(index: u64) -> String {
    let start = 0x7f00_0000_0000 + index * 0x2000;
    let rest = match index % 3 {
        0 => "rw-p 00000000 00:00 0 ".to_owned(),
        1 => format!(
            "r-xp 00001000 fe:00 1234567{:>20}/usr/lib/x86_64-linux-gnu/libc.so.6",
            ""
        ),
        _ => format!("rw-p 00000000 00:00 0{:>26}[anon:arena]", ""),
    };
    format!("{start:x}-{:x} {rest}\n", start + 0x1000)
}

fn maps() -> String {
    (0..MAPPINGS).map(line).collect()
}

fn smaps() -> String {
    let mut text = String::new();
    for index in 0..MAPPINGS {
        text.push_str(&line(index));
        for key in [
            "Size",
            "KernelPageSize",
            "MMUPageSize",
            "Rss",
            "Pss",
            "Anonymous",
            "Swap",
            "Locked",
        ] {
            let key = format!("{key}:");
            writeln!(text, "{key:<16}{:>8} kB", 4).expect("a string takes everything");
        }
        text.push_str("VmFlags: rd wr mr mw me ac sd \n");
    }
    text
}

fn texts(criterion: &mut Criterion) {
    let (maps, smaps) = (maps(), smaps());
    let stat = include_bytes!("../crates/criu-proc/fixtures/stat");
    let status = include_bytes!("../crates/criu-proc/fixtures/status");
    assert_eq!(
        Vmas::new(maps.as_bytes()).filter_map(Result::ok).count(),
        10_000
    );
    assert_eq!(
        Smaps::new(smaps.as_bytes()).filter_map(Result::ok).count(),
        10_000
    );
    assert!(Stat::parse(stat).is_ok() && Status::parse(status).is_ok());
    let mut group = criterion.benchmark_group("proc");
    group.bench_function("parse/stat", |b| b.iter(|| Stat::parse(black_box(stat))));
    group.bench_function("parse/status", |b| {
        b.iter(|| Status::parse(black_box(status)))
    });
    group.throughput(Throughput::Elements(MAPPINGS));
    group.bench_function("parse/maps", |b| {
        b.iter(|| Vmas::new(black_box(maps.as_bytes())).count())
    });
    group.bench_function("parse/smaps", |b| {
        b.iter(|| Smaps::new(black_box(smaps.as_bytes())).count())
    });
    group.finish();
}

criterion_group!(benches, texts);
criterion_main!(benches);
