//! Rounds of power cuts and kills: an engine sells on a machine that stops at a random operation,
//! restarts on what is left, and must keep everything it confirmed. A round leaves no files behind.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use seckill_embedded::{EmbeddedEngine, EmbeddedOptions, FileError};
use seckill_engine::Engine;
use seckill_sale::{ItemId, NewItem, NewSale, SaleId};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::client::{Client, Mix};
use crate::machine::Machine;
use crate::promises::Promises;
use crate::rng::Rng;
use crate::state::Fuse;
use crate::vfs::VFS_NAME;

/// Linux's file system in memory: a round writes a lot and keeps nothing.
const MEMORY_FOLDER: &str = "/dev/shm";
/// The maximum number of operations before the machine stops. Creating the database takes about 40,
/// a restart 10, and a batch 10.
const FIRST_OPEN_OPS: u64 = 40;
const SELLING_OPS: u64 = 120;
const NEXT_OPEN_OPS: u64 = 25;

#[derive(Debug, Clone, Copy)]
pub struct PowerPlan {
    pub rounds: u32,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PowerSummary {
    /// Rounds whose checks all passed.
    pub rounds: u32,
    /// Power cuts.
    pub cuts: u64,
    /// Kills, which leave the power on.
    pub kills: u64,
    /// Power cuts of a machine that had already been interrupted.
    pub second_cuts: u64,
    /// Power cuts of a process that had started on the files of a killed one.
    pub cuts_after_kill: u64,
    /// Machines that stopped during an operation, rather than between two.
    pub stopped_in_operation: u64,
    /// Starts that failed because the machine stopped meanwhile.
    pub failed_starts: u64,
    /// Confirmed orders that were found again at the end of their round.
    pub confirmations_checked: u64,
    /// Those of them that were given before a power cut.
    pub confirmations_before_cut: u64,
    /// Rejections that the stored orders prove to be correct.
    pub rejections_checked: u64,
    /// Those of them that were given before a power cut.
    pub rejections_before_cut: u64,
}

impl fmt::Display for PowerSummary {
    /// Several lines, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds, all checks passed, all audits clean\n\
             {} power cuts, {} of them second cuts (after an earlier cut or kill)\n\
             {} kills; {} power cuts after a kill\n\
             {} machines stopped during a disk operation, {} of them during a start\n\
             {} confirmations checked, {} of them given before a power cut\n\
             {} rejections checked, {} of them given before a power cut",
            self.rounds,
            self.cuts,
            self.second_cuts,
            self.kills,
            self.cuts_after_kill,
            self.stopped_in_operation,
            self.failed_starts,
            self.confirmations_checked,
            self.confirmations_before_cut,
            self.rejections_checked,
            self.rejections_before_cut
        )
    }
}

/// Runs the rounds. Stops at the first failed check, with an error that names its round.
pub fn power_rounds(plan: &PowerPlan) -> anyhow::Result<PowerSummary> {
    let runtime = runtime()?;
    let mut summary = PowerSummary::default();
    for round in 0..plan.rounds {
        run_round(&runtime, plan.seed, round, &mut summary)?;
    }
    Ok(summary)
}

/// Runs a single round of a seed, such as one that failed.
pub fn power_round(seed: u64, round: u32) -> anyhow::Result<PowerSummary> {
    let mut summary = PowerSummary::default();
    run_round(&runtime()?, seed, round, &mut summary)?;
    Ok(summary)
}

fn runtime() -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_time().build()
}

fn run_round(
    runtime: &Runtime,
    seed: u64,
    round: u32,
    summary: &mut PowerSummary,
) -> anyhow::Result<()> {
    let description = || format!("round {round} of seed {seed}");
    let mixed = Rng::new(seed).next_u64() ^ u64::from(round);
    let mut current = Round::new(runtime, Rng::new(mixed), summary).with_context(description)?;
    current.run().with_context(description)?;
    summary.rounds += 1;
    Ok(())
}

struct Round<'a> {
    runtime: &'a Runtime,
    rng: Rng,
    dir: TempDir,
    folders: u32,
    checkpoint_pages: u32,
    promises: Promises,
    /// The number of the first run of the engine after the last power cut.
    after_last_cut: u32,
    was_killed: bool,
    summary: &'a mut PowerSummary,
}

impl<'a> Round<'a> {
    fn new(
        runtime: &'a Runtime,
        mut rng: Rng,
        summary: &'a mut PowerSummary,
    ) -> anyhow::Result<Self> {
        let prefix = "seckill-powercut-";
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix(prefix);
        let dir = builder
            .tempdir_in(MEMORY_FOLDER)
            .or_else(|_| builder.tempdir())?;
        let mut sales = vec![NewSale::units(SaleId::new("open")?, units(&mut rng))];
        if rng.one_in(2) {
            let mut limited = NewSale::units(SaleId::new("limited")?, units(&mut rng));
            limited.buyer_limit = Some(4);
            sales.push(limited);
        }
        if rng.one_in(2) {
            let mut sizes = NewSale::units(SaleId::new("sizes")?, 0);
            sizes.items.clear();
            for id in ["S", "M", "L"] {
                sizes.items.push(NewItem {
                    id: ItemId::new(id)?,
                    title: String::new(),
                    total: units(&mut rng),
                    price: None,
                });
            }
            sales.push(sizes);
        }
        Ok(Self {
            runtime,
            // Few pages, so that checkpoints happen within a round.
            checkpoint_pages: rng.between(8, 64) as u32,
            rng,
            dir,
            folders: 0,
            promises: Promises::new(sales),
            after_last_cut: 0,
            was_killed: false,
            summary,
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut machine = Machine::new(&self.next_folder(), self.rng.next_u64())?;
        let interruptions = self.rng.between(1, 3);
        for number in 1..=interruptions {
            let run = self.run_engine(&machine);
            run.with_context(|| format!("run {number} of the engine"))?;
            // Usually a power cut at the end: answers that were given after a kill must survive it.
            let odds = if number == interruptions { 8 } else { 2 };
            machine = if self.rng.one_in(odds) {
                self.kill(&machine)?
            } else {
                self.cut_power(&machine)?
            };
            self.promises.run += 1;
        }
        self.check(&machine).context("the last run of the engine")
    }

    fn next_folder(&mut self) -> PathBuf {
        self.folders += 1;
        self.dir.path().join(self.folders.to_string())
    }

    fn kill(&mut self, machine: &Machine) -> anyhow::Result<Machine> {
        self.summary.kills += 1;
        self.was_killed = true;
        machine.kill_into(&self.next_folder())
    }

    fn cut_power(&mut self, machine: &Machine) -> anyhow::Result<Machine> {
        self.summary.cuts += 1;
        self.summary.second_cuts += u64::from(self.promises.run > 0);
        self.summary.cuts_after_kill += u64::from(self.was_killed);
        self.was_killed = false;
        self.after_last_cut = self.promises.run + 1;
        let folder = self.next_folder();
        machine.power_cut_into(&folder, &mut self.rng)
    }

    fn open(&self, folder: &Path) -> Result<EmbeddedEngine, FileError> {
        let _guard = self.runtime.enter();
        EmbeddedEngine::open(EmbeddedOptions {
            vfs: Some(VFS_NAME.to_owned()),
            checkpoint_pages: self.checkpoint_pages,
            answer_wait_ms: 2_000,
            busy_wait_ms: 100,
            rebuild_pause_max_ms: 50,
            ..EmbeddedOptions::new(folder)
        })
    }

    /// Starts an engine and uses it, until its machine stops or the client is done.
    fn run_engine(&mut self, machine: &Machine) -> anyhow::Result<()> {
        let is_first = self.promises.run == 0;
        let (odds, open_ops, steps, mix) = if is_first {
            (6, FIRST_OPEN_OPS, self.rng.between(4, 30), Mix::Selling)
        } else if self.rng.one_in(2) {
            (4, NEXT_OPEN_OPS, self.rng.between(0, 6), Mix::Asking)
        } else {
            (2, NEXT_OPEN_OPS, self.rng.between(2, 12), Mix::Restarted)
        };
        let stops_early = self.rng.one_in(odds);
        if stops_early {
            self.set_fuse(machine, open_ops);
        }
        let engine = match self.open(machine.folder()) {
            Ok(engine) => engine,
            Err(error) => return self.failed_start(machine, error),
        };
        if !stops_early && (is_first || self.rng.one_in(2)) {
            self.set_fuse(machine, SELLING_OPS);
        }
        let mut client = Client {
            runtime: self.runtime,
            engine: &engine,
            promises: &mut self.promises,
            rng: &mut self.rng,
        };
        if mix == Mix::Asking {
            client.ask_open()?;
        }
        for _ in 0..steps {
            if machine.is_down() {
                break;
            }
            client.step(mix)?;
        }
        if !machine.is_down() && self.rng.one_in(4) {
            self.runtime.block_on(engine.close());
        }
        self.summary.stopped_in_operation += u64::from(machine.is_down());
        // Stop abruptly, unless the engine was closed above: dropping it would write as well.
        machine.stop();
        drop(engine);
        Ok(())
    }

    fn set_fuse(&mut self, machine: &Machine, ops_max: u64) {
        let after_ops = self.rng.between(0, ops_max);
        let in_sync = self.rng.one_in(3);
        machine.set_fuse(Some(Fuse { after_ops, in_sync }));
    }

    /// A start may fail because the machine stopped, but never because of the content of the files.
    fn failed_start(&mut self, machine: &Machine, error: FileError) -> anyhow::Result<()> {
        if !machine.is_down() {
            return Err(error).context("a start failed although the machine was running");
        }
        let is_expected = matches!(error, FileError::Sqlite { .. } | FileError::Folder { .. });
        if !is_expected {
            return Err(error).context("a start failed with an error that is not an I/O error");
        }
        self.summary.failed_starts += 1;
        self.summary.stopped_in_operation += 1;
        Ok(())
    }

    /// Starts an engine without interruptions, and checks every answer that was ever given.
    fn check(&mut self, machine: &Machine) -> anyhow::Result<()> {
        let engine = self.open(machine.folder())?;
        let mut client = Client {
            runtime: self.runtime,
            engine: &engine,
            promises: &mut self.promises,
            rng: &mut self.rng,
        };
        client.check_all()?;
        self.runtime.block_on(engine.close());
        let (promises, cut) = (&self.promises, self.after_last_cut);
        let summary = &mut *self.summary;
        summary.confirmations_checked += promises.confirmations() as u64;
        summary.confirmations_before_cut += promises.confirmations_before(cut) as u64;
        summary.rejections_checked += promises.rejections() as u64;
        summary.rejections_before_cut += promises.rejections_before(cut) as u64;
        Ok(())
    }
}

/// Few, so that a sale sells out within a round.
fn units(rng: &mut Rng) -> u32 {
    rng.between(3, 12) as u32
}
