//! `criu check`: what the running kernel can do, printed.

use std::io::Write;

use criu_probe::{Class, FEATURES, Feature, Lack};

use crate::error::{Failure, Kind};
use crate::options::CheckOptions;

/// Prints what was asked about; fails if something that was asked for is missing.
pub fn check(options: &CheckOptions, out: &mut dyn Write) -> Result<(), Failure> {
    match options {
        CheckOptions::List => {
            let named = FEATURES.iter().filter(|feature| feature.in_criu);
            let names: Vec<_> = named.map(|feature| feature.name).collect();
            print(out, &names.join(" "))
        }
        CheckOptions::One(name) => {
            let unknown = || {
                Failure::usage(format!("there is no feature `{name}`")).remedy("try --feature list")
            };
            let feature = criu_probe::feature(name).ok_or_else(unknown)?;
            let lacks = |lack: Lack| {
                Failure::new(Kind::Unsupported, "check", lack.to_string()).object(name)
            };
            feature.probe().map_err(lacks)?;
            print(out, &format!("{name} is supported"))
        }
        CheckOptions::Classes {
            extra,
            experimental,
        } => {
            let asked = |feature: &&Feature| match feature.class {
                Class::Mandatory => true,
                Class::Extra => *extra,
                Class::Experimental => *experimental,
                Class::Named => false,
            };
            check_all(FEATURES.iter().filter(asked), out)
        }
    }
}

fn check_all<'a>(
    features: impl Iterator<Item = &'a Feature>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut missing = Vec::new();
    let mut unknown = Vec::new();
    for feature in features {
        let Err(lack) = feature.probe() else { continue };
        tracing::warn!(
            "{}: {lack}; needed for {}",
            feature.name,
            feature.needed_for
        );
        match lack {
            Lack::Missing(_) => missing.push(feature),
            Lack::Unknown(_) => unknown.push(feature.name),
        }
    }
    if !unknown.is_empty() {
        print(
            out,
            &format!("Could not be tried here: {}.", unknown.join(" ")),
        )?;
    }
    if missing.is_empty() {
        return print(out, "Looks good.");
    }
    let names: Vec<_> = missing.iter().map(|feature| feature.name).collect();
    let failure = Failure::new(
        Kind::Unsupported,
        "check",
        format!("missing: {}", names.join(" ")),
    );
    if missing
        .iter()
        .any(|feature| feature.class == Class::Mandatory)
    {
        return Err(failure
            .remedy("a newer kernel, or one built with CONFIG_CHECKPOINT_RESTORE, is needed"));
    }
    print(
        out,
        "What every tree needs is there; trees that use what is missing cannot be kept.",
    )?;
    Err(failure)
}

fn print(out: &mut dyn Write, line: &str) -> Result<(), Failure> {
    writeln!(out, "{line}").map_err(|error| Failure::from_chain("output", &error))
}
