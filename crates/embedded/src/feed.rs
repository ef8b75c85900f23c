//! Reads the feed from a file, without an engine: while no service runs, there is none to ask.

use std::path::Path;

use seckill_engine::EVENTS_PAGE_MAX;
use seckill_sale::{Event, SaleId};

use crate::audit::tuning;
use crate::file::schema;
use crate::file::{DATABASE_FILE, FileError, feed, sales};

/// Up to [`EVENTS_PAGE_MAX`] events of a sale after number `after`, from the file in a data folder;
/// `None` if there is no such sale.
pub fn events_of_file(
    dir: &Path,
    sale: &SaleId,
    after: u64,
) -> Result<Option<Vec<Event>>, FileError> {
    let path = dir.join(DATABASE_FILE);
    let conn = schema::open_reader(&path, &tuning())?;
    schema::check_version(&conn, &path)?;
    let sqlite = |error| FileError::from_sqlite(&path, error);
    let damaged = |detail| FileError::Damaged {
        path: path.clone(),
        detail,
    };
    let mut damage = None;
    for (number, found) in sales::all(&conn).map_err(sqlite)? {
        match found {
            Ok(found) if found.id == *sale => {
                let page = feed::page(&conn, (number, &found), after, None, EVENTS_PAGE_MAX);
                let page = page.map_err(sqlite)?.map_err(damaged)?;
                return Ok(Some(page.events));
            }
            Ok(_) => {}
            Err(detail) => damage = Some(detail),
        }
    }
    // The damaged sale may be the one that is wanted.
    damage.map_or(Ok(None), |detail| Err(damaged(detail)))
}
