//! Creates many sales over the operator socket of a running service. One process per sale would
//! take minutes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, ensure};
use seckill_api::{CONTROL_SALES_PATH, NewSale};

const THREADS: u32 = 16;

/// Creates `count` sales named `{prefix}-0`, `{prefix}-1` and so on, with `units` each, in the
/// service that uses this folder.
pub fn create_sales(folder: &Path, count: u32, prefix: &str, units: u32) -> anyhow::Result<()> {
    let create = |first: u32| -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(folder.join("seckill.sock"))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        for index in (first..count).step_by(THREADS as usize) {
            let body = serde_json::to_string(&NewSale {
                id: format!("{prefix}-{index}"),
                total: Some(units),
                ..NewSale::default()
            })?;
            write!(
                stream,
                "POST {CONTROL_SALES_PATH} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            read_answer(&mut answers).with_context(|| format!("sale {prefix}-{index}"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(count))
            .map(|first| scope.spawn(move || create(first)))
            .collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

fn read_answer(answers: &mut impl BufRead) -> anyhow::Result<()> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let is_success = line.starts_with("HTTP/1.1 200");
    let mut length = 0;
    loop {
        let mut header = String::new();
        answers.read_line(&mut header)?;
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.trim().parse()?;
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    answers.read_exact(&mut body)?;
    ensure!(is_success, "{line}{}", String::from_utf8_lossy(&body));
    Ok(())
}
