//! The `fedge` program as the end-to-end tests start it.
//! No test logic lives here.

fn main() -> std::process::ExitCode {
    fedge_cli::main()
}
