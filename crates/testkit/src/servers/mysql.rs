//! A MariaDB or MySQL server for tests, with the user `seckill`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Daemon, Programs, answers};

const READY_WAIT: Duration = Duration::from_secs(60);
/// The user, which is also its password: the server is on loopback and its data is temporary.
const USER: &str = "seckill";

#[derive(Debug)]
pub struct Mysql {
    pub daemon: Daemon,
    /// On loopback.
    pub port: u16,
}

impl Mysql {
    /// Starts a server with its data in `dir`, which is created if missing. `more` holds further
    /// arguments.
    pub fn start(
        programs: &Programs,
        dir: &Path,
        port: u16,
        more: &[String],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let data = dir.join("data");
        if !data.exists() {
            install(programs, &data)?;
        }
        let init = dir.join("init.sql");
        let sql = format!(
            "CREATE USER IF NOT EXISTS '{USER}'@'localhost' IDENTIFIED BY '{USER}';\n\
             CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1' IDENTIFIED BY '{USER}';\n\
             GRANT ALL ON *.* TO '{USER}'@'localhost';\nGRANT ALL ON *.* TO '{USER}'@'127.0.0.1';\n"
        );
        std::fs::write(&init, sql)?;
        let arguments = [
            "--no-defaults".to_owned(),
            "--user=root".into(),
            format!("--datadir={}", data.display()),
            format!("--socket={}", short_socket(port)),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".into(),
            format!("--pid-file={}", dir.join("pid").display()),
            format!("--init-file={}", init.display()),
            "--max-connections=500".into(),
            "--innodb-buffer-pool-size=256M".into(),
        ];
        let arguments = [&arguments, more].concat();
        let mut daemon = Daemon::spawn(&programs.mysqld, &arguments, &dir.join("log"))?;
        // The port opens after the init file has run.
        daemon
            .wait_ready(READY_WAIT, || answers(port))
            .context("MySQL")?;
        Ok(Self { daemon, port })
    }

    pub fn url(&self, database: &str) -> String {
        format!("mysql://{USER}:{USER}@127.0.0.1:{}/{database}", self.port)
    }
}

/// The path of a Unix socket has a length limit that a path in the data folder may exceed.
fn short_socket(port: u16) -> String {
    std::env::temp_dir()
        .join(format!("seckill-mysql-{port}.sock"))
        .display()
        .to_string()
}

fn install(programs: &Programs, data: &Path) -> anyhow::Result<()> {
    let data_flag = format!("--datadir={}", data.display());
    let made = match &programs.mysql_install {
        Some(install) => Command::new(install)
            .args(["--no-defaults", "--user=root", &data_flag])
            .args(["--auth-root-authentication-method=socket", "--skip-test-db"])
            .output(),
        None => Command::new(&programs.mysqld)
            .args([
                "--no-defaults",
                "--user=root",
                "--initialize-insecure",
                &data_flag,
            ])
            .output(),
    };
    let made = made.context("MySQL's install program cannot be started")?;
    ensure!(
        made.status.success(),
        "MySQL's data folder could not be created: {}{}",
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(())
}
