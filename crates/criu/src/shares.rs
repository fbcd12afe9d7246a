//! What the processes of a tree have in common, beyond what every child gets a copy of.

use std::collections::HashMap;

use criu_kind::{Error, Result};
use criu_task::{Plan, Sharing, Tree, sharing};

use crate::load::Model;

const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;

/// Descriptor tables, and working directories with root and umask: the flag of clone(2), a name, who shares.
pub(crate) struct Shares(Vec<(u64, Sharing)>);

impl Shares {
    /// Of a tree that is to be born; numbers are nodes of the plan.
    pub(crate) fn of(model: &Model, plan: &Plan) -> Result<Self> {
        let creators: Vec<_> = plan.nodes.iter().map(|node| node.creator).collect();
        let ids = |id: fn(&criu_image::pb::TaskKobjIdsEntry) -> u32| -> Vec<_> {
            let body = |node: &criu_task::PlanNode| model.tasks[node.image?].body.as_ref();
            let all = plan.nodes.iter();
            all.map(|node| body(node).map(|body| id(&body.ids)))
                .collect()
        };
        let pid = |node: usize| plan.nodes[node].pid;
        Self::find(
            &creators,
            &ids(|ids| ids.files_id),
            &ids(|ids| ids.fs_id),
            pid,
        )
    }

    /// Whether a tree with these ids (descriptor table, working directory) can be born again; by pid.
    pub(crate) fn check(tree: &Tree, ids: &HashMap<i32, (u32, u32)>) -> Result<()> {
        let at: HashMap<i32, usize> = tree
            .nodes
            .iter()
            .enumerate()
            .map(|(at, node)| (node.vpid, at))
            .collect();
        let creators: Vec<_> = tree
            .nodes
            .iter()
            .map(|node| at.get(&node.vppid).copied())
            .collect();
        let of = |pick: fn(&(u32, u32)) -> u32| -> Vec<_> {
            let all = tree.nodes.iter();
            all.map(|node| ids.get(&node.pid.as_raw()).map(pick))
                .collect()
        };
        Self::find(&creators, &of(|ids| ids.0), &of(|ids| ids.1), |node| {
            tree.nodes[node].vpid
        })
        .map(drop)
    }

    fn find(
        creators: &[Option<usize>],
        files: &[Option<u32>],
        fs: &[Option<u32>],
        pid: impl Fn(usize) -> i32,
    ) -> Result<Self> {
        let one = |flag, name, ids| match sharing(creators, ids) {
            Ok(sharing) => Ok((flag, sharing)),
            Err(conflict) => Err(Error::unsupported(
                format!(
                    "processes above and below task {} share more than one {name}, and it cannot be born with two",
                    pid(conflict.0)
                ),
                "let one of them call unshare(2), or end, before the dump",
            )),
        };
        Ok(Self(vec![
            one(CLONE_FILES, "descriptor table", files)?,
            one(CLONE_FS, "working directory", fs)?,
        ]))
    }

    /// What a process is born with in common with its creator: flags of clone(2).
    pub(crate) fn at_birth(&self, node: usize) -> u64 {
        let born = self.0.iter().filter(|(_, sharing)| sharing.born[node]);
        born.map(|(flag, _)| flag).sum()
    }

    /// Who leaves what when all are born: flags of unshare(2).
    pub(crate) fn left(&self) -> Vec<(usize, u64)> {
        let nodes = 0..self
            .0
            .first()
            .map_or(0, |(_, sharing)| sharing.leaves.len());
        let flags = |node: usize| {
            let left = self.0.iter().filter(|(_, sharing)| sharing.leaves[node]);
            left.map(|(flag, _)| flag).sum()
        };
        nodes
            .map(|node| (node, flags(node)))
            .filter(|(_, flags)| *flags != 0)
            .collect()
    }
}
