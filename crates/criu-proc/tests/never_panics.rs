//! Every parser meets random bytes, and real files with some bytes changed: it may refuse, never panic.

use criu_proc::*;
use proptest::prelude::*;

/// A file, and what reads such files.
type Case = (&'static [u8], fn(&[u8]));

/// Every parser.
const PARSERS: &[Case] = &[
    (include_bytes!("../fixtures/stat"), |text| {
        drop(Stat::parse(text).map(|stat| stat.tty()))
    }),
    (include_bytes!("../fixtures/status"), |text| {
        drop(Status::parse(text))
    }),
    (include_bytes!("../fixtures/status.mips-zombie"), |text| {
        drop(status_field(text, "Seccomp").map(<[u8]>::to_vec))
    }),
    (include_bytes!("../fixtures/maps"), |text| {
        Vmas::new(text).for_each(|vma| drop(vma.map(|vma| (vma.size(), vma.into_owned()))))
    }),
    (include_bytes!("../fixtures/smaps"), |text| {
        Smaps::new(text).for_each(|smap| drop(smap.map(Smap::into_owned)))
    }),
    (include_bytes!("../fixtures/fdinfo.epoll"), fdinfo),
    (include_bytes!("../fixtures/fdinfo.eventfd"), fdinfo),
    (include_bytes!("../fixtures/fdinfo.locks"), fdinfo),
    (include_bytes!("../fixtures/locks"), |text| {
        drop(locks(text))
    }),
    (include_bytes!("../fixtures/mountinfo"), |text| {
        drop(mountinfo(text).map(|all| {
            all.iter()
                .map(|mount| mount.super_options().count())
                .sum::<usize>()
        }))
    }),
    (include_bytes!("../fixtures/limits"), |text| {
        drop(Limits::parse(text))
    }),
    (include_bytes!("../fixtures/timers"), |text| {
        drop(timers(text))
    }),
    (include_bytes!("../fixtures/cgroup"), |text| {
        drop(cgroups(text))
    }),
    (b"         0     100000      65536\n", |text| {
        drop(id_map(text))
    }),
    (
        b"0 0x9 0x565311404a80 0x2000 0x1000 0x0 0x0 0x7fff724e0378 0x7f26f31162ad\n",
        |text| drop((syscall(text), wchan(text).map(<[u8]>::len))),
    ),
    (b"pid:[4026531836]", |text| drop(NsLink::parse(text))),
    (b"/autogroup-5 nice 0\n", |text| drop(autogroup(text))),
    (
        b"monotonic           0         0\nboottime            0         0\n",
        |text| drop(timens_offsets(text)),
    ),
    (b"-1000\n", |text| {
        drop((
            dec::<i16>("x", text),
            hex::<u32>("x", text),
            oct::<u8>("x", text),
        ))
    }),
    (b"1 2 3 ", |text| {
        drop((decs::<u32>("x", text), pids("x", text)))
    }),
    (b"a\0b=c\0", |text| drop(strings(text))),
    (&[6, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0], |text| {
        drop((auxv(text, WordSize::Four), auxv(text, WordSize::Eight)))
    }),
    (&[0xff; 16], |text| {
        drop(
            page_entries(text)
                .map(|entry| (entry.frame(), entry.swap_slot()))
                .collect::<Vec<_>>(),
        )
    }),
];

fn fdinfo(text: &[u8]) {
    let Ok(info) = Fdinfo::parse(text) else {
        return;
    };
    drop((
        info.value("a"),
        info.hex::<u64>("eventfd-count"),
        info.lines_of("tfd").count(),
    ));
    for line in &info.lines {
        drop((
            line.field("pos"),
            line.field(""),
            line.int::<i8>("tfd"),
            line.oct::<u8>("x"),
            line.error("x"),
        ));
    }
}

proptest! {
    #[test]
    fn random_bytes(text in prop::collection::vec(any::<u8>(), 0..400)) {
        for (_, parse) in PARSERS {
            parse(&text);
        }
    }

    #[test]
    fn random_words(text in r"([a-zA-Z]{1,6}:?|[0-9a-f]{1,20}|[-/()\[\]:.,\\ \t\n]){0,60}") {
        for (_, parse) in PARSERS {
            parse(text.as_bytes());
        }
    }

    #[test]
    fn damaged_files(cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), insert: bool) {
        for (fixture, parse) in PARSERS {
            let mut text = fixture[..cut.index(fixture.len() + 1)].to_vec();
            parse(&text);
            text = fixture.to_vec();
            let at = at.index(text.len());
            if insert {
                text.insert(at, byte);
            } else {
                text[at] = byte;
            }
            parse(&text);
        }
    }
}
