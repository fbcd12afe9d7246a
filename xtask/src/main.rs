//! `cargo xtask VERB`: a verb a file, listed in one table.
fn main() -> anyhow::Result<()> {
    anyhow::bail!("no verb yet")
}
