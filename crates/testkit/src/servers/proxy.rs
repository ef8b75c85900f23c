//! A TCP proxy on loopback that loses replies: a request takes effect, but the connection breaks
//! before the client reads the reply. Does not interpret what it forwards.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;

const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// The most that one read forwards.
const CHUNK_BYTES: usize = 65_536;

/// A proxy that runs until this process exits.
#[derive(Debug)]
pub struct Proxy {
    /// On loopback.
    pub port: u16,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    /// About one in this many replies is lost; 0 loses none.
    one_in: AtomicU32,
    delay_ms: AtomicU32,
    random: AtomicU64,
    lost: AtomicU64,
}

impl Faults {
    fn loses(&self) -> bool {
        let one_in = u64::from(self.one_in.load(Ordering::Relaxed));
        if one_in == 0 {
            return false;
        }
        // A mixed Weyl sequence: consecutive values differ widely, and threads need no lock.
        let step = self
            .random
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (step ^ (step >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
        let is_lost = mixed.is_multiple_of(one_in);
        self.lost.fetch_add(u64::from(is_lost), Ordering::Relaxed);
        is_lost
    }
}

impl Proxy {
    /// Starts to forward connections to a port on loopback.
    pub fn start(to: u16) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the proxy")?;
        let port = listener.local_addr()?.port();
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let faults = Arc::clone(&shared);
                // If the server is down, the client's connection closes, as it would without a
                // proxy.
                std::thread::spawn(move || drop(carry(&client, to, &faults)));
            }
        });
        Ok(Self { port, faults })
    }

    /// From now on, loses about one in `one_in` replies and delays each by `delay_ms`. With 0 and
    /// 0, all replies pass.
    pub fn disturb(&self, one_in: u32, delay_ms: u32) {
        self.faults.one_in.store(one_in, Ordering::Relaxed);
        self.faults.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    /// The number of replies lost so far.
    pub fn lost(&self) -> u64 {
        self.faults.lost.load(Ordering::Relaxed)
    }
}

fn carry(client: &TcpStream, to: u16, faults: &Arc<Faults>) -> anyhow::Result<()> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
    let server = TcpStream::connect_timeout(&server, CONNECT_WAIT)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, into) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        drop(copy(&from, &into, || Ok(true)));
        drop(into.shutdown(Shutdown::Both));
    });
    let copied = copy(&server, client, || {
        let delay_ms = faults.delay_ms.load(Ordering::Relaxed);
        if delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(delay_ms.into()));
        }
        Ok(!faults.loses())
    });
    drop(client.shutdown(Shutdown::Both));
    copied
}

/// Copies until the end of the stream, or until `goes_on` returns false after a read.
fn copy(
    mut from: &TcpStream,
    mut into: &TcpStream,
    goes_on: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 || !goes_on()? {
            return Ok(());
        }
        into.write_all(&chunk[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that echoes every byte and counts the bytes.
    fn echo() -> (u16, Arc<AtomicU64>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = Arc::clone(&counted);
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while (&stream).read(&mut byte).is_ok_and(|count| count == 1) {
                        heard.fetch_add(1, Ordering::SeqCst);
                        if (&stream).write_all(&byte).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (port, heard)
    }

    fn ask(port: u16) -> bool {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(b"a").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).is_ok()
    }

    #[test]
    fn requests_arrive_even_if_their_replies_are_lost() {
        let (server, heard) = echo();
        let proxy = Proxy::start(server).unwrap();
        assert!((0..20).all(|_| ask(proxy.port)));
        proxy.disturb(1, 1);
        assert!(!(0..20).any(|_| ask(proxy.port)));
        assert_eq!((heard.load(Ordering::SeqCst), proxy.lost()), (40, 20));
        proxy.disturb(3, 0);
        let answered = (0..300).filter(|_| ask(proxy.port)).count();
        assert!((100..280).contains(&answered), "{answered}");
        proxy.disturb(0, 0);
        assert!(ask(proxy.port));
    }
}
