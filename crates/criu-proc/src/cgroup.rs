//! The control groups of a task: `/proc/PID/cgroup`, cgroups(7).

use crate::ParseError;
use crate::text::{Line, lines, unsigned};

/// The group in one hierarchy. `proc_cgroup_show` in `kernel/cgroup/cgroup.c`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cgroup {
    /// The hierarchy's number; 0 is version 2.
    pub hierarchy: u32,
    /// Controllers of a version 1 hierarchy, and `name=` of a named one. Empty for version 2.
    pub controllers: Vec<Vec<u8>>,
    /// The group, from the root of the reader's cgroup namespace; may start with `/..`.
    pub path: Vec<u8>,
    /// The group was removed (only a dead task can be in one): the kernel appended ` (deleted)`.
    pub deleted: bool,
}

impl Cgroup {
    fn parse(mut line: Line<'_>) -> Result<Self, ParseError> {
        let before = line.clone();
        let number = unsigned(line.until(b':', "a hierarchy's number")?, 10)
            .and_then(|n| u32::try_from(n).ok());
        let hierarchy = number.ok_or_else(|| before.error("a hierarchy's number"))?;
        let controllers = line.until(b':', "controllers")?;
        let controllers = controllers
            .split(|&byte| byte == b',')
            .filter(|name| !name.is_empty());
        let path = line.rest();
        if !path.starts_with(b"/") {
            return Err(line.error("a path"));
        }
        let deleted = path.ends_with(b" (deleted)");
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path).to_vec();
        Ok(Self {
            hierarchy,
            controllers: controllers.map(<[u8]>::to_vec).collect(),
            path,
            deleted,
        })
    }

    /// Whether this is the version 2 hierarchy.
    pub fn is_v2(&self) -> bool {
        self.hierarchy == 0
    }
}

/// All the hierarchies.
pub fn cgroups(cgroup: &[u8]) -> Result<Vec<Cgroup>, ParseError> {
    lines("cgroup", cgroup).map(Cgroup::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_hybrid() {
        let all = cgroups(include_bytes!("../fixtures/cgroup")).expect("a real file");
        assert_eq!(
            (all[0].hierarchy, &all[0].controllers),
            (9, &vec![b"name=systemd".to_vec()])
        );
        assert_eq!(
            all[5].path,
            b"/process_api/b362b5459a7e2462bba92ce92b0403c9"
        );
        let unified = all.last().expect("not empty");
        assert!(unified.is_v2() && unified.controllers.is_empty() && !unified.deleted);
    }

    #[test]
    fn odd_lines() {
        let all = cgroups(b"4:cpu,cpuacct:/a:b (deleted)\n0::/../x\n").expect("well formed");
        assert_eq!(
            (all[0].controllers.len(), &*all[0].path, all[0].deleted),
            (2, b"/a:b".as_slice(), true)
        );
        let error = cgroups(b"0:/x").expect_err("no controllers");
        assert_eq!(
            error.to_string(),
            "cgroup:1: expected controllers, found \"/x\""
        );
    }
}
