//! A private certificate authority and a server certificate for loopback. For tests only, never for
//! production.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The files of an authority and of one server certificate that it signed.
#[derive(Debug)]
pub struct Certificates {
    pub authority: PathBuf,
    /// The certificate for 127.0.0.1.
    pub server: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
    /// Private key and certificate in one file, as Kafka expects them.
    pub key_and_server: PathBuf,
}

impl Certificates {
    /// Creates all files in `dir`.
    pub fn make(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // The name must differ from the server's: OpenSSL treats a certificate whose subject equals
        // its issuer as self-signed.
        let names = &mut params.distinguished_name;
        names.push(DnType::CommonName, "seckill test authority");
        let authority_key = KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        let server = server.signed_by(&key, &issuer)?;
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let (key, server) = (key.serialize_pem(), server.pem());
        Ok(Self {
            authority: write("authority.pem", &authority.pem())?,
            server: write("server.pem", &server)?,
            key: write("key.pem", &key)?,
            key_and_server: write("key-and-server.pem", &format!("{key}{server}"))?,
        })
    }
}
