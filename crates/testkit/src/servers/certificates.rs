//! Certificates of an authority of one's own, for servers on loopback. Good for a test, and for nothing else.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The files of an authority and of one server that it has vouched for.
#[derive(Debug)]
pub struct Certificates {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The server's certificate, for 127.0.0.1.
    pub server: PathBuf,
    /// The server's key.
    pub key: PathBuf,
    /// Key and certificate in one file, as Kafka reads them.
    pub key_and_server: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`.
    pub fn make(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Named unlike the server: OpenSSL takes a certificate whose names are both the same for one that vouches for itself.
        let names = &mut params.distinguished_name;
        names.push(DnType::CommonName, "an authority of the tests");
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
