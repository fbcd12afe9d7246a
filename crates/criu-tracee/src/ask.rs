//! What a descriptor of ours answers, at the price of the call: for who asks thousands of them.
#![allow(unsafe_code, reason = "getsockopt(2) and fcntl(2) take raw addresses")]

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// `F_GETSIG` of `include/uapi/asm-generic/fcntl.h`.
const F_GETSIG: i32 = 11;
/// `F_GETOWN_EX` of `include/uapi/asm-generic/fcntl.h`, the same on all architectures.
const F_GETOWN_EX: i32 = 16;
/// `F_GETOWNER_UIDS`.
const F_GETOWNER_UIDS: i32 = 17;
/// `SO_GET_FILTER` counts instructions.
const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;
const INSTRUCTION: usize = 8;

/// An option of a socket (getsockopt(2)): what `room` holds is given to the kernel, which is told of `count`, writes its
/// answer there, and returns how much it has: bytes, but of filters instructions.
pub fn socket_option(
    fd: impl AsFd,
    (level, name): (i32, i32),
    room: &mut [u8],
    count: u32,
) -> Result<u32, Errno> {
    let each = match (level, name) {
        (libc::SOL_SOCKET, SO_GET_FILTER) => INSTRUCTION,
        _ => 1,
    };
    if (count as usize).saturating_mul(each) > room.len() {
        return Err(Errno::EINVAL);
    }
    let mut length: libc::socklen_t = count;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes, or instructions, and so much room there is, as was seen above.
    let done =
        unsafe { libc::getsockopt(fd, level, name, room.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(done).map(|_| length)
}

/// The signal that is sent when a descriptor becomes ready (`F_GETSIG`); 0 for `SIGIO`.
pub fn ready_signal(fd: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: the command takes nothing.
    let signal = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_GETSIG) };
    Errno::result(signal).map(|signal| signal.unsigned_abs())
}

/// Who is told by a signal when a descriptor becomes ready (`F_GETOWN_EX`): the kind of id, and the id.
pub fn signal_owner(fd: impl AsFd) -> Result<(u32, u32), Errno> {
    two_words(fd, F_GETOWN_EX)
}

/// Real and effective user of who said so (`F_GETOWNER_UIDS`). `EINVAL` without `CONFIG_CHECKPOINT_RESTORE`.
pub fn signal_owner_users(fd: impl AsFd) -> Result<(u32, u32), Errno> {
    two_words(fd, F_GETOWNER_UIDS)
}

fn two_words(fd: impl AsFd, command: i32) -> Result<(u32, u32), Errno> {
    let mut words = [0u32; 2];
    // SAFETY: both commands write two words, which is what there is.
    let done = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, words.as_mut_ptr()) };
    Errno::result(done).map(|_| (words[0], words[1]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_answers() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let mut room = [0; 4];
        let length = socket_option(&one, (libc::SOL_SOCKET, libc::SO_TYPE), &mut room, 4);
        assert_eq!(
            (length, i32::from_ne_bytes(room)),
            (Ok(4), libc::SOCK_STREAM)
        );
        let more = socket_option(&one, (libc::SOL_SOCKET, libc::SO_TYPE), &mut room, 5);
        assert_eq!(more, Err(Errno::EINVAL));
        assert_eq!(signal_owner(&one).map(|owner| owner.1), Ok(0));
    }
}
