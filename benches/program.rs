//! Programs of 1000 calls: made, printed, run here. Left out: running them in another task, which `cargo xtask bench`
//! measures as part of the whole.
#![allow(
    missing_docs,
    reason = "criterion's macros make public items without documentation"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use criu_tracee::{Dry, Local, Program, Site, Sysno};

const CALLS: usize = 1000;

/// Event counters made, set and closed: results feed later calls, and every second call has bytes.
fn counters() -> Program {
    let mut program = Program::new();
    while program.len() < CALLS {
        let fd = program.eventfd2(0, 0);
        let value = program.bytes(7u64.to_ne_bytes());
        program.call(Sysno::write, [fd.into(), value.into(), 8u64.into()]);
        let value = program.room(8);
        program.call(Sysno::read, [fd.into(), value.into(), 8u64.into()]);
        program.close(fd);
    }
    program
}

/// The cheapest call there is.
fn nothing() -> Program {
    let mut program = Program::new();
    while program.len() < CALLS {
        program.call(Sysno::getpid, []);
    }
    program
}

fn programs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("program");
    group.throughput(Throughput::Elements(CALLS as u64));
    let (counters_made, nothing_made) = (counters(), nothing());
    group.bench_function("build/counters", |b| b.iter(counters));
    group.bench_function("dry/counters", |b| {
        b.iter(|| Dry::new().run(black_box(&counters_made)));
    });
    group.bench_function("local/counters", |b| {
        b.iter(|| Local.run(black_box(&counters_made)))
    });
    group.bench_function("local/nothing", |b| {
        b.iter(|| Local.run(black_box(&nothing_made)))
    });
    group.finish();
}

criterion_group!(benches, programs);
criterion_main!(benches);
