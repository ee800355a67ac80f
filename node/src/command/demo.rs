//! placeholder
use clap::Args;
use std::process::ExitCode;
#[derive(Args)]
pub(super) struct DemoArgs {}
pub(super) fn run(_args: &DemoArgs) -> ExitCode {
    ExitCode::SUCCESS
}
