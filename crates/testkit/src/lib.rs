//! The product's processes as a user has them: started, asked, killed. For the tests, the bench and the fault runs.
//! Nothing here looks inside the product; it knows the binary, its output and its HTTP answers.

mod http;
mod kill_rounds;
mod process;
mod sales;
pub mod servers;

pub use http::{Answer, exchange, get, post, raw};
pub use kill_rounds::{KillPlan, KillSummary, kill_rounds};
pub use process::{Served, raise_file_limit, run};
pub use sales::create_sales;
