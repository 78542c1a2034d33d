# The daily loop. `just` lists the recipes; each is one command that can be typed as well.

# List the recipes.
default:
    @just --list

# Quick check of one crate while writing: just check fedge-node
check crate="fedge-cli":
    cargo check --release -p {{crate}} --tests

# All tests, as CI runs them.
test:
    cargo test --release --workspace

# The whole story on this machine.
demo *flags:
    cargo run --release -- demo {{flags}}

# Format, and the lints that CI checks while it builds.
lint:
    cargo fmt --all
    cargo clippy --release --workspace --all-targets -- -D warnings

# Generate the code of the protos again after a .proto changed.
protos:
    FEDGE_UPDATE_GENERATED=1 cargo test --release -p fedge-tests --test contract

# Licences, advisories and bans of all dependencies (needs cargo-deny).
deny:
    cargo deny check

# Everything that CI does.
ci:
    .ci/run
