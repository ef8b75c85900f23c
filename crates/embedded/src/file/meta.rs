//! The one row of `seckill_meta`: how many rows of orders the file has, and which folder has it open.
//! They reveal what the rows alone cannot: that some were deleted, or that a copy lacks its log.

use rusqlite::Connection;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RowCount {
    /// The file has at least this many rows. Recorded from time to time, since another page in each
    /// commit would make it slower.
    pub(crate) rows: u64,
    /// Deleted rows whose loss an operator has accepted. The program itself deletes none.
    pub(crate) deleted: u64,
}

pub(crate) fn row_count(conn: &Connection) -> rusqlite::Result<RowCount> {
    let query = "SELECT row_count, deleted FROM seckill_meta WHERE id = 1";
    conn.query_row(query, (), |row| {
        Ok(RowCount {
            rows: row.get::<_, i64>(0)? as u64,
            deleted: row.get::<_, i64>(1)? as u64,
        })
    })
}

pub(crate) fn set_row_count(conn: &Connection, rows: u64) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE seckill_meta SET row_count = ?1 WHERE id = 1")?
        .execute([rows as i64])?;
    Ok(())
}

/// The identity of the folder in which the file is open, or was open when its process died. Files of
/// all versions have it.
pub(crate) fn opened_in(conn: &Connection) -> rusqlite::Result<Option<String>> {
    let query = "SELECT opened_in FROM seckill_meta WHERE id = 1";
    conn.query_row(query, (), |row| row.get(0))
}

pub(crate) fn set_opened_in(conn: &Connection, folder: Option<&str>) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE seckill_meta SET opened_in = ?1 WHERE id = 1",
        [folder],
    )?;
    Ok(())
}
