//! The printer: the only one who writes to standard output and standard error. Data goes to the
//! first, everything else to the second; a reader who has gone ends the program quietly.

use crate::exit::{CliError, Exit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How to print.
#[derive(Clone, Debug)]
pub struct Printer {
    json: bool,
    quiet: bool,
    /// Standard error is a terminal that a person may be looking at.
    live: bool,
    color: bool,
}

impl Printer {
    pub fn new(json: bool, quiet: bool) -> Self {
        let live = std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let color = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            json,
            quiet,
            live,
            color,
        }
    }

    /// Whether data should be JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A line of data.
    pub fn line(&self, text: &str) {
        write_out(format!("{text}\n").as_bytes());
    }

    /// Data as it is, without an end of line.
    pub fn raw(&self, bytes: &[u8]) {
        write_out(bytes);
    }

    /// One JSON value on one line.
    pub fn value<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|error| {
            CliError::failed("the answer cannot be shown as JSON").because(&error)
        })?;
        self.line(&text);
        Ok(())
    }

    /// `value` with `--json`, what `text` prints otherwise.
    pub fn either<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&Self),
    ) -> Result<(), CliError> {
        if self.json {
            self.value(value)
        } else {
            text(self);
            Ok(())
        }
    }

    /// A line for the person at the keyboard; `--quiet` drops it.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            write_error(&format!("{text}\n"));
        }
    }

    /// Something that should be looked at.
    pub fn warn(&self, text: &str) {
        write_error(&format!("{} {text}\n", self.paint("33", "warning:")));
    }

    pub fn error(&self, error: &CliError) {
        let mut text = format!("{} {}\n", self.paint("31", "error:"), error.what);
        for cause in &error.causes {
            text.push_str(&format!("  cause: {cause}\n"));
        }
        if let Some(hint) = &error.hint {
            text.push_str(&format!("\n{} {hint}\n", self.paint("36", "hint:")));
        }
        write_error(&text);
    }

    /// Text of the argument parser, which brings its own words and colours.
    pub fn parser_text(&self, text: &str, is_error: bool) {
        if is_error {
            write_error(text);
        } else {
            write_out(text.as_bytes());
        }
    }

    /// Asks without an end of line.
    pub fn ask(&self, text: &str) {
        write_error(text);
    }

    /// A line that shows what is going on now; invisible unless a person looks on.
    pub fn spinner(&self) -> ProgressBar {
        if !self.live || self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    /// A bar over so many bytes; invisible unless a person looks on.
    pub fn bytes_bar(&self, total: Option<u64>) -> ProgressBar {
        if !self.live || self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}")
        {
            bar.set_style(style);
        }
        bar
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\u{1b}[1;{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

fn write_out(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        // Whoever read our data wants no more of it (a closed pipe), or it cannot be kept (a full
        // disk); going on would only do work that nobody sees.
        #[allow(clippy::exit)]
        std::process::exit(Exit::Failed as i32);
    }
}

fn write_error(text: &str) {
    // Nobody is left to be told when standard error is gone.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Rows under headings, aligned with spaces.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned).to_vec()],
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub fn print(&self, printer: &Printer) {
        for line in align(&self.rows) {
            printer.line(&line);
        }
    }
}

/// Names and values below each other; pairs without a value are left out.
pub fn print_pairs(printer: &Printer, pairs: &[(&str, String)]) {
    let rows: Vec<Vec<String>> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![format!("{name}:"), value.clone()])
        .collect();
    for line in align(&rows) {
        printer.line(&line);
    }
}

fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|row| row.get(c))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // A cell is one line whatever it holds, and sends nothing to the terminal.
                let cell: String = cell
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect();
                line.push_str(&format!("{cell:width$}  "));
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_hold_no_control_characters() {
        let rows = vec![
            vec!["NAME".into(), "STATE".into()],
            vec!["a-long-name".into(), "x\u{1b}[31m\ny".into()],
        ];
        assert_eq!(
            align(&rows),
            ["NAME         STATE", "a-long-name  x [31m y"]
        );
    }
}
