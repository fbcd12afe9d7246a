//! BPF maps: bpf(2).

use std::os::fd::OwnedFd;

use zdtm::{Case, Child, Result, check, check_eq, fill, verify};

use super::call::{self, New, delete, freeze, keys, lookup, take, update};

pub(crate) const CASES: &[Case] = &[
    Case::new("hash", hash),
    Case::new("array", array),
    Case::new("hash-large", large),
    Case::new("lru", lru).refused("CRIU has hash and array only"),
    Case::new("percpu", percpu).refused("CRIU has hash and array only"),
    Case::new("lpm-trie", lpm_trie).refused("CRIU has hash and array only"),
    Case::new("queue", queue).refused("CRIU has hash and array only"),
    Case::new("stack", stack).refused("CRIU has hash and array only"),
    Case::new("ringbuf", ringbuf).refused("CRIU has hash and array only"),
    Case::new("shared", shared),
    Case::new("readonly-fd", readonly),
    Case::new("prog-array", prog_array).refused("programs cannot be read back"),
];

fn text(size: usize, seed: u64) -> Vec<u8> {
    let mut text = vec![0; size];
    fill(&mut text, seed);
    text
}

fn key(number: u32) -> [u8; 4] {
    number.to_ne_bytes()
}

/// Frozen, with a name and flags.
fn hash() -> Result<()> {
    let map = New {
        kind: call::HASH,
        key: 4,
        value: 24,
        entries: 64,
        flags: call::NO_PREALLOC | call::RDONLY_PROG | call::NUMA_NODE,
        name: "zdtm_hash",
        ..New::default()
    };
    let map = map.make()?;
    for number in 0..32 {
        update(&map, &key(number * number), &text(24, number.into()))?;
    }
    delete(&map, &key(25))?;
    freeze(&map)?;
    zdtm::checkpoint()?;
    for number in (0..32).filter(|number| *number != 5) {
        verify(&lookup(&map, &key(number * number), 24)?, number.into())?;
    }
    check_eq!(keys(&map, 4).len(), 31);
    check!(update(&map, &key(1), &text(24, 1)).is_err(), "it is frozen");
    check_eq!(call::fdinfo(&map, "frozen")?, "1");
    check_eq!(call::fdinfo(&map, "max_entries")?, "64");
    check_eq!(call::fdinfo(&map, "map_flags")?, "0x85");
    Ok(())
}

/// Every element is there from the start.
fn array() -> Result<()> {
    let map = New {
        kind: call::ARRAY,
        key: 4,
        value: 13,
        entries: 100,
        name: "zdtm_array",
        ..New::default()
    };
    let map = map.make()?;
    for number in 0..50 {
        update(&map, &key(number), &text(13, number.into()))?;
    }
    zdtm::checkpoint()?;
    for number in 0..50 {
        verify(&lookup(&map, &key(number), 13)?, number.into())?;
    }
    check_eq!(lookup(&map, &key(99), 13)?, [0; 13]);
    check_eq!(call::fdinfo(&map, "frozen")?, "0");
    Ok(update(&map, &key(99), &[1; 13])?)
}

/// Many batches, and large values.
fn large() -> Result<()> {
    let map = New {
        kind: call::HASH,
        key: 8,
        value: 2000,
        entries: 20_000,
        ..New::default()
    };
    let map = map.make()?;
    for number in 0..20_000_u64 {
        update(&map, &number.to_ne_bytes(), &text(2000, number))?;
    }
    zdtm::checkpoint()?;
    for number in 0..20_000_u64 {
        verify(&lookup(&map, &number.to_ne_bytes(), 2000)?, number)?;
    }
    check_eq!(keys(&map, 8).len(), 20_000);
    Ok(())
}

/// No more elements than it may have: nothing was evicted.
fn lru() -> Result<()> {
    let map = New {
        kind: call::LRU_HASH,
        key: 4,
        value: 8,
        entries: 512,
        ..New::default()
    };
    let map = map.make()?;
    for number in 0..64_u32 {
        update(&map, &key(number), &u64::from(number).to_ne_bytes())?;
    }
    zdtm::checkpoint()?;
    for number in 0..64_u32 {
        check_eq!(
            lookup(&map, &key(number), 8)?,
            u64::from(number).to_ne_bytes()
        );
    }
    Ok(())
}

/// Each CPU has a value of its own, of a size that is no multiple of 8.
fn percpu() -> Result<()> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible
        .trim()
        .rsplit(['-', ','])
        .next()
        .unwrap_or_default();
    let cpus = last.parse::<usize>()? + 1;
    let new = |kind, name| New {
        kind,
        key: 4,
        value: 12,
        entries: 16,
        name,
        ..New::default()
    };
    let value = |seed| {
        let mut value = text(16 * cpus, seed);
        for one in value.chunks_mut(16) {
            one[12..].fill(0);
        }
        value
    };
    let hash = new(call::PERCPU_HASH, "zdtm_hash").make()?;
    let array = new(call::PERCPU_ARRAY, "zdtm_array").make()?;
    for number in 0..10 {
        update(&hash, &key(number), &value(number.into()))?;
        update(&array, &key(number), &value(100 + u64::from(number)))?;
    }
    zdtm::checkpoint()?;
    for number in 0..10 {
        let ends = |found: Vec<u8>, seed| {
            let wanted = value(seed);
            let pairs = found.chunks(16).zip(wanted.chunks(16));
            pairs
                .into_iter()
                .all(|(found, wanted)| found[..12] == wanted[..12])
        };
        check!(ends(lookup(&hash, &key(number), 16 * cpus)?, number.into()));
        check!(ends(
            lookup(&array, &key(number), 16 * cpus)?,
            100 + u64::from(number)
        ));
    }
    Ok(())
}

/// Prefixes of addresses.
fn lpm_trie() -> Result<()> {
    let map = New {
        kind: call::LPM_TRIE,
        key: 8,
        value: 4,
        entries: 16,
        flags: call::NO_PREALLOC,
        ..New::default()
    };
    let map = map.make()?;
    let prefix = |length: u32, address: [u8; 4]| [length.to_ne_bytes(), address].concat();
    update(&map, &prefix(8, [10, 0, 0, 0]), &[8; 4])?;
    update(&map, &prefix(24, [10, 1, 2, 0]), &[24; 4])?;
    update(&map, &prefix(0, [0; 4]), &[0; 4])?;
    zdtm::checkpoint()?;
    let route = |address| lookup(&map, &prefix(32, address), 4);
    check_eq!(route([10, 1, 2, 3])?, [24; 4]);
    check_eq!(route([10, 9, 9, 9])?, [8; 4]);
    check_eq!(route([192, 0, 2, 1])?, [0; 4]);
    check_eq!(keys(&map, 8).len(), 3);
    Ok(())
}

fn values_in_order(kind: u32) -> Result<OwnedFd> {
    let map = New {
        kind,
        value: 10,
        entries: 8,
        ..New::default()
    };
    let map = map.make()?;
    for seed in 0..8 {
        update(&map, &[], &text(10, seed))?;
    }
    check!(update(&map, &[], &text(10, 9)).is_err(), "it is full");
    Ok(map)
}

/// First in, first out. It is full, and it has begun in the middle.
fn queue() -> Result<()> {
    let map = values_in_order(call::QUEUE)?;
    for seed in 0..3 {
        verify(&take(&map, 10)?, seed)?;
        update(&map, &[], &text(10, seed + 8))?;
    }
    let empty = New {
        kind: call::QUEUE,
        value: 4,
        entries: 4,
        ..New::default()
    };
    let empty = empty.make()?;
    zdtm::checkpoint()?;
    for seed in 3..11 {
        verify(&take(&map, 10)?, seed)?;
    }
    check!(take(&map, 10).is_err(), "no more");
    check!(take(&empty, 4).is_err(), "none");
    Ok(())
}

/// Last in, first out.
fn stack() -> Result<()> {
    let map = values_in_order(call::STACK)?;
    verify(&take(&map, 10)?, 7)?;
    zdtm::checkpoint()?;
    for seed in (0..7).rev() {
        verify(&take(&map, 10)?, seed)?;
    }
    check!(take(&map, 10).is_err(), "no more");
    Ok(())
}

/// Nothing is unread in it.
fn ringbuf() -> Result<()> {
    let entries = u32::try_from(zdtm::page_size())?;
    let map = New {
        kind: call::RINGBUF,
        entries,
        name: "zdtm_ring",
        ..New::default()
    };
    let map = map.make()?;
    zdtm::checkpoint()?;
    check_eq!(call::fdinfo(&map, "map_type")?, "27");
    check_eq!(call::fdinfo(&map, "max_entries")?, entries.to_string());
    Ok(())
}

/// Opened twice, and in two processes: all see one map.
fn shared() -> Result<()> {
    let map = New {
        kind: call::HASH,
        key: 4,
        value: 4,
        entries: 8,
        ..New::default()
    };
    let map = map.make()?;
    update(&map, &key(1), &key(11))?;
    let again = call::by_id(call::id(&map)?, 0)?;
    let copy = again.try_clone()?;
    let child = Child::spawn("child", move || {
        let own = call::by_id(call::id(&copy)?, 0)?;
        drop(copy);
        Child::checkpoint();
        check_eq!(lookup(&own, &key(1), 4)?, key(11));
        Ok(update(&own, &key(2), &key(22))?)
    })?;
    zdtm::checkpoint()?;
    check_eq!(call::id(&map)?, call::id(&again)?);
    child.finish()?;
    check_eq!(lookup(&map, &key(2), 4)?, key(22));
    check_eq!(lookup(&again, &key(2), 4)?, key(22));
    Ok(())
}

/// A descriptor for reading only.
fn readonly() -> Result<()> {
    let map = New {
        kind: call::ARRAY,
        key: 4,
        value: 4,
        entries: 2,
        ..New::default()
    };
    let map = map.make()?;
    update(&map, &key(1), &key(7))?;
    let reader = call::by_id(call::id(&map)?, 1 << 3)?;
    drop(map);
    check!(update(&reader, &key(1), &key(8)).is_err());
    zdtm::checkpoint()?;
    check_eq!(lookup(&reader, &key(1), 4)?, key(7));
    check!(
        update(&reader, &key(1), &key(8)).is_err(),
        "it was for reading"
    );
    Ok(())
}

/// What it holds are programs.
fn prog_array() -> Result<()> {
    let map = New {
        kind: 3,
        key: 4,
        value: 4,
        entries: 2,
        name: "zdtm_jumps",
        ..New::default()
    };
    let map = map.make()?;
    zdtm::checkpoint()?;
    check_eq!(call::fdinfo(&map, "map_type")?, "3");
    Ok(())
}
