//! `seckill config`: the configuration in effect, and where each value came from.

use crate::CommandOutcome;
use crate::cli::ConfigArgs;
use crate::configuration::DEFAULT_FILE;
use crate::table;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<CommandOutcome> {
    if args.default {
        print!("{DEFAULT_FILE}");
        return Ok(CommandOutcome::Ok);
    }
    let settings = args.common.load([])?.settings();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&settings)?);
        return Ok(CommandOutcome::Ok);
    }
    let rows: Vec<[String; 3]> = settings
        .into_iter()
        .map(|setting| [setting.key, setting.value, setting.origin])
        .collect();
    print!("{}", table::columns(["KEY", "VALUE", "FROM"], &rows));
    Ok(CommandOutcome::Ok)
}
