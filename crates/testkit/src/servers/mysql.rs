//! A MariaDB or MySQL of one's own, with the user `seckill`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Daemon, Programs, answers};

const READY_WAIT: Duration = Duration::from_secs(60);
/// The user and its password: loopback alone, data that is thrown away.
const USER: &str = "seckill";

/// A server.
#[derive(Debug)]
pub struct Mysql {
    /// Its process.
    pub daemon: Daemon,
    /// Where it listens on loopback.
    pub port: u16,
}

impl Mysql {
    /// Starts one over `dir`, which is made where it is missing. `more` are further arguments.
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
        // The port opens behind the init file.
        daemon
            .wait_ready(READY_WAIT, || answers(port))
            .context("MySQL")?;
        Ok(Self { daemon, port })
    }

    /// How a database of it is reached.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://{USER}:{USER}@127.0.0.1:{}/{database}", self.port)
    }
}

/// A socket's path must be short, and the data folder's may not be.
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
    let made = made.context("MySQL's data folder")?;
    ensure!(
        made.status.success(),
        "MySQL's data folder was not made: {}{}",
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(())
}
