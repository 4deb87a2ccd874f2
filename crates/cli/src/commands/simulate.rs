//! `conpaas simulate`: the real cores through schedules of faults, in simulated worlds. Needs no
//! Director, and touches nothing but the file that a failure is written to.

use crate::exit::{CliError, Outcome};
use crate::printer::Printer;
use crate::session::Session;
use clap::{Args, Subcommand};
use conpaas_sim::replay::Replay;
use conpaas_sim::run::{Order, Summary, run_many};
use conpaas_sim::schedule::Schedule;
use conpaas_sim::shrink::shrink;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Let simulated worlds go wrong, and see that all ends well
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  conpaas simulate --seeds 10000           run ten thousand schedules\n  \
        conpaas simulate --first 4711 --seeds 1  run the one of a seed\n  \
        conpaas simulate --seconds 60            run as many as a minute holds\n  \
        conpaas simulate replay broken.json --step"
)]
pub struct SimulateArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    verb: Option<SimulateCommand>,
}

#[derive(Args)]
struct RunArgs {
    /// How many schedules to run at most
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    seeds: u64,
    /// The first seed; drawn by chance, and printed, when absent
    #[arg(long, value_name = "SEED")]
    first: Option<u64>,
    /// Start no schedule after so many seconds
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Threads; as many as there are processors when absent
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Where the shortest schedule that breaks something is written
    #[arg(long, value_name = "FILE", default_value = "broken-schedule.json")]
    output: PathBuf,
}

#[derive(Subcommand)]
enum SimulateCommand {
    /// Run the schedule of a file again
    #[command(
        after_help = "Examples:\n  conpaas simulate replay broken-schedule.json --step\n  conpaas simulate replay broken-schedule.json --json"
    )]
    Replay(ReplayArgs),
}

#[derive(Args)]
struct ReplayArgs {
    /// A schedule, as a failed run wrote it
    file: PathBuf,
    /// Show every event with what it changed; on a terminal, wait for Enter after each
    #[arg(long)]
    step: bool,
}

pub fn run(session: &Session, args: SimulateArgs) -> Outcome {
    match args.verb {
        Some(SimulateCommand::Replay(args)) => replay(session, &args),
        None => many(session, &args.run),
    }
}

fn broken_names(error: impl std::error::Error + 'static) -> CliError {
    CliError::failed("the simulated world cannot be made").because(&error)
}

fn many(session: &Session, args: &RunArgs) -> Outcome {
    let printer = &session.printer;
    let first = args.first.unwrap_or_else(|| chance() % 1_000_000_000);
    let workers = args
        .workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    printer.note(&format!("seeds from {first}, on {workers} threads"));
    let begun = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    let enough = || limit.is_some_and(|limit| begun.elapsed() >= limit);
    let order = Order {
        first,
        seeds: args.seeds,
        workers,
        bug: None,
        until_broken: false,
        enough: &enough,
    };
    let summary = run_many(&order).map_err(broken_names)?;
    let took = begun.elapsed();
    show(printer, &summary, first, took)?;
    let Some((seed, broken)) = summary.broken.first() else {
        return Ok(());
    };
    printer.note("shrinking the first that broke something");
    let found = shrink(&Schedule::of_seed(*seed), None).map_err(broken_names)?;
    let (schedule, broken) = found.unwrap_or_else(|| (Schedule::of_seed(*seed), broken.clone()));
    write(&args.output, &schedule)?;
    let what = format!(
        "{} of {} schedules broke something; seed {seed}: {}: {}",
        summary.broken.len(),
        summary.schedules,
        broken.invariant,
        broken.text
    );
    let file = args.output.display();
    Err(CliError::failed(what).hint(format!("see how: conpaas simulate replay {file} --step")))
}

/// A seed that nobody has to remember: it is printed.
fn chance() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos() as u64);
    nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

fn show(printer: &Printer, summary: &Summary, first: u64, took: Duration) -> Outcome {
    let stats = &summary.stats;
    let per_minute = summary.schedules as f64 / took.as_secs_f64().max(0.001) * 60.0;
    let outcomes: BTreeMap<String, u64> = stats
        .outcomes
        .iter()
        .map(|((kind, end), n)| (format!("{kind} {end}"), *n))
        .collect();
    let broken: Vec<_> = summary
        .broken
        .iter()
        .map(|(seed, broken)| json!({"seed": seed, "invariant": broken.invariant, "text": broken.text}))
        .collect();
    let value = json!({
        "first_seed": first,
        "schedules": summary.schedules,
        "broken": broken,
        "seconds": took.as_secs_f64(),
        "schedules_per_minute": per_minute.round(),
        "fewest_events": summary.fewest_events,
        "fewest_faults": summary.fewest_faults,
        "events": stats.events,
        "faults": stats.faults,
        "faults_without_victim": stats.missed,
        "wishes": stats.wishes,
        "states": stats.states,
        "operations": outcomes,
    });
    printer.either(&value, |printer| {
        for (title, counts) in [
            ("events", &stats.events),
            ("faults", &stats.faults),
            ("wishes", &stats.wishes),
            ("states met", &stats.states),
        ] {
            table(printer, title, counts.iter().map(|(what, n)| (*what, *n)));
        }
        table(printer, "operations", outcomes.iter().map(|(what, n)| (what.as_str(), *n)));
        for (seed, broken) in &summary.broken {
            printer.line(&format!("BROKEN seed {seed}: {}: {}", broken.invariant, broken.text));
        }
        printer.line(&format!(
            "{} schedules, {} broken, in {:.1} s ({per_minute:.0} a minute); each of at least {} events and {} faults",
            summary.schedules,
            summary.broken.len(),
            took.as_secs_f64(),
            summary.fewest_events,
            summary.fewest_faults,
        ));
    })
}

fn table<'a>(printer: &Printer, title: &str, counts: impl Iterator<Item = (&'a str, u64)>) {
    printer.line(title);
    for (what, count) in counts {
        printer.line(&format!("  {what:<40} {count:>12}"));
    }
}

fn write(path: &Path, schedule: &Schedule) -> Outcome {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        CliError::failed(format!(
            "the schedule cannot be written to {}",
            path.display()
        ))
        .because(error)
    };
    let text = serde_json::to_string_pretty(schedule).map_err(|error| failed(&error))?;
    std::fs::write(path, text + "\n").map_err(|error| failed(&error))
}

fn replay(session: &Session, args: &ReplayArgs) -> Outcome {
    let printer = &session.printer;
    let shown = args.file.display();
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| CliError::failed(format!("{shown} cannot be read")).because(&error))?;
    let schedule: Schedule = serde_json::from_str(&text)
        .map_err(|error| CliError::usage(format!("{shown} is no schedule")).because(&error))?;
    let mut replay = Replay::new(schedule).map_err(broken_names)?;
    let waits = args.step && std::io::stdin().is_terminal() && !printer.is_json();
    let mut events = 0u64;
    while let Some(step) = replay.step() {
        events += 1;
        let disturbed = step.events.iter().any(|event| event.starts_with("==="));
        if args.step || disturbed {
            if printer.is_json() {
                let (at, events, changes) = (step.at, &step.events, &step.changes);
                printer.value(&json!({"at": at, "events": events, "changes": changes}))?;
            } else {
                step.events
                    .iter()
                    .for_each(|event| printer.line(&format!("{:>8} {event}", step.at)));
                if args.step {
                    step.changes
                        .iter()
                        .for_each(|change| printer.line(&format!("         {change}")));
                }
            }
        }
        if waits && !step.changes.is_empty() && !goes_on() {
            return Ok(());
        }
    }
    let broken = replay.broken();
    if printer.is_json() {
        let broken = broken.map(|b| json!({"at": b.at, "invariant": b.invariant, "text": b.text}));
        printer.value(&json!({"end": {"events": events, "broken": broken}}))?;
    }
    match replay.broken() {
        None => {
            printer.note(&format!("{events} events; nothing is broken"));
            Ok(())
        }
        Some(broken) => Err(CliError::failed(format!(
            "broken at {} ms: {}: {}",
            broken.at, broken.invariant, broken.text
        ))),
    }
}

/// Waits for Enter; false when the person has seen enough.
fn goes_on() -> bool {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .is_ok_and(|read| read > 0 && line.trim() != "q")
}
