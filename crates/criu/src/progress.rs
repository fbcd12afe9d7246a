//! Progress for a person who watches: a line on standard error, if that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress line, or nothing where nobody watches.
#[derive(Clone, Debug)]
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// Draws on standard error if `draw` is true.
    pub fn new(draw: bool) -> Self {
        Progress(draw.then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())))
    }

    /// Names what is being done now; it has no known size until [`Progress::bytes`] gives one.
    pub fn stage(&self, name: &'static str) {
        tracing::info!("{name}");
        self.restyle("{spinner} {msg}", None);
        if let Some(bar) = &self.0 {
            bar.set_message(name);
        }
    }

    /// This stage moves about so many bytes.
    pub fn bytes(&self, total: u64) {
        self.restyle(
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
            Some(total),
        );
    }

    /// So many of them are done.
    pub fn reach(&self, count: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(count);
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }

    fn restyle(&self, template: &str, length: Option<u64>) {
        let Some(bar) = &self.0 else { return };
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_position(0);
        match length {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid_and_nobody_needs_to_watch() {
        for draw in [false, true] {
            let progress = Progress::new(draw);
            progress.stage("drain");
            progress.bytes(10);
            progress.reach(10);
            progress.clear();
        }
        for template in [
            "{spinner} {msg}",
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
