//! `check!`, `check_eq!` and skipping: a failed check is an error that says where and what.

/// Why this machine cannot run the case. Not a failure.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// `return zdtm::skip("no swap")`, before [`crate::ready`].
pub fn skip<T>(reason: impl Into<String>) -> crate::Result<T> {
    Err(anyhow::Error::new(Skip(reason.into())))
}

/// Returns an error naming the place and the condition unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        if !$condition {
            $crate::bail!("{}:{}: {}", file!(), line!(), stringify!($condition));
        }
    };
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            $crate::bail!("{}:{}: {}: {}", file!(), line!(), stringify!($condition), format_args!($($why)+));
        }
    };
}

/// Returns an error showing both values unless they are equal: what is there, then what should be.
#[macro_export]
macro_rules! check_eq {
    ($found:expr, $wanted:expr $(,)?) => {
        match (&$found, &$wanted) {
            (found, wanted) => {
                if *found != *wanted {
                    $crate::bail!(
                        "{}:{}: {} is {:?}, should be {:?}",
                        file!(), line!(), stringify!($found), found, wanted
                    );
                }
            }
        }
    };
    ($found:expr, $wanted:expr, $($why:tt)+) => {
        match (&$found, &$wanted) {
            (found, wanted) => {
                if *found != *wanted {
                    $crate::bail!(
                        "{}:{}: {} is {:?}, should be {:?}: {}",
                        file!(), line!(), stringify!($found), found, wanted, format_args!($($why)+)
                    );
                }
            }
        }
    };
}
