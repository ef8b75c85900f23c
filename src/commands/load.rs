//! `seckill load`: the crowd against any HTTP target, with a live line and percentiles.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use seckill_loadgen::{Confirmation, Latency, Pacing, Plan, Progress, Report, Target};

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::LoadArgs;
use crate::table::{self, grouped, milliseconds};

/// How often the live line changes, in milliseconds.
const LIVE_MS: u64 = 100;

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
        paths: args.paths,
        timeout_ms: args.timeout_ms,
        keep_confirmations: args.history.is_some(),
        ..Plan::new(Target::parse(&args.url)?, args.requests)
    };
    let report = send(&plan)?;
    if let Some(path) = &args.history {
        write_history(path, &report.confirmations)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table::pairs(&rows(&report)));
    }
    if report.failed > 0 {
        eprintln!(
            "seckill: {} of {} requests got no answer from {}",
            report.failed, report.asked, args.url
        );
        return Ok(CommandOutcome::Failed);
    }
    Ok(CommandOutcome::Ok)
}

/// Runs the plan with a live line on standard error.
pub(crate) fn send(plan: &Plan) -> anyhow::Result<Report> {
    let progress = Arc::new(Progress::default());
    let line = ProgressBar::with_draw_target(Some(plan.requests), ProgressDrawTarget::stderr());
    let style = "{bar:30} {pos}/{len} answered, {msg} {elapsed}";
    line.set_style(ProgressStyle::with_template(style).context("the live line's template")?);
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| seckill_loadgen::run(plan, &progress));
        while !running.is_finished() {
            show(&line, &progress);
            std::thread::park_timeout(Duration::from_millis(LIVE_MS));
        }
        show(&line, &progress);
        running.join()
    });
    line.finish_and_clear();
    let ended = report.map_err(|_| anyhow::anyhow!("the load stopped in a panic"))?;
    ended.context("the load could not be sent")
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

fn write_history(path: &Path, confirmations: &[Confirmation]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(std::fs::File::create(path)?);
        for yes in confirmations {
            serde_json::to_writer(&mut file, yes)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    write().with_context(|| format!("the history could not be written to {}", path.display()))
}

fn rows(report: &Report) -> Vec<(&str, String)> {
    let mut rows = vec![
        ("asked", grouped(report.asked)),
        ("answered", grouped(report.answered)),
    ];
    rows.extend(
        report
            .outcomes
            .iter()
            .map(|(outcome, count)| (*outcome, grouped(*count))),
    );
    rows.push(("failed", grouped(report.failed)));
    rows.extend(
        report
            .failures
            .iter()
            .map(|(failure, count)| (*failure, grouped(*count))),
    );
    rows.push(("time", format!("{:.2} s", report.elapsed_s)));
    rows.push(("answers a second", grouped(report.answers_per_s as u64)));
    rows.extend(report.latency.iter().flat_map(latency_rows));
    rows.push((
        "latency counts from",
        format!(
            "the {} moment of sending",
            match report.latency_from {
                "sent" => "actual",
                other => other,
            }
        ),
    ));
    rows
}

/// The percentiles as rows.
pub(crate) fn latency_rows(latency: &Latency) -> [(&'static str, String); 4] {
    [
        ("latency p50", milliseconds(latency.p50_us)),
        ("latency p90", milliseconds(latency.p90_us)),
        ("latency p99", milliseconds(latency.p99_us)),
        ("latency max", milliseconds(latency.max_us)),
    ]
}
