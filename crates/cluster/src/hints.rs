//! Hints from servers without a relay to relays in other processes. Nothing may depend on a hint:
//! losing one only delays its entry until a sweep.

use std::sync::Arc;
use std::time::Duration;

use seckill_engine::Fault;
use seckill_redis_gate::{HINTS_PER_CALL_MAX, Hint, HintReader, Offer};
use tokio::sync::{mpsc, watch};

use crate::shared::Core;
use crate::stop::stopped;

const PAUSE: Duration = Duration::from_millis(300);

/// Writes a hint for each offer, until the channel closes.
pub(crate) async fn write(core: Arc<Core>, mut offers: mpsc::Receiver<Offer>) {
    let mut batch = Vec::new();
    while offers.recv_many(&mut batch, HINTS_PER_CALL_MAX).await > 0 {
        let hints = batch.drain(..).map(|offer| Hint {
            sale: offer.sale,
            entry: offer.entry.id,
        });
        if let Err(fault) = core.gate.write_hints(hints).await {
            tracing::debug!(%fault, "could not write hints for the relay");
        }
    }
}

/// Takes hints and offers the entries that they name, until `stop` is set.
pub(crate) async fn read(
    core: Arc<Core>,
    offers: mpsc::Sender<Offer>,
    mut stop: watch::Receiver<bool>,
) {
    let mut reader = None;
    loop {
        let taken = tokio::select! {
            taken = take(&core, &mut reader) => taken,
            () = stopped(&mut stop) => return,
        };
        match taken {
            Ok(taken) => {
                for offer in taken {
                    if offers.send(offer).await.is_err() {
                        return;
                    }
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "could not read hints from Redis");
                reader = None;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn take<'a>(
    core: &'a Core,
    reader: &mut Option<HintReader<'a>>,
) -> Result<Vec<Offer>, Fault> {
    let reader = match reader {
        Some(reader) => reader,
        None => reader.insert(core.gate.hint_reader().await?),
    };
    let mut offers = Vec::new();
    for Hint { sale, entry: id } in reader.take().await? {
        let Some(cached) = core.cached(&sale).await? else {
            continue;
        };
        let Some(entry) = core.gate.outbox_entry(&cached.keys, &id).await? else {
            continue;
        };
        let epoch = id.split_once('-').and_then(|(epoch, _)| epoch.parse().ok());
        if let Some(epoch) = epoch {
            offers.push(Offer {
                sale,
                keys: cached.keys.clone(),
                epoch,
                entry,
            });
        }
    }
    Ok(offers)
}
