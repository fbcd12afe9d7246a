//! How open files get from the tracer to the tasks: as messages, straight to their numbers.
//!
//! What arrives in a message gets the lowest free numbers, in order. So a task that has closed everything else is
//! sent its files in the order of their numbers, and a filler for each number that is to stay free. Inherited instead,
//! each file would be copied to every task and closed in all but one.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use criu_kind::{Error, Result};
use criu_tracee::{Blob, Outcome, Program};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair,
    sockopt,
};
use nix::sys::stat::Mode;

use crate::numbers::Numbers;

/// Descriptors in one message; the kernel takes 253.
const AT_ONCE: usize = 250;
/// So many free numbers in a row are filled; what comes behind more of them is moved to its number.
const GAP: usize = 64;
/// So many tasks at most get their files at the same time.
const LANES: usize = 16;
/// Room for the messages of a table.
const ROOM: usize = 1 << 26;
const WORD: usize = size_of::<usize>();
const FD_CLOEXEC: u32 = 1;
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

/// The sockets through which files reach the tasks: ours, and theirs, which all tasks have inherited.
#[derive(Debug)]
pub(crate) struct Passage {
    lanes: Vec<Lane>,
    /// The lane of the next table.
    next: usize,
    filler: OwnedFd,
}

/// What one task at a time gets its files through.
#[derive(Debug)]
pub(crate) struct Lane {
    ours: OwnedFd,
    theirs: i32,
}

/// A descriptor that a task is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) number: i32,
    /// `FD_CLOEXEC`.
    pub(crate) closes: bool,
    /// The file here; `None` keeps the number for one that is opened there.
    pub(crate) file: Option<i32>,
}

/// One message: files of ours, the numbers they arrive at, and where they go from there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Letter {
    files: Vec<i32>,
    arrive: Vec<i32>,
    closes: bool,
    /// Number, whether its flag differs from that of the message.
    flags: Vec<(i32, bool)>,
    moves: Vec<(i32, i32, bool)>,
}

/// What is to arrive: compared when the program has run.
#[derive(Debug, Default)]
#[must_use = "files that did not arrive are not missed otherwise"]
pub struct Arrivals(Vec<(Blob, Vec<i32>)>);

impl Arrivals {
    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Whether every file got its number.
    pub fn check(&self, outcome: &Outcome) -> Result<()> {
        for (control, wanted) in &self.0 {
            if rights(outcome.bytes(*control)) != *wanted {
                return Err(Error::Kernel {
                    call: "recvmsg(SCM_RIGHTS)",
                    errno: Errno::EMFILE,
                });
            }
        }
        Ok(())
    }
}

impl Passage {
    /// With a lane for each of so many tables, as far as there are.
    pub(crate) fn open(numbers: &mut Numbers, tables: usize) -> Result<Self> {
        let count = LANES.min(numbers.lanes()).min(tables.max(1));
        let mut lanes = Vec::with_capacity(count);
        for _ in 0..count {
            lanes.push(Lane::open(numbers)?);
        }
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let filler = open("/", flags, Mode::empty()).map_err(Error::kernel("openat(/)"))?;
        Ok(Self {
            lanes,
            next: 0,
            filler,
        })
    }

    /// How many tasks get their files at the same time.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The lane for one more table.
    pub(crate) fn lane(&mut self) -> usize {
        let lane = self.next;
        self.next = (lane + 1) % self.lanes.len();
        lane
    }

    pub(crate) fn at(&self, lane: usize) -> &Lane {
        &self.lanes[lane]
    }

    pub(crate) fn filler(&self) -> i32 {
        self.filler.as_raw_fd()
    }
}

impl Lane {
    fn open(numbers: &mut Numbers) -> Result<Self> {
        let pair = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        );
        let (ours, theirs) = pair.map_err(Error::kernel("socketpair"))?;
        // Without the privilege it has the room that all have, which is enough for some 50,000 files; for more the message says so.
        let _ = setsockopt(&ours, sockopt::SndBufForce, &ROOM);
        Ok(Self {
            ours,
            theirs: numbers.lift(theirs.into_raw_fd())?,
        })
    }

    /// The number that all tasks have it under.
    pub(crate) fn theirs(&self) -> i32 {
        self.theirs
    }

    /// Adds the calls that close everything but this.
    pub(crate) fn close_others(&self, program: &mut Program) {
        if self.theirs > 0 {
            program.close_range(0, self.theirs - 1, 0);
        }
        program.close_range(self.theirs + 1, u32::MAX, 0);
    }

    /// Sends files to the task that runs `program` next, and adds the calls that take them, to their numbers. The task has
    /// nothing but the passage.
    pub(crate) fn send(
        &self,
        places: &[Place],
        filler: i32,
        program: &mut Program,
    ) -> Result<Arrivals> {
        let mut arrivals = Arrivals::default();
        for letter in letters(places, self.theirs, filler) {
            sendmsg::<()>(
                self.ours.as_raw_fd(),
                &[IoSlice::new(b"f")],
                &[ControlMessage::ScmRights(&letter.files)],
                MsgFlags::MSG_DONTWAIT,
                None,
            )
            .map_err(Error::kernel("sendmsg(SCM_RIGHTS)"))?;
            let control = self.receive(&letter, program);
            for (number, closes) in &letter.flags {
                program.fcntl(*number, libc::F_SETFD, if *closes { FD_CLOEXEC } else { 0 });
            }
            for (from, to, closes) in &letter.moves {
                program.dup3(*from, *to, if *closes { O_CLOEXEC } else { 0 });
                program.close(*from);
            }
            arrivals.0.push((control, letter.arrive));
        }
        Ok(arrivals)
    }

    fn receive(&self, letter: &Letter, program: &mut Program) -> Blob {
        // `struct cmsghdr`: a length and two ints.
        let room = (WORD + 8 + letter.files.len() * 4).next_multiple_of(WORD);
        let control = program.room(room);
        let byte = program.room(1);
        let vector = program.bytes([[0; WORD], 1usize.to_ne_bytes()].concat());
        program.link(vector, 0, byte);
        // `struct msghdr` without a name, with one buffer.
        let words = [0, 0, 0, 1, 0, room, 0].map(usize::to_ne_bytes);
        let message = program.in_out(words.concat());
        program.link(message, 2 * WORD, vector);
        program.link(message, 4 * WORD, control);
        let closes = if letter.closes {
            libc::MSG_CMSG_CLOEXEC
        } else {
            0
        };
        program.recvmsg(self.theirs, message, closes | libc::MSG_DONTWAIT);
        control
    }
}

/// Closes the end that tasks have here; they close all that they are not to have.
impl Drop for Lane {
    fn drop(&mut self) {
        if let Err(error) = nix::unistd::close(self.theirs) {
            tracing::error!(%error, "the passage of files could not be closed");
        }
    }
}

/// The messages that bring files to their places, which are in the order of their numbers. `taken` is in use already.
fn letters(places: &[Place], taken: i32, filler: i32) -> Vec<Letter> {
    let mut letters = Vec::new();
    let mut open = Vec::new();
    let mut next = free_from(0, taken);
    let mut rest = places;
    while let [place, behind @ ..] = rest {
        let mut gap: Vec<i32> = Vec::new();
        let mut number = next;
        while number < place.number && gap.len() <= GAP {
            gap.push(number);
            number = free_from(number + 1, taken);
        }
        if gap.len() <= GAP {
            let filled = gap.into_iter().map(|number| (number, None));
            open.extend(filled.chain([(place.number, Some(*place))]));
            next = free_from(place.number + 1, taken);
            rest = behind;
            continue;
        }
        // All that are left are behind the gap, and what arrives in it can be moved away.
        letters.extend(straight(&std::mem::take(&mut open), filler));
        let (far, behind) = rest.split_at(rest.len().min(GAP));
        letters.push(moved(far, &gap, filler));
        rest = behind;
    }
    letters.extend(straight(&open, filler));
    letters
}

fn free_from(number: i32, taken: i32) -> i32 {
    number + i32::from(number == taken)
}

/// Files that arrive where they are to be.
fn straight(places: &[(i32, Option<Place>)], filler: i32) -> Vec<Letter> {
    let letter = |places: &[(i32, Option<Place>)]| {
        let known = || places.iter().filter_map(|(_, place)| *place);
        let closes = 2 * known().filter(|place| place.closes).count() > known().count();
        let file = |place: &Option<Place>| place.and_then(|place| place.file).unwrap_or(filler);
        Letter {
            files: places.iter().map(|(_, place)| file(place)).collect(),
            arrive: places.iter().map(|(number, _)| *number).collect(),
            closes,
            flags: known()
                .filter(|place| place.closes != closes)
                .map(|place| (place.number, place.closes))
                .collect(),
            moves: Vec::new(),
        }
    };
    places.chunks(AT_ONCE).map(letter).collect()
}

/// Files that arrive in a gap and are moved to behind it.
fn moved(places: &[Place], gap: &[i32], filler: i32) -> Letter {
    let arrive = &gap[..places.len()];
    let moves = arrive.iter().zip(places);
    Letter {
        files: places
            .iter()
            .map(|place| place.file.unwrap_or(filler))
            .collect(),
        arrive: arrive.to_vec(),
        closes: true,
        flags: Vec::new(),
        moves: moves
            .map(|(from, place)| (*from, place.number, place.closes))
            .collect(),
    }
}

/// The descriptors of the first control message.
fn rights(control: &[u8]) -> Vec<i32> {
    let mut length = [0; WORD];
    length.copy_from_slice(&control[..WORD]);
    let end = usize::from_ne_bytes(length).min(control.len());
    let words = control.get(WORD + 8..end).unwrap_or_default();
    let number = |word: &[u8]| {
        let mut number = [0; 4];
        number.copy_from_slice(word);
        i32::from_ne_bytes(number)
    };
    words.chunks_exact(4).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: i32, closes: bool) -> Place {
        Place {
            number,
            closes,
            file: Some(1000 + number),
        }
    }

    /// The numbers that a task has afterwards, as a kernel would give them out.
    fn delivered(letters: &[Letter], taken: i32, filler: i32) -> Vec<(i32, i32, bool)> {
        let mut table: std::collections::BTreeMap<i32, (i32, bool)> = [(taken, (-1, true))].into();
        for letter in letters {
            assert!(letter.files.len() <= AT_ONCE);
            for (file, arrive) in letter.files.iter().zip(&letter.arrive) {
                let lowest = (0..).find(|number| !table.contains_key(number));
                assert_eq!(lowest, Some(*arrive));
                table.insert(*arrive, (*file, letter.closes));
            }
            for (number, closes) in &letter.flags {
                table.get_mut(number).expect("it is there").1 = *closes;
            }
            for (from, to, closes) in &letter.moves {
                let (file, _) = table.remove(from).expect("it is there");
                assert_eq!(table.insert(*to, (file, *closes)), None);
            }
        }
        table.remove(&taken);
        let kept = table.into_iter().filter(|(_, (file, _))| *file != filler);
        kept.map(|(number, (file, closes))| (number, file, closes))
            .collect()
    }

    #[test]
    fn everything_arrives_at_its_number() {
        let shapes: [Vec<i32>; 6] = [
            vec![],
            (0..1000).collect(),
            vec![0, 1, 2, 5, 63, 64, 200],
            (0..300).chain(500..900).chain([1 << 20]).collect(),
            (0..300).map(|number| number * 7 + 70).collect(),
            vec![65, 66, 67],
        ];
        for numbers in shapes {
            for taken in [0, 3, 4000, 65, 1 << 21] {
                let numbers = numbers.iter().filter(|number| **number != taken);
                let places: Vec<Place> = numbers
                    .map(|number| place(*number, number % 3 == 0))
                    .collect();
                let sent = letters(&places, taken, -2);
                let wanted = places.iter().map(|place| {
                    let file = place.file.unwrap_or(-2);
                    (place.number, file, place.closes)
                });
                assert_eq!(delivered(&sent, taken, -2), wanted.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn descriptors_of_a_message() {
        let length = WORD + 8 + 8;
        let mut control = length.to_ne_bytes().to_vec();
        control.extend(
            [libc::SOL_SOCKET, libc::SCM_RIGHTS, 7, 9]
                .map(i32::to_ne_bytes)
                .concat(),
        );
        assert_eq!(rights(&control), [7, 9]);
        // A kernel that gave fewer says so.
        control[..WORD].copy_from_slice(&(length - 4).to_ne_bytes());
        assert_eq!(rights(&control), [7]);
        assert!(rights(&[0; 24]).is_empty());
    }
}
