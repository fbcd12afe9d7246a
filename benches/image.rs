//! Images in memory: entries taken apart and put together. Left out: reading and writing files.
#![allow(
    missing_docs,
    reason = "criterion's macros make public items without documentation"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use criu_image::pages::{PageFlags, Pagemap, PagemapWriter};
use criu_image::{
    Bytes, ImageReader, ImageWriter, Memory, Result, Store as _, desc, parse_any, pb,
};

const PAGE: u64 = 4096;
const RANGES: u64 = 10_000;

/// A task with AVX-512 registers and 64 signal actions.
fn core() -> pb::CoreEntry {
    let xsave = pb::UserX86XsaveEntry {
        xstate_bv: 0xe7,
        ymmh_space: (0..64).collect(),
        opmask_reg: (0..8).collect(),
        zmm_upper: (0..64).collect(),
        hi16_zmm: (0..128).collect(),
        ..Default::default()
    };
    let fpregs = pb::UserX86FpregsEntry {
        st_space: (0..32).collect(),
        xmm_space: (0..64).map(|word| word << 24).collect(),
        xsave: Some(xsave),
        ..Default::default()
    };
    let gpregs = pb::UserX86RegsEntry {
        ip: 0x7f00_1234_5678,
        sp: 0x7fff_1234_5678,
        fs_base: 0x7f00_0000_0740,
        ..Default::default()
    };
    let action = pb::SaEntry {
        sigaction: 0x5555_5555_1000,
        flags: 0x1400_0000,
        restorer: 0x7f00_0004_2520,
        mask: 0,
        ..Default::default()
    };
    pb::CoreEntry {
        mtype: pb::core_entry::March::X8664.into(),
        thread_info: Some(pb::ThreadInfoX86 {
            clear_tid_addr: 0x7f00_0000_0a10,
            gpregs,
            fpregs,
            ..Default::default()
        }),
        tc: Some(pb::TaskCoreEntry {
            task_state: 1,
            comm: b"benchmark".to_vec(),
            sigactions: vec![action; 64],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn image(entry: &pb::CoreEntry) -> Result<Vec<u8>> {
    let mut writer = ImageWriter::new(desc::CORE, "core-1.img", Vec::new())?;
    writer.write(entry)?;
    writer.finish()
}

fn decode(bytes: Bytes) -> Result<pb::CoreEntry> {
    let reader = ImageReader::new(desc::CORE, "core-1.img", bytes)?;
    Ok(reader.read_only::<pb::CoreEntry>()?.message)
}

/// Every second page is there.
fn pagemap() -> Result<Memory> {
    let store = Memory::new();
    let mut writer = PagemapWriter::new(desc::PAGEMAP, 1u32, 1.into(), PAGE)?;
    for range in 0..RANGES {
        writer.push(2 * range * PAGE, 1, PageFlags::PRESENT)?;
    }
    writer.finish(&store)?;
    store.finish()?;
    Ok(store)
}

fn cores(criterion: &mut Criterion) {
    let entry = core();
    let bytes = Bytes::from(image(&entry).expect("a valid entry"));
    let mut group = criterion.benchmark_group("image");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode/core", |b| b.iter(|| image(black_box(&entry))));
    group.bench_function("decode/core", |b| {
        b.iter(|| decode(black_box(bytes.clone())))
    });
    group.bench_function("parse_any/core", |b| {
        b.iter(|| parse_any("core-1.img", black_box(&bytes)))
    });
    group.finish();
}

fn pagemaps(criterion: &mut Criterion) {
    let store = pagemap().expect("ranges in order");
    let mut group = criterion.benchmark_group("image");
    group.throughput(Throughput::Elements(RANGES));
    group.bench_function("encode/pagemap", |b| b.iter(pagemap));
    group.bench_function("decode/pagemap", |b| {
        b.iter(|| Pagemap::read(black_box(&store), desc::PAGEMAP, 1u32, PAGE));
    });
    group.finish();
}

criterion_group!(benches, cores, pagemaps);
criterion_main!(benches);
