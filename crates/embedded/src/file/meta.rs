//! The one row of `seckill_meta`: how many orders the file has, and which folder has it open.
//! They reveal what the rows alone cannot: that some were deleted, or that a copy lacks its log.

use rusqlite::Connection;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The file has at least this many orders. Recorded from time to time, since another page in each
    /// commit would make it slower.
    pub(crate) orders: u64,
    /// Deleted orders whose loss an operator has accepted. The program itself deletes none.
    pub(crate) deleted: u64,
    /// The identity of the folder in which the file is open, or was open when its process died.
    pub(crate) opened_in: Option<String>,
}

pub(crate) fn read(conn: &Connection) -> rusqlite::Result<Meta> {
    let query = "SELECT orders, deleted, opened_in FROM seckill_meta WHERE id = 1";
    conn.query_row(query, (), |row| {
        Ok(Meta {
            orders: row.get::<_, i64>(0)? as u64,
            deleted: row.get::<_, i64>(1)? as u64,
            opened_in: row.get(2)?,
        })
    })
}

pub(crate) fn set_orders(conn: &Connection, orders: u64) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE seckill_meta SET orders = ?1 WHERE id = 1")?
        .execute([orders as i64])?;
    Ok(())
}

pub(crate) fn set_opened_in(conn: &Connection, folder: Option<&str>) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE seckill_meta SET opened_in = ?1 WHERE id = 1",
        [folder],
    )?;
    Ok(())
}
