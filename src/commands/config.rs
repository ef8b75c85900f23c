//! `seckill config`: prints the configuration in effect, and where each value came from. Passwords
//! must not be shown.

use crate::CommandOutcome;
use crate::cli::ConfigArgs;
use crate::configuration::DEFAULT_FILE;
use crate::output;
use crate::table;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<CommandOutcome> {
    if args.default {
        output::print(DEFAULT_FILE)?;
        return Ok(CommandOutcome::Ok);
    }
    let settings = args.common.load([])?.settings();
    if args.json {
        output::print(serde_json::to_string_pretty(&settings)? + "\n")?;
        return Ok(CommandOutcome::Ok);
    }
    let rows: Vec<[String; 3]> = settings
        .into_iter()
        .map(|setting| [setting.key, setting.value.to_string(), setting.origin])
        .collect();
    output::print(table::columns(["KEY", "VALUE", "FROM"], &rows))?;
    Ok(CommandOutcome::Ok)
}
