//! The layers, lowest first: defaults, file, environment, flags. The `config` crate merges them.
//! The origin of a value is the highest layer that sets its key.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat, Map, Value, ValueKind};

use super::{Configuration, DEFAULT_FILE};

/// Variables with the prefix `SECKILL_` that are not configuration keys.
const OTHER_VARIABLES: [&str; 3] = ["SECKILL_CONFIG", "SECKILL_LOG", "SECKILL_ENGINES_DIR"];
/// Keys whose values may hold a password.
const SECRET_KEYS: [&str; 3] = ["cluster.redis", "cluster.mysql", "cluster.kafka_properties"];
/// Read if it exists and no other file is given.
const USUAL_FILE: &str = "seckill.toml";

/// A command-line flag that sets a key.
#[derive(Debug, Clone)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidConfiguration {
    #[error("configuration file {} cannot be read: {error}", path.display())]
    Unreadable {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("configuration file {}: {error}", path.display())]
    File {
        path: PathBuf,
        error: config::ConfigError,
    },
    #[error("configuration key {key} = {value} (from {origin}): {error}")]
    Value {
        key: String,
        value: String,
        origin: String,
        error: String,
    },
    #[error("configuration: {0}")]
    Other(#[from] config::ConfigError),
}

struct Layer {
    config: Config,
    origin: Box<dyn Fn(&str) -> String>,
}

/// The configuration in effect, and its layers.
pub(crate) struct Loaded {
    pub(crate) configuration: Configuration,
    merged: Config,
    layers: Vec<Layer>,
}

/// Reads all layers. `environment` is a parameter so that tests can pass their own.
pub(crate) fn load(
    file: Option<&Path>,
    environment: HashMap<String, String>,
    flags: Vec<Flag>,
) -> Result<Loaded, InvalidConfiguration> {
    let mut layers = vec![Layer {
        config: Config::builder()
            .add_source(File::from_str(DEFAULT_FILE, FileFormat::Toml))
            .build()?,
        origin: Box::new(|_| "default".into()),
    }];
    let named = file.map(Path::to_owned);
    let variable = environment.get("SECKILL_CONFIG");
    let named = named.or_else(|| variable.filter(|path| !path.is_empty()).map(PathBuf::from));
    let path = named.or_else(|| Some(PathBuf::from(USUAL_FILE)).filter(|path| path.exists()));
    if let Some(path) = path {
        layers.push(file_layer(path)?);
    }
    layers.push(environment_layer(environment)?);
    layers.push(flag_layer(flags)?);
    let mut merged = Config::builder();
    for layer in &layers {
        merged = merged.add_source(layer.config.clone());
    }
    let merged = merged.build()?;
    let configuration = serde_path_to_error::deserialize(merged.clone())
        .map_err(|error| explain(&error, &merged, &layers))?;
    Ok(Loaded {
        configuration,
        merged,
        layers,
    })
}

fn file_layer(path: PathBuf) -> Result<Layer, InvalidConfiguration> {
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return Err(InvalidConfiguration::Unreadable { path, error }),
    };
    let source = File::from_str(&text, FileFormat::Toml);
    match Config::builder().add_source(source).build() {
        Ok(config) => Ok(Layer {
            config,
            origin: Box::new(move |_| format!("file {}", path.display())),
        }),
        Err(error) => Err(InvalidConfiguration::File { path, error }),
    }
}

fn environment_layer(environment: HashMap<String, String>) -> Result<Layer, InvalidConfiguration> {
    let ours: Map<String, String> = environment
        .into_iter()
        .filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str()))
        .filter(|(name, value)| !is_service_link(name, value))
        .collect();
    let source = Environment::with_prefix("SECKILL")
        .prefix_separator("_")
        .separator("__")
        .source(Some(ours));
    Ok(Layer {
        config: Config::builder().add_source(source).build()?,
        origin: Box::new(|key| format!("environment {}", variable(key))),
    })
}

/// Whether Kubernetes injected the variable for a Service whose name begins with `seckill`: every
/// container gets the addresses of the Services in its namespace, in variables such as
/// `SECKILL_SERVICE_HOST`, `SECKILL_PORT` and `SECKILL_PORT_3000_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    // Variables for the keys of a section have two underscores.
    if name.contains("__") {
        return false;
    }
    let is_link = |value: &str| {
        let scheme = value.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| PROTOCOLS.contains(&scheme.to_uppercase().as_str()))
    };
    if name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
    {
        return true;
    }
    // The name of the Service may contain `_PORT` itself.
    name.match_indices("_PORT").any(|(at, found)| {
        let port = &name[at + found.len()..];
        let mut parts = port.split('_').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (None, ..) => port.is_empty() && is_link(value),
            (Some(number), Some(protocol), rest, None) => {
                number.parse::<u16>().is_ok()
                    && PROTOCOLS.contains(&protocol)
                    && rest.is_none_or(|rest| ["PROTO", "PORT", "ADDR"].contains(&rest))
            }
            _ => false,
        }
    })
}

fn flag_layer(flags: Vec<Flag>) -> Result<Layer, InvalidConfiguration> {
    let mut config = Config::builder();
    for flag in &flags {
        config = config.set_override(flag.key, flag.value.as_str())?;
    }
    Ok(Layer {
        config: config.build()?,
        origin: Box::new(move |key| {
            let name = flags
                .iter()
                .find(|flag| flag.key == key)
                .map(|flag| flag.name);
            format!("flag {}", name.unwrap_or("?"))
        }),
    })
}

/// The variable that sets a key.
fn variable(key: &str) -> String {
    format!("SECKILL_{}", key.replace('.', "__").to_uppercase())
}

fn origin_of(key: &str, layers: &[Layer]) -> String {
    let set = layers
        .iter()
        .rev()
        .find(|layer| layer.config.get::<Value>(key).is_ok());
    set.map_or_else(|| "nowhere".into(), |layer| (layer.origin)(key))
}

fn explain(
    error: &serde_path_to_error::Error<config::ConfigError>,
    merged: &Config,
    layers: &[Layer],
) -> InvalidConfiguration {
    let (key, mut text) = (error.path().to_string(), cause(error.inner()));
    // The error for an unknown key lists the known ones.
    let unknown = text.strip_prefix("unknown field `");
    if let Some((_, known)) = unknown.and_then(|rest| rest.split_once('`')) {
        text = format!("there is no such key{known}");
        let sections = ["service", "sale", "embedded", "cluster"];
        let joined = sections.iter().find_map(|section| {
            let name = key.strip_prefix(section)?.strip_prefix('_')?;
            Some(variable(&format!("{section}.{name}")))
        });
        if let Some(variable) = joined {
            text.push_str(&format!(
                "; two underscores separate section and key: {variable}"
            ));
        }
    }
    let value = merged
        .get::<Value>(&key)
        .map_or_else(|_| "?".into(), |value| without_secrets(&key, shown(&value)));
    InvalidConfiguration::Value {
        origin: origin_of(&key, layers),
        key,
        value,
        error: text,
    }
}

/// The innermost message: the crate adds the key and the origin, which [`explain`] reports itself.
fn cause(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::At { error, .. } => cause(error),
        config::ConfigError::Message(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("{text:?}"),
        _ => value.to_string(),
    }
}

/// Hides passwords: a URL is shown without its credentials, Kafka's settings without their values.
fn without_secrets(key: &str, shown: String) -> String {
    if !SECRET_KEYS.contains(&key) {
        return shown;
    }
    if key == "cluster.kafka_properties" {
        let names = shown
            .trim_matches('"')
            .split([',', '\n'])
            .filter_map(|part| part.split_once('='));
        let names: Vec<String> = names
            .map(|(name, _)| format!("{}=…", name.trim()))
            .collect();
        return format!("\"{}\"", names.join(","));
    }
    if let Some((user, place)) = shown.rsplit_once('@')
        && let Some((scheme, _)) = user.split_once("://")
    {
        return format!("{scheme}://…@{place}");
    }
    shown
}

/// The value as JSON, with the type of its default: from a variable or a flag, every value is text.
fn typed(key: &str, value: &Value) -> serde_json::Value {
    let is_number = default_of(key).is_some_and(|default| matches!(default, ValueKind::I64(_)));
    if is_number && let Ok(number) = value.clone().into_int() {
        return number.into();
    }
    let text = value.clone().into_string();
    without_secrets(key, text.unwrap_or_else(|_| value.to_string())).into()
}

fn default_of(key: &str) -> Option<ValueKind> {
    let source = File::from_str(DEFAULT_FILE, FileFormat::Toml);
    let defaults = Config::builder().add_source(source).build().ok()?;
    defaults.get::<Value>(key).ok().map(|value| value.kind)
}

/// One line of `seckill config`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: serde_json::Value,
    pub(crate) origin: String,
}

impl Loaded {
    /// Whether a layer above the defaults has set this key.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        origin_of(key, &self.layers) != "default"
    }

    /// All keys and their values in effect, in the order of the keys.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        self.collect("", &self.merged.cache, &mut settings);
        settings.sort_by(|a, b| (a.key.contains('.'), &a.key).cmp(&(b.key.contains('.'), &b.key)));
        settings
    }

    fn collect(&self, path: &str, value: &Value, into: &mut Vec<Setting>) {
        let ValueKind::Table(members) = &value.kind else {
            into.push(Setting {
                key: path.to_owned(),
                value: typed(path, value),
                origin: origin_of(path, &self.layers),
            });
            return;
        };
        for (name, member) in members {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            self.collect(&path, member, into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    fn flag(name: &'static str, key: &'static str, value: &str) -> Flag {
        Flag {
            name,
            key,
            value: value.into(),
        }
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        let loaded = load(None, environment(pairs), Vec::new());
        loaded.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn the_default_file_is_a_whole_configuration() {
        let loaded = load(None, HashMap::new(), Vec::new()).unwrap();
        assert_eq!(loaded.configuration.service.listen.port(), 3000);
        assert_eq!(loaded.configuration.units(), 100);
        assert!(
            loaded
                .settings()
                .iter()
                .all(|setting| setting.origin == "default")
        );
    }

    #[test]
    fn each_layer_overrides_the_one_below_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.toml");
        std::fs::write(
            &path,
            "[sale]\nunits = 7\n[service]\nlisten = '127.0.0.1:1'\n",
        )
        .unwrap();
        let variables = environment(&[
            ("SECKILL_SERVICE__LISTEN", "127.0.0.1:2"),
            ("SECKILL_EMBEDDED__DATA", "from-environment"),
            ("SECKILL_LOG", "debug"),
        ]);
        let flags = vec![flag("--data", "embedded.data", "from-flag")];
        let loaded = load(Some(&path), variables, flags).unwrap();
        let setting = |key: &str| {
            let settings = loaded.settings();
            settings
                .into_iter()
                .find(|setting| setting.key == key)
                .unwrap()
        };
        assert_eq!(
            setting("sale.units").origin,
            format!("file {}", path.display())
        );
        assert_eq!(setting("service.listen").value, "127.0.0.1:2");
        assert_eq!(setting("sale.units").value, 7);
        assert_eq!(
            setting("service.listen").origin,
            "environment SECKILL_SERVICE__LISTEN"
        );
        assert_eq!(setting("embedded.data").value, "from-flag");
        assert_eq!(setting("embedded.data").origin, "flag --data");
        assert_eq!(setting("embedded.batch_max").origin, "default");
    }

    #[test]
    fn an_error_names_the_key_the_value_the_origin_and_the_rule() {
        let text = refused(&[("SECKILL_SERVICE__RETRY_AFTER_S", "0")]);
        for part in [
            "service.retry_after_s",
            "\"0\"",
            "SECKILL_SERVICE__RETRY_AFTER_S",
            "from 1 to 3600",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(refused(&[("SECKILL_SERVICE__LISTEN", "3000")]).contains("such as 127.0.0.1:3000"));
        assert!(refused(&[("SECKILL_SALE__UNITS", "-1")]).contains("from 0 to 1000000000"));
        assert!(refused(&[("SECKILL_ENGINE", "magic")]).contains("embedded"));
        let unknown = refused(&[("SECKILL_SERVICE__LISTENN", "x")]);
        assert!(unknown.contains("key service.listenn = \"x\""), "{unknown}");
        assert!(unknown.contains("SECKILL_SERVICE__LISTENN") && unknown.contains("`listen`"));
        assert!(refused(&[("SECKILL_LISTEN", "x")]).contains("key listen = \"x\""));
    }

    #[test]
    fn variables_that_kubernetes_injects_are_ignored() {
        let injected = environment(&[
            ("SECKILL_PORT", "tcp://10.0.0.1:3000"),
            ("SECKILL_PORT_3000_TCP", "tcp://10.0.0.1:3000"),
            ("SECKILL_PORT_3000_TCP_ADDR", "10.0.0.1"),
            ("SECKILL_PORT_3000_TCP_PORT", "3000"),
            ("SECKILL_PORT_3000_TCP_PROTO", "tcp"),
            ("SECKILL_SERVICE_HOST", "10.0.0.1"),
            ("SECKILL_SERVICE_PORT", "3000"),
            ("SECKILL_SERVICE_PORT_HTTP", "3000"),
            ("SECKILL_MYSQL_SERVICE_HOST", "10.0.0.2"),
            ("SECKILL_MYSQL_PORT", "tcp://10.0.0.2:3306"),
            ("SECKILL_PORTAL_PORT", "tcp://10.0.0.3:80"),
            ("SECKILL_PORTAL_PORT_80_TCP", "tcp://10.0.0.3:80"),
        ]);
        let loaded = load(None, injected, Vec::new());
        assert!(loaded.is_ok(), "{:?}", loaded.map(|_| ()).unwrap_err());
        let text = refused(&[("SECKILL_SERVICE_LISTEN", "127.0.0.1:1")]);
        assert!(text.contains("SECKILL_SERVICE__LISTEN"), "{text}");
        assert!(refused(&[("SECKILL_PORT", "3000")]).contains("key port"));
    }

    #[test]
    fn an_empty_config_variable_counts_as_unset() {
        assert!(load(None, environment(&[("SECKILL_CONFIG", "")]), Vec::new()).is_ok());
        let folder = load(Some(Path::new("/tmp")), HashMap::new(), Vec::new());
        let text = folder.map(|_| ()).unwrap_err().to_string();
        assert!(
            text.contains("/tmp") && text.contains("directory"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let missing = load(Some(Path::new("/nowhere.toml")), HashMap::new(), Vec::new());
        assert!(
            missing
                .map(|_| ())
                .unwrap_err()
                .to_string()
                .contains("/nowhere.toml")
        );
    }
}
