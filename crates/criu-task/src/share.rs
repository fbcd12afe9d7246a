//! Processes that share a descriptor table, or working directory, root and umask: who inherits, who leaves.
//!
//! Such a thing is shared at birth (`CLONE_FILES`, `CLONE_FS`) and left for good with unshare(2). So everybody on
//! the way between two processes that share it is born with it, and those who only passed it on leave it.
//!
//! Not here: address spaces and signal actions. CRIU's images have ids for them, but a process that shares those
//! with another one is a thread in all but name, and is refused by the dump.

use std::collections::{BTreeMap, HashMap};

/// How one kind of thing is shared in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Who is born with that of its creator.
    pub born: Vec<bool>,
    /// Who leaves it, once all are born.
    pub leaves: Vec<bool>,
}

/// A process that would have to be born with two of them: unshare(2) in between, and who was born when, is not
/// to be read from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict(pub usize);

/// `creators` says who clones each process, `ids` which one it ends with; `None` for who ends before the tree wakes.
pub fn sharing(creators: &[Option<usize>], ids: &[Option<u32>]) -> Result<Sharing, Conflict> {
    let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (node, id) in ids.iter().enumerate() {
        if let Some(id) = id {
            members.entry(*id).or_default().push(node);
        }
    }
    // What each is born with, and what it holds while it bears others.
    let mut born: Vec<Option<u32>> = vec![None; creators.len()];
    let mut holds: Vec<Option<u32>> = vec![None; creators.len()];
    for (id, members) in members.iter().filter(|(_, members)| members.len() > 1) {
        let mut below: HashMap<usize, usize> = HashMap::new();
        for member in members {
            let mut at = Some(*member);
            while let Some(node) = at {
                *below.entry(node).or_default() += 1;
                at = creators[node];
            }
        }
        // An edge is on the way if there are members on both of its sides.
        for (node, _) in below.iter().filter(|(_, count)| **count < members.len()) {
            let creator = creators[*node].expect("above the root is nobody");
            born[*node] = Some(*id);
            for end in [*node, creator] {
                if holds[end].replace(*id).is_some_and(|other| other != *id) {
                    return Err(Conflict(end));
                }
            }
        }
    }
    let leaves = holds.iter().zip(ids);
    Ok(Sharing {
        leaves: leaves
            .map(|(holds, id)| holds.is_some() && id.is_some() && holds != id)
            .collect(),
        born: born.iter().map(Option::is_some).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node is its creator and its id; the letters say `b`orn with and `l`eaves.
    fn told(tree: &[(Option<usize>, Option<u32>)]) -> Result<String, Conflict> {
        let (creators, ids): (Vec<_>, Vec<_>) = tree.iter().copied().unzip();
        let sharing = sharing(&creators, &ids)?;
        let node = |node: usize| match (sharing.born[node], sharing.leaves[node]) {
            (true, true) => "bl",
            (true, false) => "b",
            (false, true) => "l",
            (false, false) => "-",
        };
        Ok((0..tree.len()).map(node).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn who_shares_nothing_inherits_nothing() {
        let tree = [(None, Some(1)), (Some(0), Some(2)), (Some(1), Some(3))];
        assert_eq!(told(&tree), Ok("- - -".into()));
    }

    #[test]
    fn children_and_their_children_share() {
        let tree = [
            (None, Some(1)),
            (Some(0), Some(1)),
            (Some(1), Some(1)),
            (Some(1), Some(2)),
        ];
        assert_eq!(told(&tree), Ok("- b b -".into()));
    }

    #[test]
    fn who_stands_between_passes_it_on_and_leaves() {
        // A grandchild, two siblings, and an orphan that a helper bore.
        let grandchild = [(None, Some(1)), (Some(0), Some(2)), (Some(1), Some(1))];
        assert_eq!(told(&grandchild), Ok("- bl b".into()));
        let siblings = [(None, Some(1)), (Some(0), Some(2)), (Some(0), Some(2))];
        assert_eq!(told(&siblings), Ok("l b b".into()));
        let orphan = [(None, Some(1)), (Some(2), Some(1)), (Some(0), None)];
        assert_eq!(told(&orphan), Ok("- b b".into()));
    }

    #[test]
    fn nobody_holds_two() {
        let two_pairs = [
            (None, Some(1)),
            (Some(0), Some(2)),
            (Some(0), Some(2)),
            (Some(0), Some(3)),
            (Some(0), Some(3)),
        ];
        assert_eq!(told(&two_pairs), Err(Conflict(0)));
        let own_and_passed_on = [
            (None, Some(1)),
            (Some(0), Some(2)),
            (Some(1), Some(1)),
            (Some(1), Some(2)),
        ];
        assert_eq!(told(&own_and_passed_on), Err(Conflict(1)));
    }
}
