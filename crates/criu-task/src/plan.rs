//! How a tree is born again: who clones whom, and when sessions and groups are made.
//!
//! A pure function of the images. A session is inherited at birth or made with `setsid`, so a process
//! of an older session than its parent's must be born before its parent leaves that session; one
//! whose session leader is no ancestor is an orphan, born under that leader, or under a helper in its
//! place, by a process that then exits and leaves it to the reaper. Helpers stand in for dead leaders.

use std::collections::{HashMap, HashSet};
use std::fmt;

use criu_kind::{Error, Result};

/// What a process of the plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A process of the images.
    Task,
    /// A zombie with its wait status.
    Zombie(u32),
    /// Stands in for a dead leader, or carries an orphan to its reaper; ends before the tree wakes.
    Helper,
}

/// A process to be born.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNode {
    /// Its pid; 0 where any will do.
    pub pid: i32,
    /// Its session.
    pub sid: i32,
    /// Its group.
    pub pgid: i32,
    /// What it is.
    pub role: Role,
    /// Which node clones it; `None` for the root.
    pub creator: Option<usize>,
    /// Its index among the processes of the images.
    pub image: Option<usize>,
}

/// One step; numbers are nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The creator clones it.
    Clone(usize),
    /// Its memory is laid out, for its children to inherit.
    Fill(usize),
    /// It makes its session.
    Setsid(usize),
    /// It joins or makes its group.
    Setpgid(usize),
    /// It ends: a helper whose work is done, or a zombie.
    End(usize),
}

/// How a process of the images is, as far as a plan cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It lives.
    Alive,
    /// It is dead, with this wait status.
    Dead(u32),
}

/// The processes and the steps, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Those of the images first, in their order, then helpers.
    pub nodes: Vec<PlanNode>,
    /// In order.
    pub steps: Vec<Step>,
}

const IMAGE: &str = "pstree.img";

impl Plan {
    /// Makes the plan from `(pid, ppid, pgid, sid, state, is a reaper)` of every process, parents
    /// first. With `shell_job` the root's foreign session and group become the caller's.
    pub fn make(processes: &[(i32, i32, i32, i32, End, bool)], shell_job: bool) -> Result<Self> {
        let mut index: HashMap<i32, usize> = HashMap::new();
        for (position, (pid, ppid, ..)) in processes.iter().enumerate() {
            if *pid <= 0 {
                return Err(Error::corrupt(IMAGE, format!("pid {pid}")));
            }
            if position > 0 && !index.contains_key(ppid) {
                return Err(Error::corrupt(
                    IMAGE,
                    format!("task {pid} stands before its parent {ppid}, or has none"),
                ));
            }
            if index.insert(*pid, position).is_some() {
                return Err(Error::corrupt(IMAGE, format!("pid {pid} twice")));
            }
        }
        let Some(&(root_pid, _, root_pgid, root_sid, ..)) = processes.first() else {
            return Err(Error::corrupt(IMAGE, "no task"));
        };
        if root_sid != root_pid && !shell_job {
            return Err(Error::unsupported(
                format!(
                    "the root task {root_pid} is not a session leader: its session {root_sid} is outside of the tree"
                ),
                "use --shell-job (-j) to give it the session of the caller",
            ));
        }
        let mut planner = Planner {
            plan: Self::default(),
            index,
            root_pgid,
            root_sid,
            shell_job,
        };
        for (position, &(pid, ppid, pgid, sid, end, _)) in processes.iter().enumerate() {
            let role = match end {
                End::Alive => Role::Task,
                End::Dead(status) => Role::Zombie(status),
            };
            let creator = (position > 0).then(|| planner.index[&ppid]);
            if creator.is_some_and(|creator| planner.plan.nodes[creator].role != Role::Task) {
                return Err(Error::corrupt(
                    IMAGE,
                    format!("the parent {ppid} of task {pid} is dead"),
                ));
            }
            planner.plan.nodes.push(PlanNode {
                pid,
                sid,
                pgid,
                role,
                creator,
                image: Some(position),
            });
        }
        let reapers: Vec<bool> = processes.iter().map(|process| process.5).collect();
        planner.adopt_orphans(&reapers)?;
        planner.stand_in_for_groups()?;
        planner.order();
        Ok(planner.plan)
    }
}

impl Plan {
    /// Which nodes clone others.
    pub fn bears(&self) -> Vec<bool> {
        let mut bears = vec![false; self.nodes.len()];
        for creator in self.nodes.iter().filter_map(|node| node.creator) {
            bears[creator] = true;
        }
        bears
    }
}

struct Planner {
    plan: Plan,
    /// Of processes of the images and of helpers with a pid.
    index: HashMap<i32, usize>,
    root_pgid: i32,
    root_sid: i32,
    shell_job: bool,
}

impl Planner {
    fn node(&self, at: usize) -> &PlanNode {
        &self.plan.nodes[at]
    }

    fn leads(&self, at: usize) -> bool {
        self.node(at).sid == self.node(at).pid
    }

    /// Whether `child` can get its session from its creator: at once, or before the creator, a leader,
    /// leaves it.
    fn inherits(&self, creator: usize, sid: i32) -> bool {
        let mut at = Some(creator);
        while let Some(here) = at {
            if self.node(here).sid == sid {
                return true;
            }
            if !self.leads(here) {
                return false;
            }
            at = self.node(here).creator;
        }
        // Above the root is the caller's session.
        self.shell_job && sid == self.root_sid
    }

    fn helper(&mut self, pid: i32, sid: i32, pgid: i32, creator: usize) -> usize {
        let node = PlanNode {
            pid,
            sid,
            pgid,
            role: Role::Helper,
            creator: Some(creator),
            image: None,
        };
        self.plan.nodes.push(node);
        let at = self.plan.nodes.len() - 1;
        if pid != 0 {
            self.index.insert(pid, at);
        }
        at
    }

    fn adopt_orphans(&mut self, reapers: &[bool]) -> Result<()> {
        for at in 1..reapers.len() {
            let (pid, sid) = (self.node(at).pid, self.node(at).sid);
            let Some(parent) = self.node(at).creator else {
                continue;
            };
            if sid == pid || self.inherits(parent, sid) {
                continue;
            }
            if !reapers[parent] && parent != 0 {
                return Err(Error::corrupt(
                    IMAGE,
                    format!("task {pid} is in session {sid}, of which no ancestor can be"),
                ));
            }
            let creator = match self.index.get(&sid).copied() {
                // The leader lives elsewhere: a child of it carries the orphan.
                Some(leader) if self.node(leader).role == Role::Task => {
                    self.helper(0, sid, sid, leader)
                }
                // A dead leader, zombie or helper, lives long enough to bear its session.
                Some(leader) => leader,
                None => self.helper(sid, sid, sid, parent),
            };
            self.plan.nodes[at].creator = Some(creator);
        }
        Ok(())
    }

    fn is_foreign_group(&self, pgid: i32) -> bool {
        self.shell_job && pgid == self.root_pgid && !self.index.contains_key(&pgid)
    }

    fn stand_in_for_groups(&mut self) -> Result<()> {
        for at in 0..self.plan.nodes.len() {
            let (pgid, sid) = (self.node(at).pgid, self.node(at).sid);
            if self.index.contains_key(&pgid) || self.is_foreign_group(pgid) {
                continue;
            }
            if pgid <= 0 {
                return Err(Error::corrupt(
                    IMAGE,
                    format!("group {pgid} of task {}", self.node(at).pid),
                ));
            }
            // Somebody of the same session who lives gives birth to the stand-in.
            let creator = (0..self.plan.nodes.len())
                .find(|other| self.node(*other).sid == sid && self.node(*other).role == Role::Task)
                .or(self.node(at).creator);
            let Some(creator) = creator else {
                return Err(Error::corrupt(
                    IMAGE,
                    format!("group {pgid} has no living member"),
                ));
            };
            self.helper(pgid, sid, pgid, creator);
        }
        Ok(())
    }

    fn order(&mut self) {
        let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, node) in self.plan.nodes.iter().enumerate() {
            if let Some(creator) = node.creator {
                children.entry(creator).or_default().push(at);
            }
        }
        // Depth first with an explicit stack: a tree may be deeper than ours is.
        enum Visit {
            Enter(usize),
            Setsid(usize),
        }
        let mut steps = Vec::new();
        let mut stack = vec![Visit::Enter(0)];
        while let Some(visit) = stack.pop() {
            let at = match visit {
                Visit::Setsid(at) => {
                    steps.push(Step::Setsid(at));
                    continue;
                }
                Visit::Enter(at) => at,
            };
            steps.push(Step::Clone(at));
            if self.node(at).role == Role::Task {
                steps.push(Step::Fill(at));
            }
            let own = children.remove(&at).unwrap_or_default();
            let leads = self.leads(at);
            let (early, late): (Vec<usize>, Vec<usize>) = own.into_iter().partition(|child| {
                leads && self.node(*child).sid != self.node(at).sid && !self.leads(*child)
            });
            stack.extend(late.into_iter().rev().map(Visit::Enter));
            if leads {
                stack.push(Visit::Setsid(at));
            }
            stack.extend(early.into_iter().rev().map(Visit::Enter));
        }
        let moved = |at: &usize| {
            let node = self.node(*at);
            // Who is born in a session is in the group of its leader.
            node.sid != node.pid
                && node.pgid != node.sid
                && !self.is_foreign_group(node.pgid)
                && !(node.role == Role::Helper && node.pid == 0)
        };
        let all: Vec<usize> = (0..self.plan.nodes.len()).filter(moved).collect();
        let (leaders, members): (Vec<usize>, Vec<usize>) = all
            .into_iter()
            .partition(|at| self.node(*at).pgid == self.node(*at).pid);
        steps.extend(leaders.into_iter().chain(members).map(Step::Setpgid));
        // Helpers that others descend from end first: so their children find the reaper.
        let mut ended = HashSet::new();
        for at in (0..self.plan.nodes.len()).rev() {
            if self.node(at).role != Role::Task && ended.insert(at) {
                steps.push(Step::End(at));
            }
        }
        self.plan.steps = steps;
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |at: usize| match self.nodes[at].pid {
            0 => "a carrier".to_owned(),
            pid => pid.to_string(),
        };
        for step in &self.steps {
            match *step {
                Step::Clone(at) => {
                    let node = &self.nodes[at];
                    let what = match node.role {
                        Role::Task => "",
                        Role::Zombie(_) => " (zombie)",
                        Role::Helper => " (helper)",
                    };
                    match node.creator {
                        Some(creator) => {
                            writeln!(f, "{} clones {}{what}", name(creator), name(at))?
                        }
                        None => writeln!(f, "clone {}{what}", name(at))?,
                    }
                }
                Step::Fill(at) => writeln!(f, "{} gets its memory", name(at))?,
                Step::Setsid(at) => writeln!(f, "{} makes its session", name(at))?,
                Step::Setpgid(at) => {
                    writeln!(f, "{} joins group {}", name(at), self.nodes[at].pgid)?
                }
                Step::End(at) => match self.nodes[at].role {
                    Role::Zombie(status) => {
                        writeln!(f, "{} ends with status {status:#x}", name(at))?
                    }
                    _ => writeln!(f, "{} ends", name(at))?,
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    const A: End = End::Alive;

    #[test]
    fn a_plain_tree() {
        let plan = Plan::make(
            &[
                (10, 0, 10, 10, A, false),
                (11, 10, 10, 10, A, false),
                (12, 10, 12, 10, End::Dead(0x300), false),
            ],
            false,
        );
        expect![[r#"
            clone 10
            10 gets its memory
            10 makes its session
            10 clones 11
            11 gets its memory
            10 clones 12 (zombie)
            12 joins group 12
            12 ends with status 0x300
        "#]]
        .assert_eq(&plan.expect("a plan").to_string());
    }

    #[test]
    fn a_child_of_an_older_session_is_born_before_setsid() {
        let tree = [
            (10, 0, 10, 10, A, false),
            (11, 10, 11, 11, A, false),
            (12, 11, 10, 10, A, false),
        ];
        expect![[r#"
            clone 10
            10 gets its memory
            10 makes its session
            10 clones 11
            11 gets its memory
            11 clones 12
            12 gets its memory
            11 makes its session
        "#]]
        .assert_eq(&Plan::make(&tree, false).expect("a plan").to_string());
    }

    #[test]
    fn helpers_stand_in_for_dead_leaders() {
        let tree = [
            (1, 0, 1, 1, A, true),
            (7, 1, 5, 5, A, false),
            (8, 1, 6, 1, A, false),
        ];
        expect![[r#"
            clone 1
            1 gets its memory
            1 makes its session
            1 clones 8
            8 gets its memory
            1 clones 5 (helper)
            5 makes its session
            5 clones 7
            7 gets its memory
            1 clones 6 (helper)
            6 joins group 6
            8 joins group 6
            6 ends
            5 ends
        "#]]
        .assert_eq(&Plan::make(&tree, false).expect("a plan").to_string());
    }

    #[test]
    fn an_orphan_is_carried_from_its_living_leader() {
        let tree = [
            (1, 0, 1, 1, A, true),
            (5, 1, 5, 5, A, false),
            (9, 1, 5, 5, A, false),
        ];
        let plan = Plan::make(&tree, false).expect("a plan");
        assert!(
            plan.to_string()
                .contains("5 clones a carrier (helper)\na carrier clones 9\n"),
            "{plan}"
        );
    }

    #[test]
    fn a_shell_job_takes_the_callers_session() {
        let tree = [(10, 0, 9, 3, A, false), (11, 10, 9, 3, A, false)];
        assert!(matches!(
            Plan::make(&tree, false),
            Err(Error::Unsupported { .. })
        ));
        let plan = Plan::make(&tree, true).expect("a plan");
        assert!(
            !plan.to_string().contains("session") && !plan.to_string().contains("group"),
            "{plan}"
        );
    }

    #[test]
    fn hostile_trees_are_refused() {
        for tree in [
            &[][..],
            &[(0, 0, 0, 0, A, false)],
            &[(5, 0, 5, 5, A, false), (5, 5, 5, 5, A, false)],
            &[
                (5, 0, 5, 5, A, false),
                (6, 7, 5, 5, A, false),
                (7, 6, 5, 5, A, false),
            ],
            &[
                (5, 0, 5, 5, A, false),
                (6, 5, 5, 5, End::Dead(0), false),
                (7, 6, 5, 5, A, false),
            ],
        ] {
            assert!(
                matches!(Plan::make(tree, false), Err(Error::Corrupt { .. })),
                "{tree:?}"
            );
        }
    }
}
