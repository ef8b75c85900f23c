//! Checks the server's settings. Must not change any.

use seckill_engine::Fault;

use crate::session::Session;

/// Describes the server settings that can lose a committed row.
pub async fn weaker_settings(session: &mut Session) -> Result<Vec<String>, Fault> {
    let sql = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'innodb_doublewrite')";
    let variables: Vec<(String, String)> = session.query(sql).await?;
    let value = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    };
    let mut weaker = Vec::new();
    if let Some(value) = value("innodb_flush_log_at_trx_commit").filter(|value| *value != "1") {
        weaker.push(format!(
            "MySQL has innodb_flush_log_at_trx_commit={value}: a power failure can lose confirmed orders; set it to 1"
        ));
    }
    if value("log_bin") == Some("ON")
        && let Some(value) = value("sync_binlog").filter(|value| *value != "1")
    {
        weaker.push(format!(
            "MySQL has sync_binlog={value}: after a power failure, replicas can lack orders; set it to 1"
        ));
    }
    if value("innodb_doublewrite").is_some_and(|value| value.eq_ignore_ascii_case("off")) {
        weaker.push(
            "MySQL has innodb_doublewrite=OFF: a power failure can leave torn pages; set it to ON"
                .into(),
        );
    }
    Ok(weaker)
}
