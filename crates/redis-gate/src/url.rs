//! Parses the URL of a single Redis, a Sentinel group or a Cluster. Does not connect.

use redis::io::tcp::TcpSettings;
use redis::{ConnectionInfo, IntoConnectionInfo};
use seckill_cluster_codec::without_password;

#[derive(Debug, Clone)]
pub(crate) enum Target {
    Single(Box<ConnectionInfo>),
    Sentinel {
        nodes: Vec<ConnectionInfo>,
        name: String,
        user: Box<ConnectionInfo>,
        tls: bool,
    },
    Cluster(Vec<ConnectionInfo>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid Redis URL {shown}: {error}; use redis://[user:password@]host:port[/db], rediss:// for TLS, redis+cluster://host:port,… or redis+sentinel://host:port,…/name"
)]
pub struct InvalidRedisUrl {
    shown: String,
    error: String,
}

pub(crate) fn parse(url: &str) -> Result<Target, InvalidRedisUrl> {
    let bad = |error: String| InvalidRedisUrl {
        shown: without_password(url),
        error,
    };
    let info = |url: &str| {
        let info = url
            .into_connection_info()
            .map_err(|error| bad(error.to_string()))?;
        Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    };
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| bad("the scheme is missing".into()))?;
    let (plain, kind) = match scheme.split_once('+') {
        Some((plain @ ("redis" | "rediss"), kind @ ("sentinel" | "cluster"))) => (plain, kind),
        Some(_) => return Err(bad(format!("unknown scheme {scheme}"))),
        None => return Ok(Target::Single(Box::new(info(url)?))),
    };
    let (user, places) = match rest.rsplit_once('@') {
        Some((user, places)) => (format!("{user}@"), places),
        None => (String::new(), rest),
    };
    let (hosts, path) = places.split_once('/').unwrap_or((places, ""));
    let each = |user: &str, db: &str| -> Result<Vec<ConnectionInfo>, InvalidRedisUrl> {
        let hosts = hosts.split(',').filter(|host| !host.is_empty());
        hosts
            .map(|host| info(&format!("{plain}://{user}{host}{db}")))
            .collect()
    };
    if kind == "cluster" {
        return Ok(Target::Cluster(each(&user, "")?));
    }
    let (name, db) = path.split_once('/').unwrap_or((path, "0"));
    if name.is_empty() {
        return Err(bad("the name of the master is missing".into()));
    }
    let nodes = each("", "")?;
    let first = hosts.split(',').next().unwrap_or_default();
    let user = Box::new(info(&format!("{plain}://{user}{first}/{db}"))?);
    Ok(Target::Sentinel {
        nodes,
        name: name.to_owned(),
        user,
        tls: plain == "rediss",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_url_is_parsed() {
        assert!(matches!(
            parse("redis://127.0.0.1:6379/2"),
            Ok(Target::Single(_))
        ));
        assert!(matches!(
            parse("rediss://u:p@h:6379"),
            Ok(Target::Single(_))
        ));
        let cluster = parse("redis+cluster://:p@a:1,b:2");
        assert!(matches!(cluster, Ok(Target::Cluster(nodes)) if nodes.len() == 2));
        let sentinel = parse("redis+sentinel://:p@a:1,b:2,c:3/shop/4");
        let Ok(Target::Sentinel {
            nodes,
            name,
            user,
            tls,
        }) = sentinel
        else {
            panic!("{sentinel:?}");
        };
        assert_eq!((nodes.len(), name.as_str(), tls), (3, "shop", false));
        assert_eq!(
            (user.redis_settings().db(), user.redis_settings().password()),
            (4, Some("p"))
        );
    }

    #[test]
    fn the_error_for_an_invalid_url_does_not_contain_the_password() {
        for bad in [
            "127.0.0.1:6379",
            "http://:secret@h",
            "redis+sentinel://:secret@h:1",
            "redis+x://:secret@h",
        ] {
            let error = parse(bad).map(|_| ()).unwrap_err().to_string();
            assert!(
                error.contains("redis+cluster://") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
