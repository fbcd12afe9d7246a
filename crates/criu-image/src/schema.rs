//! Names and numbers of all messages and fields as a table, for code that walks any message.
//!
//! Decoding to text and back works from this, and so does a check for fields that nobody knows.
//! Generated from the same `proto/` as [`pb`](crate::pb).

/// A message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Its name in `proto/`: `core_entry`.
    pub name: &'static str,
    /// The file it is in, without `.proto`.
    pub file: &'static str,
    /// Its fields by number.
    pub fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The number on the wire.
    pub number: u32,
    /// The name.
    pub name: &'static str,
    /// How often it occurs.
    pub label: Label,
    /// What it holds.
    pub ty: Type,
    /// How to show it to people.
    pub display: Display,
}

/// An enumeration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enum {
    /// Its name: `fd_types`, or `core_entry.march` when inside a message.
    pub name: &'static str,
    /// Numbers and names.
    pub values: &'static [(i32, &'static str)],
}

/// How often a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of the protobuf language")]
pub enum Label {
    Required,
    Optional,
    Repeated,
}

/// What a field holds. Only the types in use are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of the protobuf language")]
pub enum Type {
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed64,
    Bool,
    String,
    Bytes,
    Enum(&'static str),
    Message(&'static str),
}

/// How to show a field to people. The option is from `proto/`; [`schema`](self) gives it no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Display {
    /// By its type.
    Plain,
    /// In hexadecimal.
    Hex,
    /// As an IP address.
    Address,
    /// As major:minor.
    Device,
    /// As major:minor, of the old 16-bit form.
    OldDevice,
    /// As the names of bits, from the table named.
    Flags(&'static str),
    /// As a name, from the table named.
    Dict(&'static str),
    /// Through the conversion named.
    Conv(&'static str),
}

/// All messages, by name in order.
pub fn messages() -> &'static [Message] {
    table::MESSAGES
}

/// The message of this name.
pub fn message(name: &str) -> Option<&'static Message> {
    let at = table::MESSAGES
        .binary_search_by_key(&name, |m| m.name)
        .ok()?;
    table::MESSAGES.get(at)
}

/// The enumeration of this name.
pub fn enumeration(name: &str) -> Option<&'static Enum> {
    let at = table::ENUMS.binary_search_by_key(&name, |e| e.name).ok()?;
    table::ENUMS.get(at)
}

impl Message {
    /// The field with this number.
    pub fn field(&self, number: u32) -> Option<&'static Field> {
        let at = self
            .fields
            .binary_search_by_key(&number, |f| f.number)
            .ok()?;
        self.fields.get(at)
    }

    /// The field with this name.
    pub fn field_named(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}

impl Enum {
    /// The name of a value.
    pub fn value_name(&self, number: i32) -> Option<&'static str> {
        self.values
            .iter()
            .find(|(n, _)| *n == number)
            .map(|(_, name)| *name)
    }

    /// The value of a name.
    pub fn value(&self, name: &str) -> Option<i32> {
        self.values
            .iter()
            .find(|(_, n)| *n == name)
            .map(|(number, _)| *number)
    }
}

mod table {
    include!("pb/schema.rs");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_has_172_messages_and_1154_fields() {
        let theirs = || {
            messages()
                .iter()
                .filter(|m| !m.file.starts_with("criu-rs-"))
        };
        assert_eq!(theirs().count(), 172);
        // Those that are ours in their messages have high numbers.
        let fields = theirs().flat_map(|m| m.fields.iter());
        assert_eq!(fields.filter(|field| field.number < 20_000).count(), 1154);
    }

    #[test]
    fn every_type_named_is_in_the_table() {
        for m in messages() {
            assert_eq!(message(m.name), Some(m));
            for f in m.fields {
                assert_eq!(m.field(f.number), Some(f));
                match f.ty {
                    Type::Message(name) => assert!(message(name).is_some(), "{name}"),
                    Type::Enum(name) => assert!(enumeration(name).is_some(), "{name}"),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn enumerations_are_found_by_name_and_number() {
        let march = enumeration("core_entry.march").unwrap();
        assert_eq!(march.value("MIPS"), Some(6));
        assert_eq!(march.value_name(1), Some("X86_64"));
        assert_eq!(march.value("VAX"), None);
    }
}
