//! BPF maps that hold maps.

use std::os::fd::OwnedFd;

use zdtm::{Case, Result, check, check_eq};

use super::call::{self, New, keys, lookup, update};

pub(crate) const CASES: &[Case] = &[
    Case::new("hash-of-maps", hash_of_maps).refused("CRIU has hash and array only"),
    Case::new("array-of-maps", array_of_maps).refused("CRIU has hash and array only"),
    Case::new("maps-hidden", hidden).refused("CRIU has hash and array only"),
    Case::new("maps-none", none).refused("what it may hold is told nowhere"),
];

fn inner(name: &str, value: u32) -> Result<OwnedFd> {
    let map = New {
        kind: call::HASH,
        key: 4,
        value: 4,
        entries: 16,
        name,
        ..New::default()
    };
    let map = map.make()?;
    update(&map, &[0; 4], &value.to_ne_bytes())?;
    Ok(map)
}

fn outer(kind: u32, inner: &OwnedFd) -> Result<OwnedFd> {
    let map = New {
        kind,
        key: 4,
        value: 4,
        entries: 8,
        name: "zdtm_outer",
        inner: Some(inner),
        ..New::default()
    };
    map.make()
}

fn put(outer: &OwnedFd, key: u32, inner: &OwnedFd) -> Result<()> {
    use std::os::fd::AsRawFd;
    Ok(update(
        outer,
        &key.to_ne_bytes(),
        &inner.as_raw_fd().to_ne_bytes(),
    )?)
}

/// The id of the map under a key.
fn get(outer: &OwnedFd, key: u32) -> Result<u32> {
    let id = lookup(outer, &key.to_ne_bytes(), 4)?;
    Ok(u32::from_ne_bytes(id.as_slice().try_into()?))
}

/// 32-bit kernels look for the elements of such an array where they are not.
fn has_arrays(outer: &OwnedFd, key: u32) -> Result<()> {
    match get(outer, key) {
        Err(_) if size_of::<usize>() == 4 => {
            zdtm::skip("arrays of maps lose elements on 32-bit kernels")
        }
        other => other.map(drop),
    }
}

/// The task has the inner maps open too, and one of them is in twice.
fn hash_of_maps() -> Result<()> {
    let (one, other) = (inner("zdtm_one", 1)?, inner("zdtm_other", 2)?);
    let outer = outer(call::HASH_OF_MAPS, &one)?;
    put(&outer, 10, &one)?;
    put(&outer, 20, &other)?;
    put(&outer, 30, &one)?;
    zdtm::checkpoint()?;
    check_eq!(keys(&outer, 4).len(), 3);
    check_eq!(get(&outer, 10)?, call::id(&one)?);
    check_eq!(get(&outer, 20)?, call::id(&other)?);
    check_eq!(get(&outer, 30)?, call::id(&one)?);
    check_eq!(lookup(&one, &[0; 4], 4)?, 1_u32.to_ne_bytes());
    check_eq!(lookup(&other, &[0; 4], 4)?, 2_u32.to_ne_bytes());
    put(&outer, 40, &other)?;
    check_eq!(get(&outer, 40)?, call::id(&other)?);
    Ok(())
}

/// Two outer maps share an inner one, and there are gaps.
fn array_of_maps() -> Result<()> {
    let (one, other) = (inner("zdtm_one", 1)?, inner("zdtm_other", 2)?);
    let (first, second) = (
        outer(call::ARRAY_OF_MAPS, &one)?,
        outer(call::ARRAY_OF_MAPS, &one)?,
    );
    put(&first, 1, &one)?;
    put(&first, 6, &other)?;
    put(&second, 0, &other)?;
    has_arrays(&first, 6)?;
    zdtm::checkpoint()?;
    check_eq!(get(&first, 1)?, call::id(&one)?);
    check_eq!(get(&first, 6)?, call::id(&other)?);
    check_eq!(get(&second, 0)?, call::id(&other)?);
    check!(get(&first, 0).is_err(), "a gap");
    update(&call::by_id(get(&second, 0)?, 0)?, &[0; 4], &[9; 4])?;
    check_eq!(lookup(&other, &[0; 4], 4)?, [9; 4]);
    Ok(())
}

/// Nobody has the inner maps open: they live because they are in there.
fn hidden() -> Result<()> {
    let (one, other) = (inner("zdtm_one", 1)?, inner("zdtm_other", 2)?);
    let (first, second) = (
        outer(call::HASH_OF_MAPS, &one)?,
        outer(call::ARRAY_OF_MAPS, &one)?,
    );
    put(&first, 10, &one)?;
    put(&first, 20, &other)?;
    put(&second, 3, &other)?;
    has_arrays(&second, 3)?;
    drop((one, other));
    zdtm::checkpoint()?;
    check!(get(&first, 10)? != get(&first, 20)?);
    check_eq!(get(&first, 20)?, get(&second, 3)?, "one map in both");
    for (key, value) in [(10, 1_u32), (20, 2)] {
        let inner = call::by_id(get(&first, key)?, 0)?;
        check_eq!(lookup(&inner, &[0; 4], 4)?, value.to_ne_bytes());
        check_eq!(call::fdinfo(&inner, "max_entries")?, "16");
    }
    Ok(())
}

/// An empty one.
fn none() -> Result<()> {
    let outer = outer(call::HASH_OF_MAPS, &inner("zdtm_like", 1)?)?;
    zdtm::checkpoint()?;
    put(&outer, 1, &inner("zdtm_new", 5)?)
}
