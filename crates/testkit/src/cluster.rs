//! A cluster of `seckill` processes over real servers: several of each kind, killed and restarted
//! under load on all of them. Keeps what clients read, so that the audit can check it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use seckill_api::{AuditReport, AuditVerdict, Audited, HistoryEntry, Sale};
use seckill_loadgen::{Buyers, Keys, Lines, LoadRun, Outcome, Pacing, Plan, Progress, Target};

use crate::mixed_orders;
use crate::process::ServerProcess;
use crate::servers::Urls;

/// How long a cluster may take to sell and store what is left after a fault.
pub(crate) const QUIET_WAIT: Duration = Duration::from_secs(120);

/// How many processes of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `seckill serve`. These processes also relay if `relays` is 0, and record if `records` is 0.
    pub serves: usize,
    pub relays: usize,
    pub records: usize,
}

/// The running processes, and the confirmations that clients have read.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    flags: Vec<String>,
    settings: Vec<String>,
    shape: Shape,
    serves: Vec<Option<ServerProcess>>,
    relays: Vec<Option<Component>>,
    records: Vec<Option<Component>>,
    started: u32,
    confirmations: Vec<HistoryEntry>,
}

#[derive(Debug)]
struct Component(Child);

impl Drop for Component {
    fn drop(&mut self) {
        // An error means that the process has already exited.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The results of a load, summed over all servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadTotals {
    /// Confirmations.
    pub won: u64,
    pub sold_out: u64,
    /// Attempts that would have given their buyer more units than the limit.
    pub limit_reached: u64,
    /// Answers with the order's address (202).
    pub pending: u64,
    /// 503 answers.
    pub unavailable: u64,
    /// Attempts without an answer.
    pub failed: u64,
}

impl Cluster {
    /// Starts the processes. `settings` are environment variables in the form `NAME=value`.
    pub fn start(
        binary: &Path,
        dir: &Path,
        urls: &Urls,
        settings: &[String],
        shape: Shape,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut cluster = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            flags: urls.flags(),
            settings: settings.to_vec(),
            shape,
            serves: (0..shape.serves).map(|_| None).collect(),
            relays: (0..shape.relays).map(|_| None).collect(),
            records: (0..shape.records).map(|_| None).collect(),
            started: 0,
            confirmations: Vec::new(),
        };
        cluster.seckill(&["init", "--units", "0"])?;
        cluster.start_missing()?;
        Ok(cluster)
    }

    /// Starts every process that is not running.
    pub fn start_missing(&mut self) -> anyhow::Result<()> {
        for index in 0..self.shape.relays {
            if self.relays[index].is_none() {
                self.relays[index] = Some(self.part("relay")?);
            }
        }
        for index in 0..self.shape.records {
            if self.records[index].is_none() {
                self.records[index] = Some(self.part("record")?);
            }
        }
        for index in 0..self.shape.serves {
            if self.serves[index].is_none() {
                self.serves[index] = Some(self.serve()?);
            }
        }
        Ok(())
    }

    fn log(&mut self, name: &str) -> PathBuf {
        self.started += 1;
        self.dir.join(format!("{name}-{}.log", self.started))
    }

    fn part(&mut self, name: &str) -> anyhow::Result<Component> {
        let log = std::fs::File::create(self.log(name))?;
        let child = Command::new(&self.binary)
            .arg(name)
            .args(&self.flags)
            .envs(
                self.settings
                    .iter()
                    .filter_map(|setting| setting.split_once('=')),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("seckill {name} cannot be started"))?;
        Ok(Component(child))
    }

    fn serve(&mut self) -> anyhow::Result<ServerProcess> {
        let log = self.log("serve");
        let binary = self.binary.display().to_string();
        let mut words = vec!["env"];
        words.extend(self.settings.iter().map(String::as_str));
        words.push(&binary);
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0"];
        arguments.extend(self.flags.iter().map(String::as_str));
        if self.shape.relays > 0 {
            arguments.push("--no-relay");
        }
        if self.shape.records > 0 {
            arguments.push("--no-record");
        }
        let served = ServerProcess::spawn(&words, &arguments, &log)?;
        let wait = Duration::from_secs(30);
        let ready = crate::servers::wait_until("a ready server", wait, || {
            Ok(crate::get(served.address, "/readyz")?.status == 200)
        });
        ready.with_context(|| served.log())?;
        Ok(served)
    }

    /// Sends SIGKILL to one process of each kind.
    pub fn kill_one_of_each(&mut self, random: u64) -> anyhow::Result<()> {
        let pick = |len: usize| (random % len.max(1) as u64) as usize;
        let (serve, relay, record) = (
            pick(self.serves.len()),
            pick(self.relays.len()),
            pick(self.records.len()),
        );
        if let Some(served) = self.serves.get_mut(serve).and_then(Option::take) {
            served.kill()?;
        }
        drop(self.relays.get_mut(relay).and_then(Option::take));
        drop(self.records.get_mut(record).and_then(Option::take));
        Ok(())
    }

    /// Runs a `seckill` command on the same servers. The command must succeed.
    pub fn seckill(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let done = self.run(arguments)?;
        ensure!(
            done.status.success(),
            "seckill {arguments:?}: {}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .args(&self.flags)
            .envs(
                self.settings
                    .iter()
                    .filter_map(|setting| setting.split_once('=')),
            )
            .stdin(Stdio::null());
        command.output().context("seckill cannot be started")
    }

    /// Runs a load on each running server at the same time, and calls `meanwhile` after the first
    /// answer. Fails if a confirmation does not have exactly the units that its attempt asked for.
    pub fn load(
        &mut self,
        sale: &str,
        plan: &LoadPlan,
        meanwhile: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<LoadTotals> {
        let mut plans = Vec::new();
        for served in self.serves.iter().flatten() {
            let target = Target::parse(&served.url(&format!("/v1/sales/{sale}/orders")))?;
            plans.push(Plan {
                pacing: plan.over.map_or(Pacing::Closed, Pacing::Over),
                connections: plan.connections,
                buyers: plan.buyers,
                keys: plan.keys,
                lines: plan.lines.clone(),
                seed: plan.seed,
                timeout_ms: 30_000,
                keep_confirmations: true,
                ..Plan::new(target, plan.requests)
            });
        }
        let progress: Vec<Progress> = plans.iter().map(|_| Progress::default()).collect();
        let runs = std::thread::scope(|scope| {
            let loads: Vec<_> = plans
                .iter()
                .zip(&progress)
                .map(|(plan, progress)| scope.spawn(move || seckill_loadgen::run(plan, progress)))
                .collect();
            let began = Instant::now();
            while progress
                .iter()
                .all(|progress| progress.counts().answered == 0)
                && began.elapsed() < Duration::from_secs(10)
            {
                std::thread::yield_now();
            }
            meanwhile(self)?;
            let mut runs: Vec<LoadRun> = Vec::new();
            for load in loads {
                runs.push(
                    load.join()
                        .map_err(|_| anyhow::anyhow!("a loadgen thread panicked"))??,
                );
            }
            anyhow::Ok(runs)
        })?;
        let mut sum = LoadTotals::default();
        for run in runs {
            mixed_orders::check_units(&run)?;
            let report = &run.report;
            sum.won += report.count(Outcome::Won);
            sum.sold_out += report.count(Outcome::SoldOut);
            sum.limit_reached += report.count(Outcome::LimitReached);
            sum.pending += report.count(Outcome::Pending);
            sum.unavailable += report.count(Outcome::Unavailable);
            sum.failed += report.failed;
            self.confirmations.extend(run.confirmations);
        }
        Ok(sum)
    }

    /// The sale as the first running server reports it.
    pub fn sale(&self, sale: &str) -> anyhow::Result<Sale> {
        let served = self
            .serves
            .iter()
            .flatten()
            .next()
            .context("no server runs")?;
        crate::get(served.address, &format!("/v1/sales/{sale}"))?.read()
    }

    /// Buys the rest of a sale, waits until no claim is in flight, and audits the result against
    /// what clients read.
    pub fn sell_out_and_audit(&mut self, sale: &str, units: u64) -> anyhow::Result<AuditReport> {
        let began = Instant::now();
        loop {
            let plan = LoadPlan {
                requests: units.clamp(100, 5_000),
                ..LoadPlan::closed(64)
            };
            let sum = self.load(sale, &plan, |_| Ok(()))?;
            // The gate may be closed at this time, so `remaining` alone proves nothing.
            let left = self.sale(sale)?;
            if left.remaining == 0 && sum.sold_out > 0 {
                break;
            }
            if began.elapsed() > QUIET_WAIT {
                bail!(
                    "not sold out within {QUIET_WAIT:?}: {left:?}, {sum:?}\n{}",
                    self.logs()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        loop {
            let Audited { report, verdict } = self.audit()?;
            let is_clean = verdict == AuditVerdict::Clean;
            if is_clean && is_quiet(&report, sale, units) {
                return Ok(report);
            }
            if began.elapsed() > QUIET_WAIT || !is_clean {
                bail!(
                    "{units} units of {sale} are not all sold, or the audit is not clean: {report:#?}\n{}",
                    self.logs()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs the audit with every confirmation that clients have read so far.
    pub fn audit(&self) -> anyhow::Result<Audited> {
        let history = self.dir.join("history.jsonl");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&history)?);
        for yes in &self.confirmations {
            writeln!(file, "{}", serde_json::to_string(yes)?)?;
        }
        file.flush()?;
        let done = self.run(&[
            "audit",
            "--json",
            "--history",
            &history.display().to_string(),
        ])?;
        let said = String::from_utf8_lossy(&done.stdout);
        serde_json::from_str(&said).with_context(|| {
            format!(
                "the audit printed {said}{}\n{}",
                String::from_utf8_lossy(&done.stderr),
                self.logs()
            )
        })
    }

    /// The confirmations that clients have read so far.
    pub(crate) fn confirmations(&self) -> &[HistoryEntry] {
        &self.confirmations
    }

    /// The longest rebuild of a sale that the processes logged, in milliseconds; 0 if there was
    /// none.
    pub fn closed_ms_max(&self) -> u64 {
        let number = |rest: &str| {
            rest.split(|c: char| !c.is_ascii_digit())
                .next()
                .and_then(|ms| ms.parse().ok())
        };
        let mut max = 0;
        for (_, said) in self.whole_logs() {
            let times = said.split("closed_ms=").skip(1).filter_map(number);
            max = times.fold(max, u64::max);
        }
        max
    }

    fn whole_logs(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let logs = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| {
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            (path, said)
        })
    }

    /// The last lines of each process's log.
    pub fn logs(&self) -> String {
        const LINES: usize = 15;
        let mut text = String::new();
        for (path, said) in self.whole_logs() {
            let lines: Vec<&str> = said.lines().collect();
            text.push_str(&format!("--- {}\n", path.display()));
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

/// Whether no claim is in flight and all units of a sale are sold, according to an audit.
pub(crate) fn is_quiet(report: &AuditReport, sale: &str, units: u64) -> bool {
    let sold = report.sales.iter().find(|sold| sold.sale == sale);
    report.in_flight == 0 && sold.is_some_and(|sold| sold.active == units)
}

/// The load on each server.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// Per server.
    pub requests: u64,
    /// Per server.
    pub connections: usize,
    /// The time over which the requests are spread. If `None`, each connection sends its next
    /// request as soon as it has an answer.
    pub over: Option<Duration>,
    pub buyers: Buyers,
    pub keys: Keys,
    pub lines: Lines,
    /// Of the random lines.
    pub seed: u64,
}

impl LoadPlan {
    /// 1,000 anonymous requests without keys; each connection sends its next request as soon as it
    /// has an answer.
    pub fn closed(connections: usize) -> Self {
        Self {
            requests: 1_000,
            connections,
            over: None,
            buyers: Buyers::Anonymous,
            keys: Keys::None,
            lines: Lines::default(),
            seed: 1,
        }
    }
}
