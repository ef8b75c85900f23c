//! Runs the conformance suite, which every engine must pass, on the embedded engine.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::sync::{Arc, Mutex};

use seckill_embedded::{EmbeddedEngine, EmbeddedOptions};
use seckill_engine::conformance::EngineFactory;
use seckill_engine::{BoxFuture, Engine, conformance_suite};
use tempfile::TempDir;

struct Folder(Mutex<TempDir>);

impl Folder {
    fn new() -> Self {
        Self(Mutex::new(TempDir::new().unwrap()))
    }
}

impl EngineFactory for Folder {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Engine>> {
        let options = EmbeddedOptions::new(self.0.lock().unwrap().path());
        Box::pin(async move { Arc::new(EmbeddedEngine::open(options).unwrap()) as Arc<dyn Engine> })
    }

    fn clear(&self) {
        *self.0.lock().unwrap() = TempDir::new().unwrap();
    }
}

conformance_suite!(Folder::new());
