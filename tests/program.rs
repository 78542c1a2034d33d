//! The `fedge` program as the end-to-end tests start it: it can be told where to die.
//! No test logic lives here.

mod kill_point;

fn main() -> std::process::ExitCode {
    kill_point::arm();
    fedge_cli::main()
}
