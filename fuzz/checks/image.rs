//! Any bytes as an image of any kind: no panic, no lie about what was understood.

use criu_image::desc::{ALL, COMMON_MAGIC, Desc, IdForm, ImageId, Prefix, SERVICE_MAGIC};
use criu_image::parse_any;

/// Tries the bytes as every kind whose magic number they have.
pub(crate) fn run(data: &[u8]) {
    for desc in ALL.iter().filter(|desc| is_marked(desc, data)) {
        let id = match desc.id {
            IdForm::Single => ImageId::Single,
            IdForm::Word => ImageId::from("dump"),
            _ => ImageId::Number(1),
        };
        check(&desc.file_name(id), data);
    }
}

fn is_marked(desc: &Desc, data: &[u8]) -> bool {
    let number = |at: usize| {
        let bytes = data.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let own = Some(desc.magic);
    match desc.prefix {
        Prefix::Common => number(0) == own || number(0) == Some(COMMON_MAGIC) && number(4) == own,
        Prefix::Service => number(0) == Some(SERVICE_MAGIC) && number(4) == own,
        Prefix::Own => number(0) == own,
        Prefix::None => false,
    }
}

fn check(name: &str, data: &[u8]) {
    let parsed = match parse_any(name, data) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    assert_eq!(
        parsed.inexact.is_empty(),
        parsed.encoded == data,
        "{name}: says that it understood all, and did not, or the other way round"
    );
    // What it writes itself it understands.
    let again = parse_any(name, &parsed.encoded).expect("what was written can be read");
    assert!(
        again.inexact.is_empty(),
        "{name}: its own writing is strange to it"
    );
    assert_eq!(
        again.entries.len(),
        parsed.entries.len(),
        "{name}: entries came or went"
    );
}
