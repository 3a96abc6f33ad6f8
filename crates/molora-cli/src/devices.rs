//! `molora devices`: what was found, with limits and features, and why a device is missing.

use anyhow::Result;
use molora_check::subject::{Found, find};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// List the devices of this machine, and why others are missing
#[derive(clap::Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &DevicesArgs) -> Result<ExitCode> {
    let Found { subjects, missing } = find();
    if args.json {
        let device = |subject: &dyn molora_check::Subject| {
            let details: Map<String, Value> =
                subject.details().into_iter().map(|(name, value)| (name, value.into())).collect();
            json!({"device": subject.kind(), "name": subject.name(), "details": details})
        };
        let found: Vec<Value> = subjects.iter().map(|s| device(s.as_ref())).collect();
        println!("{}", serde_json::to_string_pretty(&json!({"found": found, "missing": missing}))?);
        return Ok(ExitCode::SUCCESS);
    }
    for subject in &subjects {
        println!("{}", subject.name());
        for (name, value) in subject.details() {
            println!("    {name:<38} {value}");
        }
    }
    for reason in &missing {
        println!("missing: {reason}");
    }
    Ok(ExitCode::SUCCESS)
}
