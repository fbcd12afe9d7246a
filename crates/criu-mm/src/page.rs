//! What a page is.

/// Bytes in a page of this machine.
#[cfg(not(test))]
pub fn page_size() -> u64 {
    machines()
}

/// In tests, of the machine that [`tests::each_size`] makes believe.
#[cfg(test)]
pub fn page_size() -> u64 {
    tests::SIZE.get().unwrap_or_else(machines)
}

fn machines() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        pub(super) static SIZE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Runs a test as on machines with pages of every size that Linux has here: 64-bit ARM and MIPS let the kernel's
    /// builder choose.
    pub(crate) fn each_size(test: impl Fn(u64)) {
        for size in [4 << 10, 16 << 10, 64 << 10] {
            SIZE.set(Some(size));
            test(size);
        }
        SIZE.set(None);
    }
}
