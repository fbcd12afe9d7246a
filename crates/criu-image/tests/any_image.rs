//! Images of every kind, made up from the schema: read and written again they are the same bytes;
//! damaged they are refused, or read as something else, but never a panic.
//!
//! Bytes are drawn from what proptest gives, so that it can make a failing image smaller.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test: it may fail, and its numbers are small"
)]
use criu_image::desc::{ALL, COMMON_MAGIC, IdForm, Layout, Prefix, SERVICE_MAGIC};
use criu_image::schema::{self, Field, Label, Type};
use criu_image::{Desc, Error, ImageId, Why, parse_any};
use proptest::prelude::*;

/// Values for fields; zeroes when used up.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        // Small numbers, sign bits and full words are all worth having.
        match self.byte() % 4 {
            0 => 0,
            1 => self.byte().into(),
            2 => !u64::from(self.byte()),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    fn times(&mut self, label: Label, depth: u8) -> u8 {
        match label {
            Label::Required => 1,
            Label::Optional => self.byte() % 2,
            Label::Repeated if depth > 3 => 0,
            Label::Repeated => self.byte() % 3,
        }
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A message as protobuf-c would write it.
fn message(name: &str, draw: &mut Draw<'_>, depth: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let message = schema::message(name).unwrap();
    let text = matches!(message.file, "inventory" | "cpuinfo");
    for field in message.fields {
        for _ in 0..draw.times(field.label, depth) {
            value(&mut out, field, draw, depth, text);
        }
    }
    out
}

fn value(out: &mut Vec<u8>, field: &Field, draw: &mut Draw<'_>, depth: u8, text: bool) {
    let key = |wire: u32| u64::from(field.number << 3 | wire);
    let number = match field.ty {
        Type::Message(name) => {
            let inner = message(name, draw, depth + 1);
            varint(out, key(2));
            varint(out, inner.len() as u64);
            return out.extend(inner);
        }
        Type::String | Type::Bytes => {
            let len = draw.byte() % 5;
            varint(out, key(2));
            varint(out, len.into());
            // The inventory and the processor have text, all others whatever the kernel lets pass.
            let mask = if field.ty == Type::String && text {
                127
            } else {
                255
            };
            return out.extend((0..len).map(|_| draw.byte() & mask));
        }
        Type::Fixed64 => {
            varint(out, key(1));
            return out.extend(draw.word().to_le_bytes());
        }
        Type::Uint64 | Type::Sint64 | Type::Int64 => draw.word(),
        Type::Uint32 | Type::Sint32 => draw.word() & 0xffff_ffff,
        Type::Int32 => draw.word() as i32 as u64,
        Type::Bool => draw.word() & 1,
        Type::Enum(name) => {
            let values = schema::enumeration(name).unwrap().values;
            values[usize::from(draw.byte()) % values.len()].0 as u64
        }
    };
    varint(out, key(0));
    varint(out, number);
}

fn framed(out: &mut Vec<u8>, raw: &[u8]) {
    out.extend((raw.len() as u32).to_le_bytes());
    out.extend(raw);
}

/// An image with its name; of the kinds whose entries have no payload.
fn image(desc: &'static Desc, draw: &mut Draw<'_>) -> (String, Vec<u8>) {
    let id = match desc.id {
        IdForm::Single => ImageId::Single,
        IdForm::Word => ImageId::from("dump"),
        _ => ImageId::Number(draw.word()),
    };
    let mut bytes = Vec::new();
    match desc.prefix {
        Prefix::Common if draw.byte() % 8 != 7 => bytes.extend(COMMON_MAGIC.to_le_bytes()),
        Prefix::Service => bytes.extend(SERVICE_MAGIC.to_le_bytes()),
        _ => {}
    }
    bytes.extend(desc.magic.to_le_bytes());
    for index in 0..draw.byte() % 4 {
        let at = usize::from(index).min(desc.messages.len() - 1);
        framed(&mut bytes, &message(desc.messages[at].name, draw, 0));
    }
    (desc.file_name(id), bytes)
}

fn plain_kinds() -> Vec<&'static Desc> {
    let plain = |desc: &&Desc| matches!(desc.layout, Layout::Entries | Layout::Headed);
    ALL.iter().copied().filter(plain).collect()
}

fn any_image() -> impl Strategy<Value = (String, Vec<u8>)> {
    let kinds = plain_kinds();
    (0..kinds.len(), prop::collection::vec(any::<u8>(), 0..600))
        .prop_map(move |(kind, bytes)| image(kinds[kind], &mut Draw(&bytes)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_image_is_written_as_it_was((name, bytes) in any_image()) {
        let parsed = parse_any(&name, &bytes).unwrap();
        prop_assert_eq!(parsed.inexact, Vec::<u64>::new());
        prop_assert_eq!(parsed.encoded, bytes);
    }

    #[test]
    fn a_cut_image_is_refused_or_shorter((name, bytes) in any_image(), cut in any::<prop::sample::Index>()) {
        let cut = &bytes[..cut.index(bytes.len())];
        match parse_any(&name, cut) {
            Ok(parsed) => prop_assert_eq!(parsed.encoded, cut),
            Err(Error::Corrupt { why: Why::Truncated { need, have, .. }, .. }) => prop_assert!(need > have),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn a_damaged_image_is_no_panic((name, mut bytes) in any_image(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(parsed) = parse_any(&name, &bytes) {
            prop_assert_eq!(parsed.inexact.is_empty(), parsed.encoded == bytes);
        }
    }

    #[test]
    fn noise_is_no_panic(kind in 0..ALL.len(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let desc = ALL[kind];
        let name = desc.file_name(if desc.id == IdForm::Single { ImageId::Single } else { ImageId::Number(1) });
        let _ = parse_any(&name, &noise);
        let mut bytes = COMMON_MAGIC.to_le_bytes().to_vec();
        bytes.extend(desc.magic.to_le_bytes());
        framed(&mut bytes, &noise);
        let _ = parse_any(&name, &bytes);
        bytes.extend(&noise);
        let _ = parse_any(&name, &bytes);
    }
}

#[test]
fn every_message_is_written_as_it_was() {
    // All fields present, whatever the draw of the tests above was.
    for (seed, desc) in plain_kinds().into_iter().enumerate() {
        let bytes: Vec<u8> = (0..4000usize).map(|i| (i * 7 + seed) as u8 | 1).collect();
        let (name, bytes) = image(desc, &mut Draw(&bytes));
        let parsed = parse_any(&name, &bytes).unwrap();
        assert!(!parsed.entries.is_empty(), "{name}");
        assert_eq!(parsed.encoded, bytes, "{name}");
    }
}
