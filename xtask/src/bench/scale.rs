//! The cases for scale: an attempt must cost the same with many sales and buyers as with few.

use anyhow::ensure;

use super::report::Line;
use super::rig::Harness;

const REQUESTS: &str = "200000";

/// A rejection and a confirmation among 10,000 sales against one sale.
pub(crate) fn sales(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    const SALES: u32 = 10_000;
    let (mut rejections, mut confirmations) = (Vec::new(), Vec::new());
    for round in 0..rig.rounds {
        let folder = rig.folder(&format!("sales-{round}"));
        let product = rig.product(&folder, 0)?;
        seckill_testkit::create_sales(&folder, SALES, "s", 10)?;
        seckill_testkit::create_sales(&folder, 1, "one", 100_000)?;
        let one = [
            "--requests",
            "100000",
            "--connections",
            "256",
            "--paths",
            "2",
        ];
        let many = [
            "--requests",
            "100000",
            "--connections",
            "256",
            "--paths",
            "10000",
        ];
        // The two paths differ only in their query, so both name the same sale.
        let few = rig.load(&product, "/v1/sales/one-0/orders?{}", &one)?;
        let spread = rig.load(&product, "/v1/sales/s-{}/orders", &many)?;
        ensure!(
            few.report.won == 100_000 && spread.report.won == 100_000,
            "not all attempts were won"
        );
        confirmations.push(spread.cpu_us() / few.cpu_us());
        let one = [
            "--requests",
            REQUESTS,
            "--connections",
            "256",
            "--paths",
            "2",
        ];
        let many = [
            "--requests",
            REQUESTS,
            "--connections",
            "256",
            "--paths",
            "10000",
        ];
        let few = rig.load(&product, "/v1/sales/one-0/orders?{}", &one)?;
        let spread = rig.load(&product, "/v1/sales/s-{}/orders", &many)?;
        ensure!(
            few.report.won + spread.report.won == 0,
            "some attempts were won after the sell-out"
        );
        rejections.push(spread.cpu_us() / few.cpu_us());
    }
    Ok(vec![
        Line::of(
            "CPU of a rejection among 10,000 sales ÷ in one",
            "",
            &rejections,
        )
        .within(0.9, 1.1),
        Line::of(
            "CPU of a confirmation among 10,000 sales ÷ in one",
            "",
            &confirmations,
        )
        .within(0.9, 1.1),
    ])
}

/// Rejections of 10,000,000 buyers against rejections of 1,000.
pub(crate) fn buyers(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let folder = rig.folder("buyers");
    let product = rig.product(&folder, 0)?;
    let data = folder.display().to_string();
    let create = [
        "sale", "create", "s", "--units", "1000", "--limit", "2", "--data", &data, "--json",
    ];
    rig.command::<seckill_api::Sale>(&create)?;
    let orders = "/v1/sales/s/orders";
    let load = |buyers: &str, requests: &str| {
        rig.load(
            &product,
            orders,
            &[
                "--requests",
                requests,
                "--connections",
                "256",
                "--buyers",
                buyers,
            ],
        )
    };
    // The first load sells all units; from then on, every buyer is rejected.
    load("unique", "2000")?;
    let mut ratios = Vec::new();
    for _ in 0..rig.rounds {
        let few = load("1000", REQUESTS)?;
        let many = load("10000000", "500000")?;
        ratios.push(many.cpu_us() / few.cpu_us());
    }
    // The last load has one request from each of the ten million buyers.
    let few = load("1000", REQUESTS)?;
    let all = load("10000000", "10000000")?;
    ratios.push(all.cpu_us() / few.cpu_us());
    Ok(vec![
        Line::of(
            "CPU of a rejection to 10,000,000 buyers ÷ to 1,000",
            "",
            &ratios,
        )
        .within(0.9, 1.1),
    ])
}
