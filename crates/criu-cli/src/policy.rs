//! What may have happened to a file between dump and restore, as `--file-policy PATH=HOW` spells it.

use crate::error::Failure;
use crate::typed::bad_value;

/// How files of some paths are looked at, and what is done about a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The paths: `*` stands for any text.
    pub pattern: String,
    /// How.
    pub how: How,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It must be as it was: what holds without a policy.
    Strict,
    /// It may be as it likes, as long as it is there.
    Ignore,
    /// It may have grown: a log.
    Append,
    /// What was added since is cut off.
    Truncate,
    /// Another file takes its place, under this path.
    Replace(String),
}

impl Policy {
    /// Reads one value.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let policy = text.rsplit_once('=').and_then(|(pattern, how)| {
            let how = match how {
                "strict" => How::Strict,
                "ignore" => How::Ignore,
                "append" => How::Append,
                "truncate" => How::Truncate,
                other => How::Replace(other.strip_prefix("replace:")?.to_owned()),
            };
            let pattern = pattern.to_owned();
            (!pattern.is_empty()).then_some(Self { pattern, how })
        });
        policy.ok_or_else(|| bad_value("file-policy", text.as_ref()))
    }

    /// Whether it is about this path.
    pub fn covers(&self, path: &[u8]) -> bool {
        let mut parts = self.pattern.split('*').map(str::as_bytes);
        let Some(mut rest) = parts.next().and_then(|first| path.strip_prefix(first)) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            let found = part.is_empty().then_some(0).or_else(|| {
                let mut places = rest.windows(part.len());
                places.position(|window| window == part)
            });
            match found {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let policy = Policy::parse("/var/log/*=append").expect("one");
        assert_eq!(
            (policy.pattern.as_str(), &policy.how),
            ("/var/log/*", &How::Append)
        );
        let replace = Policy::parse("/a=b=replace:/c").expect("one");
        assert_eq!(replace.pattern, "/a=b");
        assert_eq!(replace.how, How::Replace("/c".to_owned()));
        for wrong in ["", "/a", "/a=", "/a=maybe", "=ignore"] {
            Policy::parse(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn patterns() {
        let covers = |pattern: &str, path: &str| {
            let policy = Policy {
                pattern: pattern.to_owned(),
                how: How::Strict,
            };
            policy.covers(path.as_bytes())
        };
        assert!(covers("/a", "/a") && !covers("/a", "/ab") && !covers("/a", "/"));
        assert!(covers("*", "/any") && covers("/log/*", "/log/x/y") && covers("*.log", "/x.log"));
        assert!(covers("/a*b*c", "/a1b2c") && covers("/a*b*c", "/abbc"));
        assert!(!covers("/a*b*c", "/acb") && !covers("*.log", "/x.log.1"));
    }
}
