//! The program `conpaas`: the client everywhere, and with the feature `daemons` also every
//! daemon. What a command does lives in `commands`, one file per noun; this file decides who runs.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

mod cli;
mod commands;
mod contexts;
#[cfg(feature = "daemons")]
mod daemons;
mod exit;
mod follow;
#[cfg(feature = "daemons")]
mod nutshell;
mod pack;
mod plot;
mod printer;
mod session;
mod target;
mod upload;
mod values;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Before anything else: some of these must not run in a process with threads.
    #[cfg(feature = "daemons")]
    if let Some(code) = daemons::dispatch(&arguments) {
        return code;
    }
    cli::run(arguments).into()
}
