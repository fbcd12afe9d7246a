//! What is in a map: out of it, and into another.
//!
//! Elements come in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), or one by one where a type has none. Values of queues
//! and stacks can only be taken out, so they are, and put back: by a process of its own, which does so even if the driver is
//! killed meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Ret, Site, Sysno, sheltered};
use nix::errno::Errno;

use crate::call::{Attributes, Command, element, word};
use crate::shape::{Kind, Shape};

/// What the kernel answers where a type has no batches: `ENOTSUPP`.
const ENOTSUPP: i32 = 524;
/// Elements in a batch.
const BATCH: u32 = 4096;
/// Bytes of memory for a batch.
const MEMORY: usize = 16 << 20;

/// How often elements are given to a map that has no memory for them, without any being taken. One without preallocation
/// takes it from a small reserve, and the kernel fills that up in an interrupt: on some machines with the next tick only.
const TRIES: u32 = 100;
const TICK: Duration = Duration::from_millis(10);

/// All keys, and all values in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) keys: Vec<u8>,
    pub(crate) values: Vec<u8>,
    pub(crate) count: u32,
}

impl Content {
    /// The values of a map of maps: ids, each once.
    pub(crate) fn ids(&self) -> BTreeSet<u32> {
        self.values.chunks(4).map(|id| word(id, 0)).collect()
    }

    /// The same for another number of CPUs.
    pub(crate) fn for_cpus(mut self, old: u32, new: u32) -> Result<Self> {
        let each = self.values.len() / (self.count.max(1) * old.max(1)) as usize;
        if old == new || self.count == 0 || each == 0 {
            return Ok(self);
        }
        let mut values = Vec::with_capacity(each * (new * self.count) as usize);
        for element in self.values.chunks(each * old as usize) {
            let kept = element.len().min(each * new as usize);
            if element[kept..].iter().any(|byte| *byte != 0) {
                return Err(Error::unsupported(
                    format!("a BPF map has values of {old} CPUs, and there are {new} here"),
                    "restore on a machine with as many",
                ));
            }
            values.extend_from_slice(&element[..kept]);
            values.resize(values.len() + each * new as usize - kept, 0);
        }
        self.values = values;
        Ok(self)
    }

    /// The same with other values in their places.
    pub(crate) fn with_values(&self, new: impl Fn(u32) -> Result<i32>) -> Result<Self> {
        let values = self
            .values
            .chunks(4)
            .map(|id| Ok(new(word(id, 0))?.to_ne_bytes()));
        let values = values.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            values: values.concat(),
            ..self.clone()
        })
    }
}

/// Bytes of a value as the kernel gives it.
pub(crate) fn value_size(shape: &Shape, cpus: u32) -> Result<usize> {
    let size = shape.entry.value_size as usize;
    Ok(match shape.kind()? {
        Kind::PerCpu => size.next_multiple_of(8) * cpus as usize,
        _ => size,
    })
}

/// CPUs that there may be on this machine: so many values has an element of a per-cpu map.
pub(crate) fn cpus() -> Result<u32> {
    let path = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(path).map_err(Error::io("read(/sys/devices/system/cpu)"))?;
    let last = text.trim().rsplit([',', '-']).next();
    let last: Option<u32> = last.and_then(|last| last.parse().ok());
    last.map(|last| last + 1)
        .ok_or_else(|| Error::corrupt(path, "no list of CPUs"))
}

/// Reads all elements of an open map.
pub(crate) fn read(map: i32, shape: &Shape, cpus: u32) -> Result<Content> {
    match shape.kind()? {
        Kind::Pairs | Kind::PerCpu | Kind::Maps => {
            let size = value_size(shape, cpus)?;
            match batches(map, shape, size)? {
                Some(content) => Ok(content),
                None => one_by_one(map, shape, size),
            }
        }
        Kind::Queue => queue(map, shape),
        Kind::Stack => stack(map, shape),
        Kind::Ring => ring(map, shape),
    }
}

fn batches(map: i32, shape: &Shape, value_size: usize) -> Result<Option<Content>> {
    let key_size = shape.entry.key_size as usize;
    let mut content = Content::default();
    let most = u32::try_from(MEMORY / (key_size + value_size)).unwrap_or(1);
    let mut at_once = BATCH.min(most).max(1);
    let mut place: Option<Vec<u8>> = None;
    loop {
        let mut program = Program::new();
        let mut attributes = Attributes::new(56).word(32, at_once).fd(36, map);
        if let Some(place) = &place {
            let place = program.bytes(place.as_slice());
            attributes = attributes.pointer(0, place);
        }
        let next = program.room(key_size.max(8));
        let keys = program.room(key_size * at_once as usize);
        let values = program.room(value_size * at_once as usize);
        let attributes = attributes
            .pointer(8, next)
            .pointer(16, keys)
            .pointer(24, values);
        let (ret, count) = attributes.call(&mut program, Command::LookupBatch);
        program.tolerate();
        let outcome = Local.run(&program)?;
        let answer = outcome.get(ret);
        match answer {
            Ok(_) | Err(Errno::ENOENT) => {}
            // One bucket has more than that.
            Err(Errno::ENOSPC) if at_once < shape.entry.max_entries => {
                at_once = at_once.saturating_mul(4).min(shape.entry.max_entries);
                continue;
            }
            Err(Errno::EINVAL) if place.is_none() => return Ok(None),
            Err(errno) if unsupported(&outcome, ret) => {
                tracing::debug!(%errno, "no batches");
                return Ok(None);
            }
            Err(errno) => return Err(Error::kernel("bpf(BPF_MAP_LOOKUP_BATCH)")(errno)),
        }
        let count = word(outcome.bytes(count), 32);
        let part = |bytes: &[u8], size: usize| {
            bytes
                .get(..size * count as usize)
                .unwrap_or_default()
                .to_vec()
        };
        content.keys.extend(part(outcome.bytes(keys), key_size));
        content
            .values
            .extend(part(outcome.bytes(values), value_size));
        content.count += count;
        if answer.is_err() {
            return Ok(Some(content));
        }
        place = Some(outcome.bytes(next).to_vec());
    }
}

fn unsupported(outcome: &criu_tracee::Outcome, ret: Ret) -> bool {
    let value = outcome.value(ret);
    value == -i64::from(ENOTSUPP) || value == -(Errno::EOPNOTSUPP as i64)
}

fn one_by_one(map: i32, shape: &Shape, value_size: usize) -> Result<Content> {
    let key_size = shape.entry.key_size as usize;
    let mut content = Content::default();
    let mut last: Option<Vec<u8>> = None;
    while content.count <= shape.entry.max_entries {
        let mut program = Program::new();
        let key = last.as_ref().map(|key| program.bytes(key.as_slice()));
        let next = program.room(key_size);
        let (found, _) = element(map, key, Some(next)).call(&mut program, Command::NextKey);
        program.tolerate();
        let value = program.room(value_size);
        let (looked, _) = element(map, Some(next), Some(value)).call(&mut program, Command::Lookup);
        program.tolerate();
        let outcome = Local.run(&program)?;
        match outcome.get(found) {
            Ok(_) => {}
            Err(Errno::ENOENT) => break,
            Err(errno) => return Err(Error::kernel("bpf(BPF_MAP_GET_NEXT_KEY)")(errno)),
        }
        let next = outcome.bytes(next).to_vec();
        match outcome.get(looked) {
            Ok(_) => {
                content.keys.extend_from_slice(&next);
                content.values.extend_from_slice(outcome.bytes(value));
                content.count += 1;
            }
            // An array of maps has gaps.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Error::kernel("bpf(BPF_MAP_LOOKUP_ELEM)")(errno)),
        }
        last = Some(next);
    }
    Ok(content)
}

/// The next value, which stays where it is; `None` if there is none.
fn peek(map: i32, size: usize) -> Result<Option<Vec<u8>>> {
    let mut program = Program::new();
    let value = program.room(size);
    let (ret, _) = element(map, None, Some(value)).call(&mut program, Command::Lookup);
    program.tolerate();
    let outcome = Local.run(&program)?;
    match outcome.get(ret) {
        Ok(_) => Ok(Some(outcome.bytes(value).to_vec())),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::kernel("bpf(BPF_MAP_LOOKUP_ELEM)")(errno)),
    }
}

fn cannot_take(shape: &Shape) -> Error {
    let name = String::from_utf8_lossy(&shape.entry.map_name).into_owned();
    Error::unsupported(
        format!(
            "the BPF map \"{name}\" is frozen, so its values can only be read one after the other, and not put back"
        ),
        "empty it before it is frozen",
    )
}

fn queue(map: i32, shape: &Shape) -> Result<Content> {
    borrow(map, shape, false)
}

/// The lowest value first: in this order they are put back.
fn stack(map: i32, shape: &Shape) -> Result<Content> {
    borrow(map, shape, true)
}

/// Takes out all values and puts them back, last ones first if `reversed`: in a process that goes on if this one is killed.
fn borrow(map: i32, shape: &Shape, reversed: bool) -> Result<Content> {
    let size = shape.entry.value_size as usize;
    if peek(map, size)?.is_none() {
        return Ok(Content::default());
    }
    let answer = sheltered(|| {
        let (mut all, taken) = take_all(map, size);
        if reversed {
            all.reverse();
        }
        let back = put_all(&mut Local, map, &all);
        let errno = taken.err().or(back.err().and_then(|error| error.errno()));
        let errno = errno.map_or(0, |errno| errno as i32).to_ne_bytes();
        [&errno[..], &all.concat()].concat()
    })?;
    let (errno, values) = answer.split_at(4);
    let count = u32::try_from(values.len() / size).unwrap_or(u32::MAX);
    match Errno::from_raw(word(errno, 0).cast_signed()) {
        Errno::UnknownErrno => Ok(Content {
            keys: Vec::new(),
            values: values.to_vec(),
            count,
        }),
        Errno::EPERM if count == 0 => Err(cannot_take(shape)),
        errno => Err(Error::kernel("bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM)")(errno)),
    }
}

/// Takes out all values, and says what went wrong.
fn take_all(map: i32, size: usize) -> (Vec<Vec<u8>>, Result<(), Errno>) {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut program = Program::new();
        let value = program.room(size);
        let take = element(map, None, Some(value));
        let (ret, _) = take.call(&mut program, Command::LookupAndDelete);
        program.tolerate();
        let Ok(outcome) = Local.run(&program) else {
            return (all, Err(Errno::EIO));
        };
        match outcome.get(ret) {
            Ok(_) => all.push(outcome.bytes(value).to_vec()),
            Err(Errno::ENOENT) => return (all, Ok(())),
            Err(errno) => return (all, Err(errno)),
        }
    }
}

fn put_all(site: &mut dyn Site, map: i32, values: &[Vec<u8>]) -> Result<()> {
    for part in values.chunks(BATCH as usize) {
        let mut program = Program::new();
        for value in part {
            let value = program.bytes(value.as_slice());
            element(map, None, Some(value)).call(&mut program, Command::Update);
        }
        site.run(&program)?;
    }
    Ok(())
}

/// Only programs write records. A ring without unread ones is as good as a new one.
fn ring(map: i32, shape: &Shape) -> Result<Content> {
    const POLLIN: u16 = 1;
    let mut program = Program::new();
    let mut polled = map.to_ne_bytes().to_vec();
    polled.extend_from_slice(&POLLIN.to_ne_bytes());
    polled.extend_from_slice(&[0; 2]);
    let polled = program.in_out(polled);
    let at_once = program.bytes([0; 16]);
    let args = [polled.into(), 1.into(), at_once.into(), 0.into(), 0.into()];
    let ready = program.call(Sysno::ppoll, args);
    if Local.run(&program)?.value(ready) == 0 {
        return Ok(Content::default());
    }
    let name = String::from_utf8_lossy(&shape.entry.map_name).into_owned();
    Err(Error::unsupported(
        format!("the BPF ring buffer \"{name}\" has records that nobody has read"),
        "let its reader catch up before the dump",
    ))
}

/// Puts elements into a new map. Values of a map of maps are descriptors by then.
pub(crate) fn write(
    site: &mut dyn Site,
    map: i32,
    shape: &Shape,
    content: &Content,
    cpus: u32,
) -> Result<()> {
    if content.count == 0 {
        return Ok(());
    }
    let key_size = shape.entry.key_size as usize;
    let count = content.count as usize;
    let value_size = value_size(shape, cpus)?;
    let corrupt = || {
        Error::corrupt(
            "bpfmap-data.img",
            "keys and values of other sizes than the map's",
        )
    };
    if content.keys.len() != key_size * count || content.values.len() != value_size * count {
        return Err(corrupt());
    }
    if key_size == 0 {
        let values: Vec<Vec<u8>> = content
            .values
            .chunks(value_size)
            .map(<[u8]>::to_vec)
            .collect();
        return put_all(site, map, &values);
    }
    let at_once = (MEMORY / (key_size + value_size)).clamp(1, BATCH as usize);
    let keys = content.keys.chunks(key_size * at_once);
    let values = content.values.chunks(value_size * at_once);
    let mut batched = shape.kind()? != Kind::Maps;
    for (keys, values) in keys.zip(values) {
        batched = batched && write_batch(site, map, keys, values, keys.len() / key_size)?;
        if !batched {
            let mut program = Program::new();
            for (key, value) in keys.chunks(key_size).zip(values.chunks(value_size)) {
                let (key, value) = (program.bytes(key), program.bytes(value));
                element(map, Some(key), Some(value)).call(&mut program, Command::Update);
            }
            site.run(&program)?;
        }
    }
    Ok(())
}

/// Whether the type has batches; then the elements are there.
fn write_batch(
    site: &mut dyn Site,
    map: i32,
    mut keys: &[u8],
    mut values: &[u8],
    mut count: usize,
) -> Result<bool> {
    let mut tries = 0;
    loop {
        let mut program = Program::new();
        let (key, value) = (program.bytes(keys), program.bytes(values));
        let attributes = Attributes::new(56)
            .fd(36, map)
            .pointer(16, key)
            .pointer(24, value)
            .word(32, u32::try_from(count).unwrap_or(u32::MAX));
        let (ret, answer) = attributes.call(&mut program, Command::UpdateBatch);
        program.tolerate();
        let outcome = site.run(&program)?;
        match outcome.get(ret) {
            Ok(_) => return Ok(true),
            Err(Errno::EINVAL) => return Ok(false),
            Err(_) if unsupported(&outcome, ret) => return Ok(false),
            Err(Errno::ENOMEM) if tries < TRIES => {
                // Nothing of it is there yet if the count is still ours.
                let done = word(outcome.bytes(answer), 32) as usize;
                let done = if done < count { done } else { 0 };
                tries = if done > 0 { 0 } else { tries + 1 };
                keys = &keys[keys.len() / count * done..];
                values = &values[values.len() / count * done..];
                count -= done;
                std::thread::sleep(TICK);
            }
            Err(errno) => return Err(Error::kernel("bpf(BPF_MAP_UPDATE_BATCH)")(errno)),
        }
    }
}
