//! `seckill load`: sends load to any HTTP target, with a progress line and percentiles. It must not
//! use the engine.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use seckill_api::{HistoryEntry, Latency, LatencyFrom, LoadReport};
use seckill_loadgen::{Lines, LoadRun, Outcome, Pacing, Plan, Progress, Refusal, Target};

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::LoadArgs;
use crate::output;
use crate::table::{self, grouped, milliseconds};

/// The interval between updates of the progress line and of the history, in milliseconds.
const LIVE_MS: u64 = 100;
/// The exit code after a second Ctrl-C: 128 + SIGINT, as in shells.
const INTERRUPTED: i32 = 130;

pub(crate) fn run(args: &LoadArgs) -> anyhow::Result<CommandOutcome> {
    bootstrap::raise_file_limit();
    let pacing = match args.rate {
        Some(rate) => Pacing::Over(Duration::from_secs_f64(args.requests as f64 / rate as f64)),
        None if args.ramp.is_zero() => Pacing::Closed,
        None => Pacing::Over(args.ramp),
    };
    let plan = Plan {
        method: args.method.clone(),
        pacing,
        connections: args.connections,
        threads: args.threads,
        buyers: args.buyers,
        keys: args.keys,
        lines: lines(args),
        seed: args.seed,
        paths: args.paths,
        timeout_ms: args.timeout_ms,
        keep_confirmations: args.history.is_some(),
        ..Plan::new(Target::parse(&args.url)?, args.requests)
    };
    let mut history = args.history.as_deref().map(History::create).transpose()?;
    let progress = Arc::new(Progress::default());
    stop_on_interrupt(&progress)?;
    let run = send(&plan, &progress, |confirmations| match &mut history {
        Some(history) => history.write(confirmations),
        None => Ok(()),
    })?;
    let report = &run.report;
    if args.json {
        output::print(serde_json::to_string_pretty(report)? + "\n")?;
    } else {
        output::print(table::pairs(&rows(report)))?;
    }
    let refused = report.count(Outcome::Refused);
    if let Some(refusal) = &run.refusal {
        eprintln!(
            "seckill: {} of {} answers from {} were errors, such as {}",
            grouped(refused),
            grouped(report.answered),
            args.url,
            described(refusal)
        );
    }
    if report.failed > 0 {
        eprintln!(
            "seckill: {} of {} requests got no answer from {}",
            report.failed, report.asked, args.url
        );
        return Ok(CommandOutcome::Failed);
    }
    let wrong = report.wrong_units.unwrap_or(0);
    if wrong > 0 {
        eprintln!(
            "seckill: {wrong} confirmations cannot be read or do not have the units that were asked for"
        );
        return Ok(CommandOutcome::Failed);
    }
    if report.answered > 0 && refused == report.answered {
        return Ok(CommandOutcome::Failed);
    }
    Ok(CommandOutcome::Ok)
}

/// What the answer says and, if nothing at this address could answer otherwise, what to do.
pub(crate) fn described(refusal: &Refusal) -> String {
    let status = refusal.status;
    let said = match &refusal.problem {
        Some(problem) => format!(
            "status {status}, {}: {}",
            problem.problem_type.name(),
            problem.detail
        ),
        None => format!("status {status}"),
    };
    match status {
        404 | 405 => said + "; check the method and the path of the URL",
        _ => said,
    }
}

/// What each request asks for.
fn lines(args: &LoadArgs) -> Lines {
    match (&args.lines, &args.quantity) {
        (Some(lines), _) => Lines::Fixed(lines.0.clone()),
        (None, Some(units)) => match &args.items {
            Some(items) => Lines::Random {
                units: units.0.clone(),
                items: items.0.clone(),
            },
            None => Lines::Quantity(units.0.clone()),
        },
        (None, None) => Lines::default(),
    }
}

/// The first Ctrl-C stops the load and shows the results, the second stops the process.
fn stop_on_interrupt(progress: &Arc<Progress>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("waiting for Ctrl-C")?;
    let progress = Arc::clone(progress);
    let wait = move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            progress.stop();
            eprintln!("seckill: stopping; press Ctrl-C again to stop at once");
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(INTERRUPTED);
            }
        });
    };
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(wait)
        .context("waiting for Ctrl-C")?;
    Ok(())
}

/// Runs the plan with a progress line on standard error. `keep` gets confirmations as they arrive.
pub(crate) fn send(
    plan: &Plan,
    progress: &Progress,
    mut keep: impl FnMut(&[HistoryEntry]) -> anyhow::Result<()>,
) -> anyhow::Result<LoadRun> {
    let line = ProgressBar::with_draw_target(Some(plan.requests), ProgressDrawTarget::stderr());
    let style = "{bar:30} {pos}/{len} answered, {msg} {elapsed}";
    line.set_style(ProgressStyle::with_template(style).context("the progress line's template")?);
    let mut kept = Ok(());
    let ended = std::thread::scope(|scope| {
        let running = scope.spawn(|| seckill_loadgen::run(plan, progress));
        while !running.is_finished() {
            show(&line, progress);
            if kept.is_ok() && plan.keep_confirmations {
                kept = keep(&progress.take_confirmations());
                if kept.is_err() {
                    progress.stop();
                }
            }
            std::thread::park_timeout(Duration::from_millis(LIVE_MS));
        }
        show(&line, progress);
        running.join()
    });
    line.finish_and_clear();
    let ended = ended.map_err(|_| anyhow!("the load generator panicked"))?;
    let run = ended.context("the load generator failed")?;
    kept?;
    keep(&run.confirmations)?;
    Ok(run)
}

fn show(line: &ProgressBar, progress: &Progress) {
    let counts = progress.counts();
    line.set_position(counts.answered + counts.failed);
    line.set_message(format!(
        "{} won, {} sold out, {} failed",
        grouped(counts.won),
        grouped(counts.sold_out),
        grouped(counts.failed)
    ));
}

/// The confirmations of a run, one JSON line each.
struct History {
    path: PathBuf,
    file: BufWriter<File>,
}

impl History {
    /// Called before anything is sent. An existing file is not overwritten.
    fn create(path: &Path) -> anyhow::Result<Self> {
        let created = OpenOptions::new().write(true).create_new(true).open(path);
        let file = match created {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "the history {} exists already; choose another file",
                path.display()
            ),
            created => created
                .with_context(|| format!("the history {} cannot be created", path.display()))?,
        };
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        })
    }

    fn write(&mut self, confirmations: &[HistoryEntry]) -> anyhow::Result<()> {
        let mut write = || -> std::io::Result<()> {
            for confirmation in confirmations {
                serde_json::to_writer(&mut self.file, confirmation)?;
                self.file.write_all(b"\n")?;
            }
            self.file.flush()
        };
        write().with_context(|| format!("the history {} cannot be written", self.path.display()))
    }
}

fn row(name: &str, value: String) -> (String, String) {
    (name.replace('_', " "), value)
}

fn count(name: &str, count: u64) -> (String, String) {
    row(name, grouped(count))
}

/// Answers by outcome, except for these outcomes; errors by status; and requests without an answer,
/// by cause.
pub(crate) fn answer_rows(report: &LoadReport, except: &[Outcome]) -> Vec<(String, String)> {
    let outcomes = report.outcomes.iter();
    let outcomes = outcomes.filter(|(outcome, _)| !except.contains(outcome));
    let mut rows: Vec<_> = outcomes
        .map(|(outcome, n)| count(outcome.as_str(), *n))
        .collect();
    if report.count(Outcome::Refused) > 0 {
        let errors = report.statuses.iter().filter(|(status, _)| **status >= 400);
        rows.extend(errors.map(|(status, n)| count(&format!("status {status}"), *n)));
    }
    rows.push(count("failed", report.failed));
    let causes = report.failures.iter();
    rows.extend(causes.map(|(cause, n)| count(cause.as_str(), *n)));
    rows
}

fn rows(report: &LoadReport) -> Vec<(String, String)> {
    let mut rows = vec![
        count("asked", report.asked),
        count("answered", report.answered),
    ];
    rows.extend(answer_rows(report, &[]));
    rows.extend(report.units_won.map(|units| count("units won", units)));
    rows.push(row("time", format!("{:.2} s", report.elapsed_s)));
    rows.push(count("answers per second", report.answers_per_s as u64));
    let latency = report.latency.iter().flat_map(latency_rows);
    rows.extend(latency.map(|(name, value)| row(name, value)));
    let from = match report.latency_from {
        LatencyFrom::Sent => "when a request was sent",
        LatencyFrom::Intended => "when a request was due",
    };
    rows.push(row("latency measured from", from.into()));
    rows
}

pub(crate) fn latency_rows(latency: &Latency) -> [(&'static str, String); 4] {
    [
        ("latency p50", milliseconds(latency.p50_us)),
        ("latency p90", milliseconds(latency.p90_us)),
        ("latency p99", milliseconds(latency.p99_us)),
        ("latency max", milliseconds(latency.max_us)),
    ]
}
