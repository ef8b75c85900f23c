//! Servers that require TLS and passwords: the tutorial's experiment over all three, and the errors
//! when a credential is missing or wrong. Kafka requires TLS only with the feature `kafka-tls`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::process::{Command, Output};

use seckill_testkit::servers::{
    Certificates, Kafka, KafkaLayout, Listener, Mysql, Programs, Redis, Urls, free_port,
};
use serde_json::Value;
use tempfile::TempDir;

const PASSWORD: &str = "hunter2-at-the-gate";

/// The servers, and the addresses and settings to connect to them.
struct Secured {
    urls: Urls,
    settings: Vec<(&'static str, String)>,
    _redis: Redis,
    _mysql: Mysql,
    _kafka: Kafka,
    _dir: TempDir,
}

fn kafka_listener(certificates: &Certificates) -> Listener {
    let protocol = if cfg!(feature = "kafka-tls") {
        "SASL_SSL"
    } else {
        "SASL_PLAINTEXT"
    };
    let mut properties = format!(
        "sasl.enabled.mechanisms=PLAIN\nsasl.mechanism.inter.broker.protocol=PLAIN\n\
         listener.name.{}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
         username=\"seckill\" password=\"{PASSWORD}\" user_seckill=\"{PASSWORD}\";\n",
        protocol.to_ascii_lowercase()
    );
    if cfg!(feature = "kafka-tls") {
        properties.push_str(&format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n",
            certificates.key_and_server.display(),
            certificates.authority.display()
        ));
    }
    Listener {
        protocol,
        properties,
    }
}

impl Secured {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let programs = Programs::found().unwrap();
        let certificates = Certificates::make(&dir.path().join("certificates")).unwrap();
        let display = |path: &std::path::Path| path.display().to_string();
        let (authority, server, key) = (
            display(&certificates.authority),
            display(&certificates.server),
            display(&certificates.key),
        );
        let redis_tls = free_port().unwrap();
        let redis = Redis::start(
            &programs,
            &dir.path().join("redis"),
            free_port().unwrap(),
            &[
                "--tls-port",
                &redis_tls.to_string(),
                "--tls-cert-file",
                &server,
                "--tls-key-file",
                &key,
                "--tls-ca-cert-file",
                &authority,
                "--tls-auth-clients",
                "no",
                "--requirepass",
                PASSWORD,
            ],
        );
        let mysql = Mysql::start(
            &programs,
            &dir.path().join("mysql"),
            free_port().unwrap(),
            &[
                format!("--ssl-ca={authority}"),
                format!("--ssl-cert={server}"),
                format!("--ssl-key={key}"),
                "--require-secure-transport=ON".to_owned(),
            ],
        );
        let listener = kafka_listener(&certificates);
        let kafka = Kafka::start(
            &programs,
            &dir.path().join("kafka"),
            free_port().unwrap(),
            KafkaLayout::Kraft,
            &listener,
        );
        let (redis, mysql, kafka) = (redis.unwrap(), mysql.unwrap(), kafka.unwrap());
        let mut properties = format!(
            "security.protocol={},sasl.mechanism=PLAIN,sasl.username=seckill,sasl.password={PASSWORD}",
            listener.protocol
        );
        if cfg!(feature = "kafka-tls") {
            properties.push_str(&format!(",ssl.ca.location={authority}"));
        }
        Self {
            urls: Urls {
                redis: format!("rediss://:{PASSWORD}@127.0.0.1:{redis_tls}"),
                kafka: kafka.address(),
                mysql: mysql.url("shop"),
            },
            settings: vec![
                ("SECKILL_CLUSTER__REDIS_CA", authority.clone()),
                ("SECKILL_CLUSTER__MYSQL_CA", authority),
                ("SECKILL_CLUSTER__KAFKA_PROPERTIES", properties),
            ],
            _redis: redis,
            _mysql: mysql,
            _kafka: kafka,
            _dir: dir,
        }
    }

    fn run(&self, urls: &Urls, overrides: &[(&'static str, String)], arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_seckill"))
            .args(arguments)
            .args(urls.flags())
            .envs(self.settings.iter().cloned())
            .envs(overrides.iter().cloned())
            .output()
            .unwrap()
    }

    /// Asserts that `init` is refused without printing the password, and returns its message.
    fn refusal(&self, urls: &Urls, overrides: &[(&'static str, String)]) -> String {
        let output = self.run(urls, overrides, &["init"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(!text.contains(PASSWORD), "{text}");
        text
    }
}

#[test]
fn the_experiment_runs_with_tls_and_passwords_and_errors_name_what_is_missing() {
    let secured = Secured::start();
    let urls = &secured.urls;

    let setting = |name, value: &str| [(name, value.to_owned())];
    let wrong_key = urls.redis.replacen(PASSWORD, "wrong", 1);
    let plain = urls.redis.replacen("rediss://", "redis://", 1);
    for (redis, overrides, expected) in [
        (
            &wrong_key,
            None,
            &["Redis at rediss://…@", "check the user and the password"][..],
        ),
        (&plain, None, &["Redis at redis://…@"][..]),
        (
            &urls.redis,
            Some("SECKILL_CLUSTER__REDIS_CA"),
            &["Redis at rediss://…@", "certificate"][..],
        ),
        (
            &urls.redis,
            Some("SECKILL_CLUSTER__MYSQL_CA"),
            &["MySQL at mysql://…@", "cluster.mysql_ca"][..],
        ),
    ] {
        let urls = Urls {
            redis: redis.clone(),
            ..urls.clone()
        };
        let overrides = overrides.map(|name| setting(name, ""));
        let text = secured.refusal(
            &urls,
            overrides.as_ref().map_or(&[], |overrides| &overrides[..]),
        );
        for part in expected {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
    let properties = secured.settings[2].1.replacen(PASSWORD, "wrong", 1);
    let text = secured.refusal(
        urls,
        &setting("SECKILL_CLUSTER__KAFKA_PROPERTIES", &properties),
    );
    assert!(
        text.contains("Kafka at") && text.contains("uthentication"),
        "{text}"
    );

    for gate in ["script", "watch"] {
        let demo = secured.run(
            urls,
            &[],
            &[
                "demo",
                "--json",
                "--ramp",
                "500ms",
                "--listen",
                "127.0.0.1:0",
                "--gate",
                gate,
            ],
        );
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(demo.status.success(), "{}", text(&demo.stderr));
        let report: Value = serde_json::from_str(&text(&demo.stdout)).unwrap();
        for (key, value) in [
            ("won", 100),
            ("gate_left", 0),
            ("log_records", 100),
            ("store_rows", 100),
        ] {
            assert_eq!(report[key], value, "{key} of {report:#}");
        }
        assert_eq!(report["verdict"], "clean");
    }
}
