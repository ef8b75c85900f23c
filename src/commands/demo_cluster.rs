//! `seckill demo` on a cluster: finds the servers, deletes an earlier demo's data, and suggests how
//! to inspect the result. It must never touch sales that the demo did not create.

use std::path::PathBuf;

use anyhow::{Context, bail};
use seckill_cluster::{ClusterOptions, Owner};
use serde::Deserialize;

use crate::configuration::{Configuration, Flag, Loaded};

/// The file to which `cargo xtask engines up` writes the URLs.
const URLS_FILE: &str = "engines.json";
const URLS_DIR: &str = "target/engines";
/// Overrides [`URLS_DIR`].
const DIR_VARIABLE: &str = "SECKILL_ENGINES_DIR";
const KEYS: [&str; 3] = ["cluster.redis", "cluster.kafka", "cluster.mysql"];

#[derive(Debug, Deserialize)]
struct Urls {
    redis: String,
    kafka: String,
    mysql: String,
}

/// Flags for the servers that `cargo xtask engines up` started, unless a server is configured.
pub(crate) fn found(loaded: &Loaded) -> anyhow::Result<Vec<Flag>> {
    if KEYS.iter().any(|key| loaded.is_set(key)) {
        return Ok(Vec::new());
    }
    let Some(path) = urls_file() else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let urls: Urls =
        serde_json::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
    let named = KEYS.into_iter().zip([urls.redis, urls.kafka, urls.mysql]);
    Ok(named
        .map(|(key, value)| Flag {
            name: URLS_FILE,
            key,
            value,
        })
        .collect())
}

/// The file in the folder that [`DIR_VARIABLE`] names, otherwise in [`URLS_DIR`] below the current
/// folder or one of its parents.
fn urls_file() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return Some(PathBuf::from(dir).join(URLS_FILE)).filter(|path| path.exists());
    }
    let here = std::env::current_dir().ok()?;
    here.ancestors()
        .map(|dir| dir.join(URLS_DIR).join(URLS_FILE))
        .find(|path| path.exists())
}

/// Creates the tables and the topic, and deletes the data of an earlier demo.
pub(crate) async fn begin_afresh(configuration: &Configuration) -> anyhow::Result<()> {
    let options = configuration.cluster_options();
    let hint = "the cluster could not be prepared; start one with `cargo xtask engines up`, or name your servers with --redis, --kafka and --mysql";
    seckill_cluster::init(&options).await.context(hint)?;
    if seckill_cluster::owner(&options).await? == Owner::User {
        bail!(
            "{} has sales that the demo did not create, and the demo deletes all sales each time; give it another database with --mysql, \
             or delete them with `seckill init --engine cluster --reset`",
            seckill_cluster::without_password(&options.mysql)
        );
    }
    seckill_cluster::reset(&options).await?;
    seckill_cluster::mark_as_demo(&options, true).await?;
    Ok(())
}

/// Commands that show the result in each server.
pub(crate) fn look(options: &ClusterOptions) -> String {
    let port = |url: &str, usual: &str| {
        let place = url.rsplit_once('@').map_or(url, |(_, place)| place);
        let place = place.rsplit_once("://").map_or(place, |(_, place)| place);
        let place = place.split('/').next().unwrap_or_default();
        place
            .rsplit_once(':')
            .map_or(usual, |(_, port)| port)
            .to_owned()
    };
    let database = options
        .mysql
        .rsplit_once('/')
        .map_or("seckill", |(_, name)| name);
    format!(
        "  redis-cli -p {} get {}counter\n  kcat -b {} -t {} -C -e -q | wc -l\n  \
         mysql -h 127.0.0.1 -P {} -u seckill -p {database} -e 'select count(*) from seckill'\n",
        port(&options.redis, "6379"),
        options.key_prefix,
        options.kafka,
        options.topic,
        port(&options.mysql, "3306"),
    )
}
