//! The id maps of a user namespace: `/proc/PID/uid_map`, `gid_map` and `projid_map`, user_namespaces(7).

use crate::ParseError;
use crate::text::lines;

/// One line. `m_show` functions in `kernel/user_namespace.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// The first id in the namespace of the task.
    pub inside: u32,
    /// The first id in the namespace of the reader, or in the parent if the reader is in the same.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// All the ranges; none if the map was not written yet.
pub fn id_map(map: &[u8]) -> Result<Vec<IdRange>, ParseError> {
    lines("uid_map", map)
        .map(|mut line| {
            let inside = line.dec("the first id inside")?;
            let outside = line.dec("the first id outside")?;
            let count = line.dec("the number of ids")?;
            line.end()?;
            Ok(IdRange {
                inside,
                outside,
                count,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let all = IdRange {
            inside: 0,
            outside: 0,
            count: u32::MAX,
        };
        assert_eq!(id_map(b"         0          0 4294967295\n"), Ok(vec![all]));
        assert_eq!(id_map(b""), Ok(vec![]));
        assert_eq!(
            id_map(b"0 0 4294967296\n").expect_err("too many").expected,
            "the number of ids"
        );
    }
}
