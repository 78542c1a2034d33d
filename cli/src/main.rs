//! The `fedge` program.
//! Everything it does is in the library beside it, so that tests can build the same program.

fn main() -> std::process::ExitCode {
    fedge_cli::main()
}
