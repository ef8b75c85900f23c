//! Provides the servers' programs: uses what is installed, installs system packages, and fetches
//! jars of pinned versions from Maven Central. Verifies Kafka's jars against known checksums.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use seckill_testkit::servers::{KafkaLayout, Programs};

use crate::build::{succeed, target};

/// A set of jars: the artifacts to request from Maven, and the checksums of all resulting files.
struct Jars {
    name: &'static str,
    artifacts: &'static [(&'static str, &'static str, &'static str)],
    checksums: &'static str,
}

const KRAFT: Jars = Jars {
    name: "kafka-4.3.1",
    artifacts: &[("org.apache.kafka", "kafka_2.13", "4.3.1")],
    checksums: include_str!("kafka-4.3.1.sha256"),
};
/// The last release line with ZooKeeper. ZooKeeper needs snappy, but its POM does not list it.
const ZOOKEEPER: Jars = Jars {
    name: "kafka-3.9.2",
    artifacts: &[
        ("org.apache.kafka", "kafka_2.13", "3.9.2"),
        ("org.apache.zookeeper", "zookeeper", "3.8.4"),
        ("org.xerial.snappy", "snappy-java", "1.1.10.5"),
    ],
    checksums: include_str!("kafka-3.9.2.sha256"),
};
const JAVA_MIN: u32 = 17;

/// Returns all programs, installing or fetching what is missing. An error names what is missing and
/// what was tried.
pub(crate) fn programs(layout: KafkaLayout) -> anyhow::Result<Programs> {
    let mysqld = || which("mariadbd").or_else(|| which("mysqld"));
    let missing: Vec<&str> = [
        (which("redis-server").is_none(), "redis-server"),
        (mysqld().is_none(), "mariadb-server"),
        (java().is_none(), "default-jre-headless"),
        (
            which("mvn").is_none() && !is_fetched(&jars(layout)),
            "maven",
        ),
    ]
    .into_iter()
    .filter_map(|(is_missing, package)| is_missing.then_some(package))
    .collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    let none = |what: &str| {
        format!("no {what} on the path, and the system's packages did not provide it; install it")
    };
    let mysqld = mysqld().with_context(|| none("mariadbd or mysqld"))?;
    let is_mariadb = mysqld.ends_with("mariadbd");
    Ok(Programs {
        redis_server: which("redis-server").with_context(|| none("redis-server"))?,
        mysql_install: is_mariadb.then(|| which("mariadb-install-db")).flatten(),
        mysqld,
        java: java().with_context(|| none(&format!("Java {JAVA_MIN} or later")))?,
        kafka: fetch(&jars(layout))?,
    })
}

fn jars(layout: KafkaLayout) -> Jars {
    match layout {
        KafkaLayout::Kraft => KRAFT,
        KafkaLayout::ZooKeeper => ZOOKEEPER,
    }
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Returns Java, installing it if missing.
pub(crate) fn java_installed() -> anyhow::Result<PathBuf> {
    if java().is_none() {
        install(&["default-jre-headless"])?;
    }
    java().with_context(|| format!("no Java {JAVA_MIN} or later on the path; install it"))
}

/// Installs Maven if it is missing.
pub(crate) fn installed_maven() -> anyhow::Result<()> {
    if which("mvn").is_none() {
        install(&["maven"])?;
    }
    Ok(())
}

/// Java, if it is new enough.
fn java() -> Option<PathBuf> {
    let java = which("java")?;
    let said = Command::new(&java).arg("-version").output().ok()?;
    // For example: openjdk version "17.0.15" 2025-04-15
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    let version: u32 = text.split('"').nth(1)?.split('.').next()?.parse().ok()?;
    (version >= JAVA_MIN).then_some(java)
}

/// Installs Debian packages without starting their daemons: while apt runs, a policy file forbids
/// that.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let wanted = packages.join(", ");
    if which("apt-get").is_none() {
        bail!("missing programs: {wanted}; this system has no apt-get, so install them manually");
    }
    if !rustix_is_root() {
        bail!(
            "missing programs: {wanted}; only root can install them; run: apt-get install {}",
            packages.join(" ")
        );
    }
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        succeed(Command::new("chmod").arg("755").arg(policy))?;
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        // Standard output is reserved for the task's own result.
        succeed(
            apt.env("DEBIAN_FRONTEND", "noninteractive")
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(std::io::stderr()),
        )
    };
    let installed = apt(&["update", "--quiet"]).and_then(|()| {
        apt(&[
            &["install", "--yes", "--quiet", "--no-install-recommends"],
            packages,
        ]
        .concat())
    });
    if ours {
        std::fs::remove_file(policy)?;
    }
    installed.with_context(|| format!("{wanted} could not be installed"))
}

fn rustix_is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find(|line| line.starts_with("Uid:"));
    uids.and_then(|line| line.split_whitespace().nth(2))
        .is_some_and(|effective| effective == "0")
}

fn folder(jars: &Jars) -> PathBuf {
    target().join("engines").join(jars.name)
}

fn is_fetched(jars: &Jars) -> bool {
    check(&folder(jars).join("libs"), jars.checksums).is_ok()
}

/// Fetches jars with Maven unless they are present. Verifies them in both cases.
fn fetch(jars: &Jars) -> anyhow::Result<PathBuf> {
    let dir = folder(jars);
    let libs = dir.join("libs");
    if !is_fetched(jars) {
        fetch_artifacts(&dir, jars.artifacts)?;
        check(&libs, jars.checksums).with_context(|| {
            format!("the jars of {} do not match the known checksums", jars.name)
        })?;
    }
    Ok(libs)
}

/// Copies artifacts and their dependencies into `dir/libs` with Maven.
pub(crate) fn fetch_artifacts(dir: &Path, artifacts: &[(&str, &str, &str)]) -> anyhow::Result<()> {
    let libs = dir.join("libs");
    if libs.exists() {
        std::fs::remove_dir_all(&libs)?;
    }
    std::fs::create_dir_all(dir)?;
    let mut pom = String::from(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>seckill</groupId><artifactId>jars</artifactId><version>1</version><dependencies>\n",
    );
    for (group, artifact, version) in artifacts {
        pom.push_str(&format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>\n"
        ));
    }
    pom.push_str("</dependencies></project>\n");
    std::fs::write(dir.join("pom.xml"), pom)?;
    let mut maven = Command::new("mvn");
    maven
        .current_dir(dir)
        .args([
            "--batch-mode",
            "--quiet",
            "--strict-checksums",
            "dependency:copy-dependencies",
        ])
        .args(["-DoutputDirectory=libs", "-DincludeScope=runtime"])
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    succeed(&mut maven).context("Maven could not fetch the jars")
}

/// Fails unless the folder has exactly these files.
fn check(libs: &Path, checksums: &str) -> anyhow::Result<()> {
    let count = std::fs::read_dir(libs)?.count();
    ensure!(
        count == checksums.lines().count(),
        "{} has {count} files, which is not the expected number",
        libs.display()
    );
    let mut sums = Command::new("sha256sum")
        .current_dir(libs)
        .args(["--check", "--strict", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("sha256sum cannot be started")?;
    if let Some(mut input) = sums.stdin.take() {
        input.write_all(checksums.as_bytes())?;
    }
    ensure!(sums.wait()?.success(), "a checksum does not match");
    Ok(())
}
