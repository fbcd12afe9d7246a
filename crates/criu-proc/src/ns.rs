//! The namespaces of a task: the links in `/proc/PID/ns`, namespaces(7).

use crate::ParseError;

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NsKind {
    /// cgroup_namespaces(7).
    Cgroup,
    /// ipc_namespaces(7).
    Ipc,
    /// mount_namespaces(7).
    Mnt,
    /// network_namespaces(7).
    Net,
    /// pid_namespaces(7).
    Pid,
    /// time_namespaces(7).
    Time,
    /// user_namespaces(7).
    User,
    /// uts_namespaces(7).
    Uts,
}

impl NsKind {
    /// The kernel's word for it, which is also its file in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mnt => "mnt",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }

    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Cgroup,
        Self::Ipc,
        Self::Mnt,
        Self::Net,
        Self::Pid,
        Self::Time,
        Self::User,
        Self::Uts,
    ];
}

/// Where a link of `/proc/PID/ns` points: `pid:[4026531836]`. `ns_get_name` in `fs/nsfs.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NsLink {
    /// The kind.
    pub kind: NsKind,
    /// The inode number, the same for all who are in it.
    pub inode: u64,
}

impl NsLink {
    /// From the link's text.
    pub fn parse(link: &[u8]) -> Result<Self, ParseError> {
        let error = || ParseError::new("ns", 1, "a namespace like pid:[4026531836]", link);
        let (kind, rest) = crate::text::split_at_byte(link, b':').ok_or_else(error)?;
        let kind = NsKind::ALL
            .into_iter()
            .find(|known| known.name().as_bytes() == kind)
            .ok_or_else(error)?;
        let digits = rest
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_suffix(b"]"))
            .ok_or_else(error)?;
        let inode = crate::text::unsigned(digits, 10).ok_or_else(error)?;
        Ok(Self { kind, inode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        assert_eq!(
            NsLink::parse(b"pid:[4026531836]"),
            Ok(NsLink {
                kind: NsKind::Pid,
                inode: 4_026_531_836
            })
        );
        let error = NsLink::parse(b"pidfd:[1]").expect_err("no such kind");
        assert_eq!(
            error.to_string(),
            "ns:1: expected a namespace like pid:[4026531836], found \"pidfd:[1]\""
        );
    }
}
