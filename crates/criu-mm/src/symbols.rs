//! The functions that a vdso offers.
//!
//! They are found as a program finds them, by its dynamic segment. The section headers lie behind what is
//! loaded: a driver that was killed in a dump has left its stub there, and another system may strip them.

use object::elf::{
    self, DT_GNU_HASH, DT_HASH, DT_STRSZ, DT_STRTAB, DT_SYMTAB, FileHeader32, FileHeader64,
    STT_FUNC, STT_GNU_IFUNC,
};
use object::read::elf::{Dyn, FileHeader, GnuHashTable, HashTable, ProgramHeader, Sym};
use object::{Endianness, ReadRef, StringTable};

/// Whether it is code of a word size, in bytes; what is no ELF file passes for that.
pub(crate) fn is_of_word(bytes: &[u8], word: usize) -> bool {
    match bytes.get(..5) {
        Some(b"\x7fELF\x01") => word == 4,
        Some(b"\x7fELF\x02") => word == 8,
        _ => true,
    }
}

/// Functions by name, with their offsets. What is no ELF file has none.
pub(crate) fn functions(bytes: &[u8]) -> Vec<(String, u64)> {
    let mut all = match is_of_word(bytes, 8) {
        true => exported::<FileHeader64<Endianness>>(bytes),
        false => exported::<FileHeader32<Endianness>>(bytes),
    }
    .unwrap_or_default();
    all.sort();
    all
}

fn exported<Elf: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> Option<Vec<(String, u64)>> {
    let header = Elf::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, bytes).ok()?;
    let dynamic = |segment: &Elf::ProgramHeader| segment.dynamic(endian, bytes).ok().flatten();
    let dynamic = segments.iter().find_map(dynamic)?;
    let value = |tag| {
        let entry = dynamic.iter().find(|entry| entry.d_tag(endian) == tag)?;
        let value: u64 = entry.d_val(endian).into();
        Some(value)
    };
    // It is linked to address 0, and mapped as the file is: addresses are offsets.
    let from = |tag| bytes.get(usize::try_from(value(tag)?).ok()?..);
    let count = match from(DT_HASH).and_then(|table| HashTable::<Elf>::parse(endian, table).ok()) {
        Some(table) => table.symbol_table_length(),
        None => GnuHashTable::<Elf>::parse(endian, from(DT_GNU_HASH)?)
            .ok()?
            .symbol_table_length(endian)?,
    };
    let names = value(DT_STRTAB)?;
    let names = StringTable::new(bytes, names, names.checked_add(value(DT_STRSZ)?)?);
    let symbols: &[Elf::Sym] = bytes
        .read_slice_at(value(DT_SYMTAB)?, usize::try_from(count).ok()?)
        .ok()?;
    let function = |symbol: &Elf::Sym| {
        let is_function = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC);
        let name = symbol.name(endian, names).ok()?;
        let name = String::from_utf8(name.to_owned()).ok()?;
        (is_function && symbol.st_shndx(endian) != elf::SHN_UNDEF)
            .then(|| (name, symbol.st_value(endian).into()))
    };
    Some(symbols.iter().filter_map(function).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vdso of this process.
    fn own() -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let line = maps.lines().find(|line| line.ends_with("[vdso]"));
        let (start, end) = line
            .and_then(|line| line.split(' ').next()?.split_once('-'))
            .expect("a vdso");
        let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        let (start, end) = (number(start), number(end));
        let mut bytes = vec![0; usize::try_from(end - start).expect("small")];
        let memory = std::fs::File::open("/proc/self/mem").expect("mem");
        memory.read_exact_at(&mut bytes, start).expect("readable");
        bytes
    }

    #[test]
    fn they_are_those_the_sections_tell_of() {
        use object::{Object, ObjectSymbol, SymbolKind};
        let bytes = own();
        let file = object::File::parse(&*bytes).expect("an ELF file");
        let mut all: Vec<_> = file
            .dynamic_symbols()
            .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
            .map(|symbol| (symbol.name().expect("a name").to_owned(), symbol.address()))
            .collect();
        all.sort();
        assert!(all.len() >= 3, "{all:?}");
        assert_eq!(functions(&bytes), all);
    }

    #[test]
    fn what_lies_behind_the_loaded_part_does_not_matter() {
        let mut bytes = own();
        let before = functions(&bytes);
        let sections = u64::from_le_bytes(bytes[40..48].try_into().expect("8 bytes"));
        bytes[usize::try_from(sections).expect("small")..].fill(0xa5);
        assert_eq!(functions(&bytes), before);
    }

    #[test]
    fn hostile_bytes_have_none() {
        let good = own();
        assert_eq!(functions(b""), []);
        assert_eq!(functions(&[0xff; 0x2000]), []);
        for length in (0..good.len()).step_by(61) {
            functions(&good[..length]);
        }
        for at in 0..1024 {
            let mut bad = good.clone();
            bad[at] = 0xff;
            functions(&bad);
        }
    }
}
